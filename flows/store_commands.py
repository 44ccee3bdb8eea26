"""The commands that keep a store: what is in it and how large, what may go, whether it is whole, and copies of it."""

import fnmatch
import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flows.browse import cell, out
from flows.command import FAILED, AsJson, StoreOption, open_store
from flows.progress import bar, say
from storage.addresses import shown
from storage.collect import Garbage, collect, garbage, own_bytes
from storage.store import StoreError

keeping = typer.Typer()


@keeping.command()
def datasets(as_json: AsJson = False, store: StoreOption = Path(".thresher")) -> None:
    """List what is in the store, oldest first: names, rows, size, age, and what each was made of.

    The size is of what a dataset adds to those that it was made of, so that the sizes make the whole. A dataset without
    a name, that nothing with a name was made of, goes with the next `thresher gc`.
    """
    place = open_store(store)
    names = place.called()
    manifests = {dataset: place.manifest(dataset) for dataset in place.ids()}
    sizes = {dataset: own_bytes(place, made, manifests) for dataset, made in manifests.items()}
    made_at = {d: (place.folder(d) / "manifest.json").stat().st_mtime for d in manifests}
    if as_json:
        said = [
            {"id": m.id, "kind": m.kind, "names": names.get(m.id, []), "counts": m.counts, "inputs": m.inputs}
            | {"bytes": sizes[m.id], "made": round(made_at[m.id], 3)}
            for m in manifests.values()
        ]
        return typer.echo(json.dumps(said, indent=1))
    table = Table("name", "id", "kind", "counts", "size", "age", "made of", box=None)
    for made in manifests.values():
        parents = [(names.get(i) or [i])[0] for i in dict.fromkeys(made.inputs.values())]
        cells = [", ".join(names.get(made.id, [])), made.id, made.kind, made.summary]
        table.add_row(*cells, size(sizes[made.id]), age(time.time() - made_at[made.id]), ", ".join(parents))
    out(table)
    if manifests:
        say(f"{len(manifests)} datasets, {size(sum(sizes.values()))}")


@keeping.command()
def diff(
    before: Annotated[str, typer.Argument(help="Name or id of a dataset of rows, or of a choice.")],
    after: Annotated[str, typer.Argument(help="Name or id of another one of the same kind.")],
    rows: Annotated[int, typer.Option(help="How many rows of each sort are shown.", min=0)] = 3,
    as_json: AsJson = False,
    store: StoreOption = Path(".thresher"),
) -> None:
    """Say what became of the rows from one dataset to another, and how their scores moved.

    Rows are told by their ids; where none is in both, as after an import under another name, by what they say.
    """
    from flows.diff import diff as compared

    place = open_store(store)
    found = compared(place, place.resolve(before), place.resolve(after))
    if as_json:
        said = {"by": found.by, "counts": dict(found.counts), "reasons": dict(found.reasons)}
        said |= {"scores": found.scores.to_dicts(), "only_before": found.only_before, "only_after": found.only_after}
        ids = {kind: changed["id"].to_list() for kind, changed in found.rows.items()}
        return typer.echo(json.dumps(said | {"rows": ids}, indent=1))
    told = ", ".join(f"{n:,} {kind}" for kind, n in found.counts.items() if kind not in ("before", "after"))
    typer.echo(f"{found.counts['before']:,} live rows -> {found.counts['after']:,}: {told}; told by {found.by}")
    for step, n in found.reasons.items():
        typer.echo(f"  {n:,} dropped by {step}")
    for kind, changed in found.rows.items() if rows else ():
        table = Table(kind, "prompt", "before", "after", "why", box=None)
        for row in changed.head(rows).rows():
            table.add_row(*[escape(cell(value, 60)) for value in row])
        out(table)
    if found.scores.height:
        table = Table("score", "rows", "mean before", "mean after", "mean move", "rank kept", box=None)
        for row in found.scores.rows():
            table.add_row(*[cell(value) for value in row])
        out(table)
    for side, columns in (("before", found.only_before), ("after", found.only_after)):
        if columns:
            typer.echo(f"only {side}: {', '.join(columns)}")


@keeping.command()
def forget(
    names: Annotated[list[str], typer.Argument(help="Names, or patterns of names such as 'snips.*'.")],
    store: StoreOption = Path(".thresher"),
) -> None:
    """Take names away. What they pointed at stays where it is until `thresher gc`."""
    place = open_store(store)
    known = place.names()
    found = {pattern: fnmatch.filter(known, pattern) for pattern in names}
    if lost := [pattern for pattern, matched in found.items() if not matched]:
        raise StoreError(f"there is no name like {lost[0]!r} in {place.root}; `thresher datasets` lists them")
    gone = sorted({name for matched in found.values() for name in matched})
    place.forget(gone)
    say(f"forgotten: {', '.join(gone)}; `thresher gc` says what no name reaches now")


