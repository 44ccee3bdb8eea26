"""`thresher evaluate`: a model's answers to a dataset, counted, with intervals, and by source or cluster."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer

from curation.evaluate import Evaluate
from curation.step import find_step
from flows.command import AsJson, StoreOption, open_store
from flows.config import ConfigError, settings
from flows.engines import leases
from flows.models import typed_models
from flows.progress import bar
from flows.run import run_step
from flows.statistics import estimate
from flows.step_commands import add_options, engine_options, options
from storage.schema import response
from storage.store import Store, StoreError

evaluation = typer.Typer()
MOST_CHOICES = 50
# column: how it is called, the least and the most that it can be
MEASURES = {
    "student_correct": ("accuracy", 0.0, 1.0),
    "student_score": ("score", 0.0, 1.0),
    "student_judged": ("judged right", 0.0, 1.0),
    "student_nll": ("loss", 0.0, np.inf),
    "student_gain": ("gain", -np.inf, np.inf),
    "student_el2n": ("el2n", 0.0, 1.0),
}


def evaluate(
    dataset: Annotated[str, typer.Argument(help="Dataset with the right answers, such as a held-out set.")],
    adapter: Annotated[
        str | None, typer.Option(help="Adapter: a dataset or a folder; none is the untuned model.")
    ] = None,
    model: Annotated[str, typer.Option(help="Base model: nano, a folder or a hub name.")] = "nano",
    judge: Annotated[str | None, typer.Option(help="Model that also judges the answers, such as nano.")] = None,
    judge_adapter: Annotated[str | None, typer.Option(help="Adapter of the judge.")] = None,
    by: Annotated[list[str], typer.Option(help="Column to count by too, such as diversity_cluster.")] = ["source"],  # noqa: B006
    as_json: AsJson = False,
    store: StoreOption = Path(".thresher"),
    **typed: Any,
) -> None:
    """Answer a dataset's prompts and count the right answers, with 95 % intervals, also by source or by cluster.

    With an adapter the loss before and after is measured in the same pass; base and adapter share one loaded model.
    """
    place, engine = open_store(store), {k: typed.pop(k) for k in ("engine", "engine_set")}
    rows = place.resolve(dataset)
    config = settings("evaluate", _with_choices(place, rows, typed))
    made = measured(place, rows, config, model, adapter, judge, judge_adapter, engine)
    live = place.read(made).filter(pl.col("drop_reason").is_null())
    if live.is_empty():
        raise StoreError(f"{dataset} has no live row to evaluate on")
    if missing := [c for c in by if c not in live.columns]:
        raise ConfigError(f"--by {missing[0]}: {dataset} has no such column; there are {', '.join(live.columns)}")
    found = {"dataset": made, **told(live), "by": {column: by_group(live, column) for column in by}}
    typer.echo(json.dumps(found) if as_json else text(found, config.metric))


def measured(
    place: Store,
    rows: str,
    config: Evaluate,
    model: str,
    adapter: str | None,
    judge: str | None,
    judge_adapter: str | None,
    engine: dict[str, Any] | None = None,
) -> str:
    """Run the steps that measure; returns the id of the rows with all their columns."""
    typed = (engine or {}) | {
        "base": model,
        "student": model,
        "student_adapter": adapter,
        "judge": judge,
        "judge_adapter": judge_adapter,
    }

    def run(step: str, its: Any, on: str, tables: dict[str, str]) -> str:
        found = find_step(step)
        with bar(step) as progress:
            lease = leases(typed_models(place, found.roles, typed), place, progress)
            return run_step(place, found, its, on, tables, lease, progress)

    before = {}
    if adapter and config.likelihood:
        before = {"before": run("perplexity", settings("perplexity", {}), rows, {})}
    made = run("evaluate", config, rows, before)
    return run("judge-answers", settings("judge-answers", {}), made, {}) if judge else made


def told(live: pl.DataFrame) -> dict[str, Any]:
    """Mean and 95 % interval of each measure that there is; an answer that the model failed to give is a wrong one.

    A row with an answer and no score has a response that the metric cannot compare, such as one without a number; it
    says nothing of the model, and is counted apart.
    """
    out: dict[str, Any] = {"rows": live.height}
    scored = live.filter(pl.col("student_answer").is_null() | pl.col("student_score").is_not_null())
    if unscorable := live.height - scored.height:
        out["unscorable"] = unscorable
    for column, (name, least, most) in MEASURES.items():
        if column not in live.columns:
            continue
        of_answers = column in ("student_correct", "student_score")
        values = scored[column].cast(pl.Float64).fill_null(0.0) if of_answers else live[column].drop_nulls()
        if values.is_empty():
            continue
        values = values.cast(pl.Float64)
        e = estimate(values.to_numpy()[None, :], least, most)
        out[name] = {"mean": e.mean, "low": e.low, "high": e.high, "rows": len(values)}
    return out


def by_group(live: pl.DataFrame, column: str) -> list[dict[str, Any]]:
    """The measures of each group of rows, the largest group first."""
    groups = live.partition_by(column, as_dict=True)
    return [
        {column: key[0], **told(group)}
        for key, group in sorted(groups.items(), key=lambda kv: (-kv[1].height, str(kv[0])))
    ]


def text(found: dict[str, Any], metric: str) -> str:
    lines = []
    if a := found.get("accuracy"):
        lines.append(f"{a['mean']:.1%} ({a['low']:.1%} to {a['high']:.1%}) of {a['rows']:,} rows right by {metric}")
    if "unscorable" in found:
        lines.append(f"{found['unscorable']:,} rows left out: nothing in their response can be compared by {metric}")
    if metric == "rouge-l" and "score" in found:
        lines.append(f"ROUGE-L {_number(found['score'])}")
    if "judged right" in found:
        lines.append(f"judged right {_number(found['judged right'])}")
    if "loss" in found:
        lines.append(f"loss {_number(found['loss'])} nats per token of the response")
    if "gain" in found:
        lines.append(f"gain {_number(found['gain'])} over the base model's loss")
    names = [n for n in ("accuracy", "judged right", "loss", "gain") if n in found]
    for column, groups in found["by"].items():
        if len(groups) < 2:
            continue
        lines += ["", "  ".join([f"{column:<24}", f"{'rows':>7}", *[f"{n:>12}" for n in names]])]
        for group in groups:
            cells = [f"{group[n]['mean']:>12.3f}" if n in group else " " * 12 for n in names]
            lines.append("  ".join([f"{str(group[column])[:24]:<24}", f"{group['rows']:>7,}", *cells]))
    return "\n".join(lines)


def _number(said: dict[str, float]) -> str:
    return f"{said['mean']:.3f} ({said['low']:.3f} to {said['high']:.3f})"


def _with_choices(place: Store, rows: str, typed: dict[str, Any]) -> dict[str, Any]:
    """With the metric choice and no choices named, those are the dataset's own responses, if they are few."""
    if typed["metric"] != "choice" or typed["choices"]:
        return typed
    live = place.read(rows, ["messages", "drop_reason"]).filter(pl.col("drop_reason").is_null())
    found = sorted({response(m) for m in live["messages"].to_list()})
    if len(found) > MOST_CHOICES:
        raise ConfigError(
            f"the dataset has {len(found):,} different responses, too many to choose from; name those that are meant "
            "with --choices, once for each"
        )
    return typed | {"choices": found}


evaluation.command()(add_options(evaluate, [*options(Evaluate), *engine_options()]))
