"""The commands that look: rows, a row's history, the UI, the machine."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from rich.markup import escape
from rich.table import Table

from flows.command import FAILED, AsJson, StoreOption, open_store
from flows.explain import History, history
from flows.progress import say
from storage.schema import instruction, response

browse = typer.Typer()


@browse.command()
def show(
    dataset: Annotated[str, typer.Argument(help="Name or id of the dataset.")],
    limit: Annotated[int, typer.Option(help="How many rows.", min=1)] = 20,
    dropped: Annotated[bool, typer.Option("--dropped", help="Only rows that were dropped.")] = False,
    rejects: Annotated[bool, typer.Option("--rejects", help="What could not become a row on import.")] = False,
    rows_seen: Annotated[
        bool, typer.Option("--rows", help="Of an adapter: what the training saw of each row.")
    ] = False,
    as_json: AsJson = False,
    store: StoreOption = Path(".thresher"),
) -> None:
    """Show the rows of a dataset."""
    place = open_store(store)
    made = place.manifest(place.resolve(dataset))
    side = "rejects" if rejects else "rows" if rows_seen else None
    rows = place.read_side(made.id, side) if side else place.read(made.id)
    if dropped and "drop_reason" in rows.columns:
        rows = rows.filter(pl.col("drop_reason").is_not_null())
    rows = rows.drop("embedding", strict=False).head(limit)
    if as_json:
        return [typer.echo(json.dumps(row, ensure_ascii=False, default=str)) for row in rows.to_dicts()] and None
    if "messages" in rows.columns:
        asked = [instruction(m) for m in rows["messages"].to_list()]
        answers = [response(m) for m in rows["messages"].to_list()]
        rows = rows.select(
            "id", pl.Series("prompt", asked), pl.Series("response", answers), pl.exclude("id", "messages", "source")
        )
        rows = rows.select([c for c in rows.columns if rows[c].null_count() < rows.height or c == "drop_reason"])
    table = Table(*rows.columns, box=None, show_lines=False)
    for row in rows.rows():
        table.add_row(*[escape(cell(value)) for value in row])
    out(table)


@browse.command()
def review(
    dataset: Annotated[str, typer.Argument(help="Name or id of a dataset of rows.")],
    step: Annotated[str | None, typer.Option(help="Only what this step dropped or replaced.")] = None,
    rows: Annotated[int, typer.Option(help="How many rows are shown of each reason.", min=0)] = 3,
    write: Annotated[Path | None, typer.Option(help="Also write all of them to this .csv file, to go through.")] = None,
    as_json: AsJson = False,
    store: StoreOption = Path(".thresher"),
) -> None:
    """Why rows were dropped: each reason with how many rows it took, and some of them, to see whether it is right."""
    from flows.review import reasons, reviewed

    place = open_store(store)
    found = reviewed(place, place.resolve(dataset), step)
    if write:
        write.write_text(found.write_csv(), encoding="utf-8")
        say(f"{found.height:,} rows written to {write}")
    told = reasons(found)
    if as_json:
        return typer.echo(json.dumps([{**r, "rows": r["rows"][:rows]} for r in told], ensure_ascii=False, indent=1))
    for reason in told:
        typer.echo(f"{reason['count']:,} rows ({reason['share']:.1%} of those dropped): {reason['why']}")
        table = Table("id", "why", "prompt", "response", "now", box=None)
        for row in reason["rows"][:rows]:
            table.add_row(*[escape(cell(row[c], 70)) for c in ("id", "why", "prompt", "response", "now")])
        out(table)
    if not told:
        typer.echo("nothing was dropped")


@browse.command()
def explain(
    row: Annotated[str, typer.Argument(help="Id of a row, or its beginning.")],
    as_json: AsJson = False,
    store: StoreOption = Path(".thresher"),
) -> None:
    """The whole history of a row: file and line, every score, why it was kept or dropped, what was trained on it."""
    found = history(open_store(store), row)
    if as_json:
        said = {"row": found.row, "origin": found.origin, "children": list(found.children)}
        said["events"] = [{"dataset": e.dataset, "step": e.step, "name": e.name, **e.facts} for e in found.events]
        return typer.echo(json.dumps(said, ensure_ascii=False, indent=1, default=str))
    _tell(found)


@browse.command()
def ui(
    port: Annotated[int, typer.Option(help="Port of the server.")] = 4200,
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback takes --auth.")] = "127.0.0.1",
    auth: Annotated[
        bool, typer.Option("--auth", help="Ask for the user and password in THRESHER_AUTH, as user:password.")
    ] = False,
    store: StoreOption = Path(".thresher"),
) -> None:
    """Serve the Prefect UI until Ctrl-C: a card for every dataset, a form for every step; and run what is scheduled.

    Only this machine can reach it, unless --host says otherwise.
    """
    from flows.ui import serve_ui

    serve_ui(open_store(store), port, host, auth)


@browse.command()
def doctor(
    server: Annotated[str | None, typer.Option(help="Also ask this OpenAI-compatible server: http://host/v1")] = None,
    key: Annotated[str, typer.Option(help="Environment variable that holds the server's key.")] = "OPENAI_API_KEY",
    as_json: AsJson = False,
    store: StoreOption = Path(".thresher"),
) -> None:
    """Say what this machine has, which engines work on it, and what is missing and why."""
    from flows.doctor import examine

    checks = examine(store, server, key)
    if as_json:
        typer.echo(json.dumps([{"what": c.what, "ok": c.ok, "found": c.found} for c in checks], indent=1))
    else:
        signs = {True: "ok     ", None: "-      ", False: "MISSING"}
        for check in checks:
            typer.echo(f"{signs[check.ok]} {check.what}: {check.found}")
    if any(c.ok is False for c in checks):
        raise typer.Exit(FAILED)


def cell(value: Any, longest: int = 160) -> str:
    """A value as a table shows it, cut where it is long."""
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def out(table: Table) -> None:
    """Print a table, as wide as the terminal; 200 characters where there is none."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _tell(found: History) -> None:
    row = found.row
    typer.echo(f"row {row['id']}")
    if found.origin:
        note = f" ({found.origin['note']})" if found.origin.get("note") else ""
        typer.echo(f"  from {found.origin['file']}, line {found.origin['line']}{note}")
    elif row.get("parent_id"):
        typer.echo(f"  written by {row['method']} in round {row['round']} from row {row['parent_id']}")
    typer.echo(f"  prompt: {cell(' '.join(instruction(row['messages']).split()), 400)}")
    typer.echo(f"  response: {cell(response(row['messages']))}")
    for event in found.events:
        facts = ", ".join(f"{k} {cell(v)}" for k, v in event.facts.items()) or {
            "import": "imported",
            "taken": "stood in the training set",
            "train": "an adapter was trained on it",
        }.get(event.step, "")
        if event.step == "train" and event.facts:
            facts = f"an adapter was trained on it: {facts}"
        typer.echo(f"  {event.name or event.dataset}: {facts}")
    for child in found.children:
        typer.echo(f"  grew: {child}")
