"""`thresher noise-bench`: how well a score tells spoilt rows from clean ones."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from curation.noise import KINDS, Noise
from curation.step import ROLES, Step, StepConfig, find_step
from flows.command import AsJson, StoreOption, open_store
from flows.config import ConfigError, apply_changes, settings
from flows.cost import cost
from flows.models import lend, typed_models
from flows.one_step import asked, made_by
from flows.progress import bar, say
from flows.step_commands import add_options, options, role_options

noising = typer.Typer()


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
        mine = {t: d for t, d in tables.items() if t in one.tables}
        with bar(one.name) as progress:
            made = made_by(place, one, its, rows, mine, typed_models(place, one.roles, typed), progress)
        if told := cost(place, made):
            say(f"{one.name}: {told}")
        return made

    lend(measured, config, asked(place, measured, config, typed), place)  # what is missing is told before any work
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


_options = [*options(Noise, leave_out=("kinds",)), *role_options(ROLES)]
noising.command("noise-bench")(add_options(noise_bench, _options))
