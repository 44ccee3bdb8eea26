"""What all commands share: the store they work on, their way of answering, their exit codes."""

from pathlib import Path
from typing import Annotated

import typer

from storage.store import Store

FAILED, USAGE, REJECTED, INTERRUPTED = 1, 2, 3, 130
StoreOption = Annotated[
    Path, typer.Option("--store", envvar="THRESHER_STORE", help="Folder of the store.", show_default=True)
]
RayOption = Annotated[
    str | None,
    typer.Option("--ray", help="Ray cluster whose nodes share the shards: local, auto, host:port or ray://host:port."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def open_store(root: Path) -> Store:
    """The store in a folder, made if need be, without what killed runs left half-written."""
    store = Store(root.resolve())
    store.root.mkdir(parents=True, exist_ok=True)
    store.sweep()
    return store
