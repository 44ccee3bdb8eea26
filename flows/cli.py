"""`thresher`: import, run one step, run the loop, look at what came of it."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from curation.noise import KINDS, Noise
from curation.step import ROLES, Step, StepConfig, StepError, find_step
from flows import spending, steps  # noqa: F401  registers every step
from flows.adapter_commands import adapters
from flows.browse import browse
from flows.cluster import check_address
from flows.command import FAILED, INTERRUPTED, REJECTED, USAGE, AsJson, RayOption, StoreOption, open_store
from flows.compare_config import ablation, load_comparison
from flows.config import ConfigError, apply_changes, load, settings
from flows.cost import cost
from flows.engines import EngineError, release
from flows.evaluate_command import evaluation
from flows.gpus import accelerators
from flows.growing_commands import growing
from flows.in_out import in_out
from flows.mining_commands import mining
from flows.models import check_models, check_student, lend, typed_models
from flows.own_steps import load_steps, named_files, own_files
from flows.progress import bar, console, say
from flows.rules import of_another_model
from flows.run import run_step
from flows.schedule import scheduling
from flows.server import joined_if_running
from flows.step_commands import add_options, options, role_options, step_app
from flows.store_commands import keeping
from flows.train_commands import training
from flows.training_text import known
from storage.addresses import without_secrets
from storage.store import Store, StoreError
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
    check_address(wanted.ray)
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
        check_address(wanted.ray)
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


def run_single_step(
    step: Step, dataset: str, store: Path, name: str | None, as_json: bool = False, **typed: Any
) -> None:
    """What every `thresher step` command does: resolve names, run, name what was made.

    Where a server is running the step is a flow run of it; else Prefect, which takes seconds to load, is left out.
    """
    check_address(typed.get("ray"))
    place = open_store(store)
    rows = place.resolve(dataset)
    tables = {t: place.resolve(typed[t]) for t in step.tables if typed.get(t)}
    config = settings(step.name, {k: typed[k] for k in step.config.model_fields})
    name = name or f"{dataset}.{step.name}"
    with joined_if_running(place.root) as server:
        if server:
            from flows.step_flows import flow_of

            check_student(step, typed)
            others = {k: v for k, v in typed.items() if k not in step.config.model_fields}
            made = flow_of(step)(dataset=dataset, settings=config, name=name, root=place.root, **others)
        else:
            made = _run(place, step, config, rows, tables, typed)
            place.name(name, made)
    say(f"{name}: {place.manifest(made).summary} ({made}) {spending.in_words(place.run_facts(made))}".strip())
    if as_json:
        typer.echo(json.dumps(spending.of_dataset(place, made, name), indent=1))


def _run(
    store: Store, step: Step, config: StepConfig, rows: str, tables: Mapping[str, str], typed: Mapping[str, Any]
) -> str:
    check_student(step, typed)
    with bar(step.name) as progress:
        models = typed_models(store, step.roles, typed)
        config, lease = lend(step, config, models, store, progress, ray=typed.get("ray"))
        if "base" in models and (told := of_another_model(config, models["base"])):
            say(f"[yellow]{escape(told)}[/yellow]")
        made = run_step(store, step, config, rows, known(store, step, models, tables), lease, progress)
    if asked := cost(store, made):
        say(f"{step.name}: {asked}")
    return made


def noise_bench(
    dataset: Annotated[str, typer.Argument(help="Dataset of rows whose answers are right.")],
    step: Annotated[str, typer.Option(help="Score step that is measured.")],
    set_: Annotated[list[str], typer.Option("--set", help="Setting of the step, key=value: samples=5")] = [],  # noqa: B006
    kinds: Annotated[str, typer.Option(help=f"Kinds of noise, with commas between: {','.join(KINDS)}.")] = "all",
    table: Annotated[list[str], typer.Option(help="Table that the step takes, name=dataset.")] = [],  # noqa: B006
    as_json: AsJson = False,
    store: StoreOption = Path(".thresher"),
    **typed: Any,
) -> None:
    """Spoil a share of a clean dataset, score it with a step, and say how well the scores tell."""
    from flows import noise_bench as bench
    from flows import noise_page as page

    place, measured = open_store(store), find_step(step)
    bench.check_step(measured)
    noise = {k: typed[k] for k in Noise.model_fields if k in typed}
    noise = bench.noise_settings(noise | ({} if kinds == "all" else {"kinds": kinds.split(",")}))
    config = settings(step, apply_changes({}, set_))
    if stray := [t for t in table if t.partition("=")[0] not in measured.tables or "=" not in t]:
        raise ConfigError(f"--table takes name=dataset, not {stray[0]!r}; {step} has {list(measured.tables) or 'none'}")
    tables = {t: place.resolve(d) for t, _, d in (t.partition("=") for t in table)}

    def run(one: Step, its: StepConfig, rows: str) -> str:
        return _run(place, one, its, rows, {t: d for t, d in tables.items() if t in one.tables}, typed)

    lend(measured, config, typed_models(place, measured.roles, typed), place)  # what is missing is told before any work
    with bar("noise"):
        spoilt = bench.spoilt_dataset(place, place.resolve(dataset), noise)
    place.name(f"{dataset}.noise", spoilt)
    scored = bench.scored_dataset(place, spoilt, measured, config, run)
    said = bench.measured(place, spoilt, scored, measured, run)
    place.name(f"{dataset}.noise.{step}", scored)
    path = place.root / "reports" / f"noise-{dataset}-{step}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(page.markdown(f"Noise bench of {step} on {dataset}", said), encoding="utf-8")
    typer.echo(json.dumps(said, indent=1) if as_json else page.terminal(said))
    say(f"report: {path}; datasets: {dataset}.noise and {dataset}.noise.{step}")


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


_noise_options = [*options(Noise, leave_out=("kinds",)), *role_options(ROLES)]
app.command("noise-bench")(add_options(noise_bench, _noise_options))


def main() -> None:
    """Entry point: turns what a person can mend into one line and an exit code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    debug = bool(os.environ.get("THRESHER_DEBUG"))
    try:
        load_steps([*own_files(), *named_files(sys.argv)])  # before any command is made of them
        app.add_typer(step_app(run_single_step), name="step")
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
app.add_typer(growing)
app.add_typer(scheduling)

if __name__ == "__main__":
    main()
