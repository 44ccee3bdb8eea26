"""What the steps under `feedback` grow from: the rows of the turn, or with `from:` those of a file."""

import re
from pathlib import Path

from flows import assemble
from flows.config import LoopConfig, Use
from flows.tasks import bring_in
from storage.store import Store, key_of


def bring_in_parents(config: LoopConfig, folder: Path, root: Path) -> None:
    """Import the files that steps grow from."""
    for use in (u for u in config.feedback if u.from_):
        bring_in(f"import what {use.step} grows from", root, folder / use.from_, _name(config, use))


def parents(store: Store, config: LoopConfig, use: Use, rows: str) -> str:
    """The rows of the turn, or those of the step's file with what it wrote before, so that it is not written again."""
    if use.from_ is None:
        return rows
    before = assemble.where(store, rows, "method", use.step)
    written = [before] if store.manifest(before).counts["live"] else []
    return assemble.together(store, [store.resolve(_name(config, use)), *written])


def told(use: Use) -> str:
    """The step, and the file that it grows from; two files may be called alike."""
    if use.from_ is None:
        return use.step
    return f"{use.step}-{re.sub('[^A-Za-z0-9_-]+', '-', Path(use.from_).stem)[:30]}-{key_of(use.from_)[:4]}"


def _name(config: LoopConfig, use: Use) -> str:
    return f"{config.name}.from.{told(use)}"
