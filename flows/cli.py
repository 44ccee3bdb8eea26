"""`thresher`: import, run one step, run the loop, look at what came of it."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from rich.markup import escape
from rich.table import Table

from curation.step import Step, StepError
from flows import steps  # noqa: F401  registers every step
from flows.assemble import taken
from flows.config import ConfigError, load, settings, train_settings
from flows.engines import EngineError, EngineSpec, leases
from flows.explain import History, history
from flows.models import EMBEDDER, check_models, instruct_adapter
from flows.progress import bar, console, say
from flows.run import run_step
from flows.step_commands import StoreOption, options, step_app
from storage.schema import instruction, response
from storage.store import Store, StoreError

DONE, FAILED, USAGE, REJECTED, INTERRUPTED = 0, 1, 2, 3, 130
HELP = """Decide which data to fine-tune an open language model on, and measure what the decision was worth.

Begin with: thresher run examples/snips/loop.yaml

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 done, but rows were rejected on import;
130 stopped by Ctrl-C, the same command goes on.
"""

app = typer.Typer(no_args_is_help=True, help=HELP, rich_markup_mode=None, pretty_exceptions_enable=False)
Where = StoreOption
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(help="Files of rows: JSON lines, a JSON array or Parquet.")],
    name: Annotated[str, typer.Option(help="Name for the dataset.")],
    format: Annotated[str, typer.Option(help="auto, alpaca, sharegpt, messages or prompt-completion.")] = "auto",
    store: Where = Path(".thresher"),
) -> None:
    """Bring raw data into the store. What cannot become a row is kept among the rejects, with file, line and reason."""
    from storage.importing import import_files

    with bar(f"import {name}") as progress:
        found = import_files(_open(store), files, name, format, progress=progress)
    took = ", ".join(f"{file} as {kind}" for file, kind in found.formats.items())
    say(f"{name}: {found.rows:,} rows, {found.rejected:,} rejected; took {took} ({found.dataset})")
    if found.rejected:
        say(f"`thresher show {name} --rejects` lists them")
        raise typer.Exit(REJECTED)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML file, such as examples/snips/loop.yaml.")],
    set_: Annotated[list[str], typer.Option("--set", help="key=value, with dots: budget.rounds=2")] = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would take, and do nothing.")] = False,
    report: Annotated[Path | None, typer.Option(help="Also write the report to this file.")] = None,
    as_json: AsJson = False,
    store: Where = Path(".thresher"),
) -> None:
    """Run the loop: import, score, choose, train, evaluate, feed back, round again; then report what it was worth."""
    wanted = load(config, set_)
    if dry_run:
        from flows.estimate import estimate

        return typer.echo(estimate(wanted, config.resolve().parent))
    from flows.server import serving

    place = _open(store)
    root = place.root
    check_models(wanted, place)
    with serving(root):
        from flows.loop import improve

        found = improve(wanted, config.resolve().parent, root)
        say(f"report: {found.path} and {found.url}; datasets: `thresher ui`")
    if report:
        report.write_text(found.markdown, encoding="utf-8")
    typer.echo(json.dumps(found.as_json, indent=1) if as_json else found.text)
    rejected = {n: place.manifest(place.resolve(n)).counts["rejected"] for n in (wanted.name, f"{wanted.name}-heldout")}
    for name in (n for n, count in rejected.items() if count):
        say(f"{rejected[name]} rows of {name} were rejected on import: `thresher show {name} --rejects`")
    if any(rejected.values()):
        raise typer.Exit(REJECTED)


def run_single_step(step: Step, dataset: str, store: Path, name: str | None, **typed: Any) -> None:
    """What every `thresher step` command does: resolve names, run, name what was made."""
    place = _open(store)
    rows = place.resolve(dataset)
    tables = {t: place.resolve(typed[t]) for t in step.tables if typed.get(t)}
    models = {role: _model(place, role, typed.get(role), typed.get(f"{role}_adapter")) for role in step.roles}
    config = settings(step.name, {k: typed[k] for k in step.config.model_fields})
    with bar(step.name) as progress:
        made = run_step(place, step, config, rows, tables, leases(models, place, progress), progress)
    name = name or f"{dataset}.{step.name}"
    place.name(name, made)
    say(f"{name}: {_counts(place, made)} ({made})")


app.add_typer(step_app(run_single_step), name="step")


def train(
    dataset: str, store: Path = Path(".thresher"), model: str = "nano", name: str | None = None, **typed: Any
) -> None:
    from flows.training import train_adapter

    place = _open(store)
    rows = place.resolve(dataset)
    if (chosen := place.manifest(rows)).kind == "choice":
        rows = taken(place, chosen.inputs["rows"], rows)
    with bar("train") as progress:
        made = train_adapter(place, rows, EngineSpec(model=model), train_settings(typed), progress)
    name = name or f"{dataset}.adapter"
    place.name(name, made)
    say(f"{name}: {place.files(made)}")


@app.command()
def evaluate(
    dataset: Annotated[str, typer.Argument(help="Dataset with the right answers, such as a held-out set.")],
    adapter: Annotated[
        str | None, typer.Option(help="Adapter: a dataset or a folder; none is the untuned model.")
    ] = None,
    model: Annotated[str, typer.Option(help="Base model: nano, a folder or a hub name.")] = "nano",
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 16,
    as_json: AsJson = False,
    store: Where = Path(".thresher"),
) -> None:
    """Answer a dataset's prompts and count the right answers, with a 95 % interval."""
    from curation.step import find_step
    from flows.report import interval

    place, step = _open(store), find_step("evaluate")
    models = {"student": _model(place, "student", model, adapter)}
    with bar("evaluate") as progress:
        config = settings("evaluate", {"max_tokens": max_tokens})
        lease = leases(models, place, progress)
        made = run_step(place, step, config, place.resolve(dataset), {}, lease, progress)
    live = place.read(made, ["student_correct", "drop_reason"]).filter(pl.col("drop_reason").is_null())
    if live.is_empty():
        raise StoreError(f"{dataset} has no live row to evaluate on")
    correct = live["student_correct"].fill_null(False).cast(pl.Float64).to_numpy()
    low, high = interval(correct)
    found = {"dataset": made, "rows": len(correct), "accuracy": float(correct.mean()), "low": low, "high": high}
    typer.echo(
        json.dumps(found) if as_json else f"{correct.mean():.1%} ({low:.1%} to {high:.1%}) of {len(correct):,} rows"
    )