@keeping.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this, only say what would go.")] = False,
    as_json: AsJson = False,
    store: StoreOption = Path(".thresher"),
) -> None:
    """Remove what no name reaches, and no running command uses; without --yes only say what that is.

    A name reaches its dataset and all that it was made of. Models' answers and reports stay.
    """
    place = open_store(store)
    found = collect(place) if yes else garbage(place)
    if as_json:
        said = {"datasets": [made.id for made in found.datasets], "bytes": found.bytes, "removed": yes}
        said |= {"unfinished": [path.name for path in found.unfinished], "parts_of_unfinished": found.unsealed}
        return typer.echo(json.dumps(said | {"kept_for_running": found.held}, indent=1))
    for line in _told(found):
        typer.echo(line)
    if found.held:
        typer.echo(f"kept for running commands: {found.held} datasets")
    if not (found.files or found.unfinished or found.datasets):
        return typer.echo("names reach everything; nothing goes")
    typer.echo(f"{size(found.bytes)} {'removed' if yes else 'would go: `thresher gc --yes` removes it'}")


def _told(found: Garbage) -> list[str]:
    lines = [f"{n:>6,} datasets of {step}" for step, n in sorted(found.steps.items())]
    if found.unfinished or found.unsealed:
        lines.append(
            f"{len(found.unfinished) + found.unsealed:>6,} parts and checkpoints of runs that never ended; "
            "such a run would begin again"
        )
    return lines


@keeping.command()
def verify(
    set_aside: Annotated[
        bool,
        typer.Option("--set-aside", help="Move what is broken, and what needs it, to broken/, to be made again."),
    ] = False,
    as_json: AsJson = False,
    store: StoreOption = Path(".thresher"),
) -> None:
    """Hash every part and every adapter again, and name what is not what was put there."""
    from storage import verify as checking

    place = open_store(store)
    with bar("verify") as progress:
        found = checking.verify(place, progress)
    if as_json:
        said = [{"file": b.file, "why": b.why, "datasets": b.datasets} for b in found.broken]
        typer.echo(json.dumps({"datasets": found.datasets, "files": found.files, "broken": said}, indent=1))
    else:
        names = {dataset: name for name, dataset in place.names().items()}
        for b in found.broken:
            needed = f"; needed by {', '.join(names.get(d, d) for d in b.datasets)}" if b.datasets else ""
            typer.echo(f"BROKEN {b.file}: {b.why}{needed}")
        typer.echo(f"{found.datasets} datasets, {found.files:,} files, {size(found.bytes)}: {len(found.broken)} broken")
    if not found.broken:
        return
    if set_aside:
        say(f"moved to {checking.set_aside(place, found)}; the commands that made them make them again")
    else:
        say("`thresher verify --set-aside` moves them away, and the commands that made them make them again")
    raise typer.Exit(FAILED)


@keeping.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="Store to copy: a folder, or s3://bucket/path.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="Where to: a folder, or s3://bucket/path.")],
    name: Annotated[list[str], typer.Option(help="Only what this name reaches; can be given again.")] = [],  # noqa: B006
    move_names: Annotated[
        bool, typer.Option("--move-names", help="Also move names that somebody else moved on over there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a store to another folder, to S3 or any other place that fsspec knows, or back; only what is new is copied.

    Both may be worked on: datasets and models' answers are put together, and a name moves unless it points, over there,
    at something that FROM knows nothing of.
    """
    from storage.copy import copy_store

    with bar("copy") as progress:
        found = copy_store(source, target, name, move_names, progress)
    if as_json:
        said = {"datasets": found.datasets, "new": found.new, "files": found.files, "bytes": found.bytes}
        typer.echo(json.dumps(said | {"differ": found.differ, "kept": dict(found.kept)}, indent=1))
    new = f"{found.new} of {found.datasets} datasets are new"
    say(f"{shown(target)}: {new}; {found.files:,} files, {size(found.bytes)}")
    for dataset in found.differ:
        say(f"{dataset} stays behind: what it is made of was made there too, and came out otherwise")
    for kept, dataset in found.kept.items():
        say(f"{kept} stays at {dataset}, where somebody moved it; --move-names moves it back")
    if found.differ or found.kept:
        raise typer.Exit(FAILED)


def size(count: float) -> str:
    """Bytes as people read them: 3.2 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def age(seconds: float) -> str:
    """A time span as people say it: 5 min, 3 h, 2 days."""
    for unit, many in (("s", 60), ("min", 60), ("h", 48), ("days", 10**9)):
        if seconds < many:
            return f"{max(seconds, 0):.0f} {unit}"
        seconds /= 24 if unit == "h" else 60
    return "?"
