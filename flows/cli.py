"""`thresher`: import, run one step, run the loop, look at what came of it."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from curation.step import StepError
from flows import spending, steps  # noqa: F401  registers every step
from flows.adapter_commands import adapters
from flows.browse import browse
from flows.command import FAILED, INTERRUPTED, REJECTED, USAGE, AsJson, RayOption, StoreOption, open_store
from flows.compare_config import ablation, load_comparison
from flows.config import ConfigError, load
from flows.engines import EngineError, release
from flows.evaluate_command import evaluation
from flows.gpus import accelerators
from flows.growing_commands import growing
from flows.in_out import in_out
from flows.mining_commands import mining
from flows.models import check_models
from flows.noise_command import noising
from flows.own_steps import load_steps, named_files, own_files
from flows.progress import console, say
from flows.schedule import scheduling
from flows.step_commands import step_app
from flows.store_commands import keeping
from flows.train_commands import training
from storage.addresses import without_secrets
from storage.store import StoreError
from training.settings import TrainError

HELP = """Decide which data to fine-tune an open language model on, and measure what the decision was worth.

Begin with: thresher run examples/snips/loop.yaml

With --steps my_steps.py every command knows the steps of your own in that file (docs/own-steps.md).

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 done, but rows were rejected on import;
130 stopped by Ctrl-C, the same command goes on.
"""

app = typer.Typer(no_args_is_help=True, help=HELP, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML file, such as examples/snips/loop.yaml.")],
    set_: Annotated[list[str], typer.Option("--set", help="key=value, with dots: budget.rounds=2")] = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would take, and do nothing.")] = False,
    report: Annotated[Path | None, typer.Option(help="Also write the report to this file.")] = None,
    ray: RayOption = None,
    as_json: AsJson = False,
    store: StoreOption = Path(".thresher"),
) -> None:
    """Run the loop: import, score, choose, train, evaluate, feed back, round again; then report what it was worth."""
    wanted = load(config, [*set_, *_ray(ray)])
    if dry_run:
        from flows.estimate import estimate

        return typer.echo(estimate(wanted, config.resolve().parent))
    from flows.server import recorded

    place = open_store(store)
    root = place.root
    check_models(wanted, place)
    with recorded(root):
        from flows.loop import improve

        found = improve(wanted, config.resolve().parent, root)
        say(f"report: {found.path}{f' and {found.url}' if found.url else ''}; datasets: `thresher ui`")
    if report:
        report.write_text(found.markdown, encoding="utf-8")
    spent = spending.of_run(place, wanted.name)
    typer.echo(json.dumps(found.as_json | {"spent": spent}, indent=1) if as_json else found.text)
    say(f"models: {spending.in_words(spent['total']) or 'nothing was asked of them'}")
    rejected = {n: place.manifest(place.resolve(n)).counts["rejected"] for n in (wanted.name, f"{wanted.name}-heldout")}
    for name in (n for n, count in rejected.items() if count):
        say(f"{rejected[name]} rows of {name} were rejected on import: `thresher show {name} --rejects`")
    if any(rejected.values()):
        raise typer.Exit(REJECTED)


@app.command()
def compare(
    config: Annotated[Path, typer.Argument(help="YAML file, such as examples/snips/compare.yaml; or results (.json).")],
    set_: Annotated[list[str], typer.Option("--set", help="key=value, with dots: seeds=[0,1,2]")] = [],  # noqa: B006
    ablate: Annotated[bool, typer.Option("--ablate", help="CONFIG is a run's: leave out each of its stages.")] = False,
    write: Annotated[list[Path], typer.Option(help="Also write the page to this .md, .html or .json file.")] = [],  # noqa: B006
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells trained and tested side by side; one per accelerator if not given.")
    ] = None,
    ray: RayOption = None,
    as_json: AsJson = False,
    store: StoreOption = Path(".thresher"),
) -> None:
    """Compare ways to choose rows: same budget, model, steps and held-out rows; with intervals and what each one cost.

    Given the results of an earlier comparison (.json), makes its page again and computes nothing.
    """
    from flows import page

    for path in write:
        page.check_path(path)
    if config.suffix == ".json":
        if set_ or ablate or ray:
            raise ConfigError(
                "--set, --ray and --ablate change a comparison before it is made; these are results of one"
            )
        results = page.read_results(config)
    else:
        changes = [*set_, *_ray(ray)]
        wanted = ablation(config, changes) if ablate else load_comparison(config, changes)
        place = open_store(store)
        for arm in ("random", *wanted.arms):
            check_models(wanted.loop(arm, 1), place)
        from flows.server import recorded

        with recorded(place.root):
            from flows.compare import compare as compare_flow

            many = workers or max(1, len(accelerators()))
            results = compare_flow(wanted, config.resolve().parent, place.root, many)
    said = page.answer(results)
    for path in write:
        page.write(path, results)
    typer.echo(json.dumps(said, indent=1) if as_json else page.terminal(results, said))
    if any(cell["failed"] for cell in results["cells"]):
        raise typer.Exit(FAILED)
    if config.suffix != ".json" and results["pool"]["rejected"]:
        say(f"{results['pool']['rejected']} rows were rejected on import: `thresher show {wanted.name} --rejects`")
        raise typer.Exit(REJECTED)


def _ray(address: str | None) -> list[str]:
    return [f"ray={json.dumps(address)}"] if address else []


@app.command("check-steps")
def check_steps(
    files: Annotated[list[Path], typer.Argument(help="Files with steps of your own, such as my_steps.py.")],
) -> None:
    """Try each step of a file on rows of every awkward sort, and say which promise of its kind it breaks."""
    from flows.contract import broken_promises

    found = {step.name: (step, broken_promises(step)) for step in load_steps(files)}
    for name, (step, wrong) in found.items():
        typer.echo(f"{'BROKEN' if wrong else 'ok    '} {name} ({step.kind}): {step.help.partition(chr(10))[0]}")
        for what in wrong:
            typer.echo(f"       {what}")
    if any(wrong for _, wrong in found.values()):
        raise typer.Exit(FAILED)


def main() -> None:
    """Entry point: turns what a person can mend into one line and an exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    debug = bool(os.environ.get("THRESHER_DEBUG"))
    try:
        load_steps([*own_files(), *named_files(sys.argv)])  # before any command is made of them
        app.add_typer(step_app(), name="step")
        app()
    except (ConfigError, StepError) as wrong:
        _fail(str(wrong), USAGE, debug)
    except (StoreError, EngineError, TrainError) as wrong:
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
    finally:
        _leave()


def _leave() -> None:
    """Free the models while all can still be said; what was made stays made."""
    try:
        release()
    except EngineError as why:
        say(f"[yellow]note:[/yellow] {escape(str(why))}")


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        raise
    console.print(f"[red]thresher:[/red] {escape(without_secrets(message))}", soft_wrap=True)
    sys.exit(code)


app.add_typer(in_out)
app.add_typer(training)
app.add_typer(evaluation)
app.add_typer(adapters)
app.add_typer(browse)
app.add_typer(keeping)
app.add_typer(mining)
app.add_typer(noising)
app.add_typer(growing)
app.add_typer(scheduling)

if __name__ == "__main__":
    main()