@app.command()
def datasets(as_json: AsJson = False, store: Where = Path(".thresher")) -> None:
    """List what is in the store, oldest first."""
    place = _open(store)
    names: dict[str, list[str]] = {}
    for name, dataset in place.names().items():
        names.setdefault(dataset, []).append(name)
    listed = [(made, names.get(made.id, [])) for made in map(place.manifest, place.ids())]
    if as_json:
        said = [{"id": m.id, "kind": m.kind, "names": n, "counts": m.counts, "inputs": m.inputs} for m, n in listed]
        return typer.echo(json.dumps(said, indent=1))
    table = Table("name", "id", "kind", "counts", box=None)
    for made, called in listed:
        table.add_row(", ".join(called), made.id, made.kind, _counts(place, made.id))
    _out(table)


@app.command()
def show(
    dataset: Annotated[str, typer.Argument(help="Name or id of the dataset.")],
    limit: Annotated[int, typer.Option(help="How many rows.", min=1)] = 20,
    dropped: Annotated[bool, typer.Option("--dropped", help="Only rows that were dropped.")] = False,
    rejects: Annotated[bool, typer.Option("--rejects", help="What could not become a row on import.")] = False,
    as_json: AsJson = False,
    store: Where = Path(".thresher"),
) -> None:
    """Show the rows of a dataset."""
    place = _open(store)
    made = place.manifest(place.resolve(dataset))
    rows = place.read_side(made.id, "rejects") if rejects else place.read(made.id)
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
        table.add_row(*[escape(_cell(value)) for value in row])
    _out(table)


@app.command()
def explain(
    row: Annotated[str, typer.Argument(help="Id of a row, or its beginning.")],
    as_json: AsJson = False,
    store: Where = Path(".thresher"),
) -> None:
    """The whole history of a row: file and line, every score, why it was kept or dropped, what was trained on it."""
    found = history(_open(store), row)
    if as_json:
        said = {"row": found.row, "origin": found.origin, "children": found.children}
        said["events"] = [{"dataset": e.dataset, "step": e.step, "name": e.name, **e.facts} for e in found.events]
        return typer.echo(json.dumps(said, ensure_ascii=False, indent=1, default=str))
    _tell(found)


