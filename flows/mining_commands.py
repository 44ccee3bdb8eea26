"""`thresher fit-rule`, `thresher choose-size` and `thresher rules`: a rule, a size, what rules there are."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.command import FAILED, AsJson, StoreOption, open_store
from flows.config import load
from flows.fit_config import load_fit
from flows.gpus import accelerators
from flows.models import check_models
from flows.rules import rules, told_if_old

mining = typer.Typer()
_SET = Annotated[list[str], typer.Option("--set", help="key=value, with dots: subsets=40")]
_WORKERS = Annotated[int | None, typer.Option(min=1, help="Trainings side by side; one per accelerator if not given.")]


@mining.command("fit-rule")
def fit_rule(
    config: Annotated[Path, typer.Argument(help="YAML file, such as examples/snips/fit.yaml.")],
    set_: _SET = [],  # noqa: B006
    workers: _WORKERS = None,
    as_json: AsJson = False,
    store: StoreOption = Path(".thresher"),
) -> None:
    """Fit a rule of InstructMining's kind: many small trainings, the validation loss of each, and a regression.

    The rule is tried on subsets that it has not seen, and installed under the config's name if Spearman's correlation
    of predicted and true losses is 0.3 or more; else the exit code is 1, and a rule that had the name before loses it.
    Then `with: {rule: NAME}` names it. What was trained is not trained again: ask for more subsets, and only these are
    computed.
    """
    wanted, place = load_fit(config, set_), open_store(store)
    with told_if_old(place, wanted.name):
        check_models(wanted.loop(), place)
        from flows.server import recorded

        with recorded(place.root):
            from flows.instructmining_fit import fit_rule as flow
            from flows.rule_page import fit_text

            said = flow(wanted, config.resolve().parent, place.root, workers or _many())
            typer.echo(json.dumps(said, indent=1) if as_json else fit_text(said))
    if not said["installed"]:
        raise typer.Exit(FAILED)


@mining.command("choose-size")
def choose_size(
    config: Annotated[Path, typer.Argument(help="YAML file of a run, such as examples/snips/loop.yaml.")],
    least: Annotated[int, typer.Option(min=1, help="The smallest size.")] = 50,
    most: Annotated[int | None, typer.Option(min=1, help="The largest size; all rows if not given.")] = None,
    points: Annotated[int, typer.Option(min=2, max=50, help="Sizes, with even steps in their logarithm.")] = 6,
    set_: _SET = [],  # noqa: B006
    workers: _WORKERS = None,
    as_json: AsJson = False,
    store: StoreOption = Path(".thresher"),
) -> None:
    """Train on several sizes of a run's first choice, with each of its seeds, and compare their validation losses.

    The run's `choose` step is asked for each size; three seeds or more make the intervals mean something. The held-out
    rows are not read. The curve need not have a single minimum; no size between those tried is judged.
    """
    wanted, place = load(config, set_), open_store(store)
    check_models(wanted, place)
    from flows.server import recorded

    with recorded(place.root):
        from flows.rule_page import size_text
        from flows.size_search import search_size

        said = search_size(wanted, config.resolve().parent, place.root, least, most, points, workers or _many())
        typer.echo(json.dumps(said, indent=1) if as_json else size_text(said))
    if said["failed"]:
        raise typer.Exit(FAILED)


@mining.command("rules")
def list_rules(as_json: AsJson = False, store: StoreOption = Path(".thresher")) -> None:
    """The rules that `instructmining-predict --rule` can name: the published ones, and those fitted in this store."""
    found = rules(open_store(store))
    if as_json:
        return typer.echo(json.dumps({n: r.model_dump(exclude_none=True) for n, r in found.items()}, indent=1))
    for name, rule in found.items():
        terms = " ".join(f"{t.coefficient:+.4g} {indicator}" for indicator, t in rule.terms.items())
        r2 = f", R² {rule.r2:.3f}" if rule.r2 is not None else ""
        typer.echo(f"{name} ({rule.version}{r2})\n  log loss = {rule.intercept:.4g} {terms}\n  {rule.source}")


def _many() -> int:
    return max(1, len(accelerators()))