@app.command()
def export(
    dataset: Annotated[str, typer.Argument(help="Name or id of the dataset.")],
    path: Annotated[Path, typer.Argument(help="File to write.")],
    format: Annotated[str, typer.Option(help="alpaca, sharegpt, messages, prompt-completion or parquet.")] = "messages",
    store: Where = Path(".thresher"),
) -> None:
    """Write the live rows of a dataset to a file for other tools."""
    from storage.exporting import export_rows

    place = _open(store)
    written = export_rows(place, place.resolve(dataset), path, format)
    say(f"{written:,} rows written to {path} as {format}")


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port of the server, on loopback.")] = 4200,
    store: Where = Path(".thresher"),
) -> None:
    """Serve the Prefect UI with a card for every dataset in the store, until Ctrl-C."""
    from flows.ui import serve_ui

    serve_ui(_open(store), port)


@app.command()
def doctor(as_json: AsJson = False, store: Where = Path(".thresher")) -> None:
    """Say what this machine has and what is missing, for a bug report or a first start."""
    from flows.doctor import examine

    checks = examine(store)
    if as_json:
        typer.echo(json.dumps([{"what": c.what, "ok": c.ok, "found": c.found} for c in checks], indent=1))
    else:
        for check in checks:
            typer.echo(f"{'ok     ' if check.ok else 'MISSING'} {check.what}: {check.found}")
    if not all(c.ok for c in checks):
        raise typer.Exit(FAILED)


def main() -> None:
    """Entry point: turns what a person can mend into one line and an exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    debug = bool(os.environ.get("THRESHER_DEBUG"))
    try:
        app()
    except (ConfigError, StepError) as wrong:
        _fail(str(wrong), USAGE, debug)
    except (StoreError, EngineError) as wrong:
        _fail(str(wrong), FAILED, debug)
    except OSError as wrong:
        where = f" ({wrong.filename})" if wrong.filename else ""
        _fail(
            f"{wrong.strerror or wrong}{where}; free the disk or mend the path, then run the same command",
            FAILED,
            debug,
        )
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            say("stopped; the same command goes on from here")
        raise


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        raise
    console.print(f"[red]thresher:[/red] {escape(message)}", soft_wrap=True)
    sys.exit(code)


def _open(root: Path) -> Store:
    store = Store(root.resolve())
    store.root.mkdir(parents=True, exist_ok=True)
    store.sweep()
    return store


def _model(store: Store, role: str, model: str | None, adapter: str | None) -> EngineSpec:
    """The model of a role as typed: judge, candidate and teacher take the `instruct` adapter beside the model."""
    if role == "embedder":
        return EngineSpec(kind="sentence-transformers", model=model or EMBEDDER)
    model = model or "nano"
    if adapter and not Path(adapter).is_dir():
        adapter = str(store.files(store.resolve(adapter)))
    if adapter is None and role in ("judge", "candidate", "teacher"):
        adapter = instruct_adapter(model)
    return EngineSpec(model=model, adapter=adapter)


def _counts(store: Store, dataset: str) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in store.manifest(dataset).counts.items())


def _cell(value: Any, longest: int = 160) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _out(table: Table) -> None:
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
    typer.echo(f"  prompt: {_cell(' '.join(instruction(row['messages']).split()), 400)}")
    typer.echo(f"  response: {_cell(response(row['messages']))}")
    for event in found.events:
        facts = ", ".join(f"{k} {_cell(v)}" for k, v in event.facts.items()) or {
            "import": "imported",
            "taken": "stood in the training set",
            "train": "an adapter was trained on it",
        }.get(event.step, "")
        typer.echo(f"  {event.name or event.dataset}: {facts}")
    for child in found.children:
        typer.echo(f"  grew: {child}")


def _add_train_command() -> None:
    """`train` takes the trainer's own settings as options, made from them like those of a step."""
    import inspect

    from training.settings import TrainConfig

    keyword = inspect.Parameter.KEYWORD_ONLY
    text = Annotated[str, typer.Option(help="Base model: nano, a folder or a hub name.")]
    name = Annotated[str | None, typer.Option(help="Name for the adapter; DATASET.adapter if not given.")]
    first = Annotated[str, typer.Argument(help="Dataset whose live rows are trained on.")]
    train.__signature__ = inspect.Signature(
        [
            inspect.Parameter("dataset", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=first),
            inspect.Parameter("model", keyword, annotation=text, default="nano"),
            *options(TrainConfig),
            inspect.Parameter("name", keyword, annotation=name, default=None),
            inspect.Parameter("store", keyword, annotation=StoreOption, default=Path(".thresher")),
        ]
    )
    app.command("train", help="Train a LoRA adapter on the live rows of a dataset.")(train)


_add_train_command()

if __name__ == "__main__":
    main()
