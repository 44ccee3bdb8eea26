"""Fit a rule of InstructMining: train on many subsets, measure each on the validation rows, regress, and try the rule.

Subsets, trainings and measurements are datasets like any other: a fit that was cut short or asked for more subsets
computes what is not there yet. Adapters that other runs in the store trained on rows of this pool are observations too.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from prefect import flow

from curation.rule import Rule, column
from curation.rule_fit import Fit, Observations, fit
from curation.shingles import prompt_text, response_text
from curation.step import StepError
from flows import assemble, cards
from flows.cells import through
from flows.config import Use
from flows.engines import release, trained_on
from flows.fit_config import FitConfig
from flows.loop import Turn
from flows.models import tuned
from flows.recording import if_recorded
from flows.rule_page import fit_facts, fit_markdown, publish
from flows.rules import install, retire
from flows.tasks import bring_in
from flows.validation_loss import Training, measured
from storage.store import Manifest, Store, key_of

SAID = pl.concat_str(prompt_text(), response_text(), separator="\x1e", ignore_nulls=True).hash().alias("said")
HELD = (0.01, 0.99)  # quantiles of the pool that a row's indicators are held between


@if_recorded
@flow(name="instructmining-fit", persist_result=False)
def fit_rule(config: FitConfig, folder: Path, root: Path, workers: int = 1) -> dict[str, Any]:
    """Draw, train, measure, regress; install the rule under the fit's name if it passes. Returns what the page says."""
    store, loop = Store(root), config.loop()
    with cards.publishing():
        pool = bring_in("import the pool", root, folder / config.pool, config.name)
        heldout = bring_in("import the held-out set", root, folder / config.heldout, f"{config.name}-heldout")
        first = Turn(loop, root, config.seeds[0], 0)
        scored = first.score(first.guard(pool, heldout), heldout)
        validation = assemble.where(store, scored, "split", "validation")
        _check(config, store, scored)
        mine = [Training(f"subset {n}", n, seed) for n in range(config.subsets) for seed in config.seeds]
        mine = through(mine, "drawn", partial(_draw, config=config, root=root, scored=scored))
        release()
        mine = through(mine, "trained", partial(_train, config=config, root=root, heldout=heldout), workers)
        every = mine + list(elsewhere(config, store, scored, mine))
        every = through(every, "measured", partial(measured, config=loop, root=root, rows=validation), workers)
    said = concluded(config, store, scored, every)
    publish(store, f"rule-{config.name}", said, fit_markdown(said))
    return said


def _check(config: FitConfig, store: Store, scored: str) -> None:
    rows = _candidates(store, scored, config).height
    if rows < 2 * config.rows:
        raise StepError(
            f"{rows:,} rows of the pool are live and have every indicator: subsets of {config.rows:,} would be much "
            "alike; ask for fewer rows, or for fewer indicators"
        )


def _turn(config: FitConfig, root: Path, training: Training) -> Turn:
    return Turn(config.loop(), root, training.seed, 1, None, training.label)


def _draw(training: Training, config: FitConfig, root: Path, scored: str) -> Training:
    """A subset is the same for all seeds of training: the first of them draws it."""
    turn = _turn(config, root, replace(training, seed=config.seeds[0]))
    drawn = {"number": training.number, "indicators": config.indicators}
    choice = turn.apply(
        Use(step="instructmining-subset", **{"with": drawn}), scored, name=f"subset-{training.number:03}"
    )
    return replace(training, chosen=assemble.taken(turn.store, scored, choice))


def _train(training: Training, config: FitConfig, root: Path, heldout: str) -> Training:
    turn = _turn(config, root, training)
    return replace(training, adapter=turn.train(f"train {training.number:03}", training.chosen, heldout))


def elsewhere(config: FitConfig, store: Store, scored: str, mine: list[Training]) -> Iterator[Training]:
    """Trainings of other runs on the same base, all of whose rows are rows of this pool that may be trained on.

    Rows are the same if they say the same: a run of another name imports its pool under that name. Not those on the
    rows of a subset, whichever dataset they stand in, such as with a seed that is no longer asked for: the subset may
    be kept apart.
    """
    known, subsets = {t.adapter for t in mine}, {_set(_learnt(store, t.chosen)) for t in mine if t.chosen}
    base = trained_on(tuned(store, config.model, None))
    pool = _candidates(store, scored, config)["said"]
    for made in map(store.manifest, store.ids()):
        if made.step != "train" or made.id in known or made.engines.get("base") != base:
            continue
        rows = made.inputs["rows"]
        if not store.exists(rows):
            continue
        live = _learnt(store, rows)
        if live.height and _set(live) not in subsets and live["said"].is_in(pool.implode()).all():
            yield Training(made.id, None, made.config["seed"], rows, made.id)


def _learnt(store: Store, rows: str) -> pl.DataFrame:
    """What the rows say that a training on this dataset saw: the live ones."""
    return store.read(rows, ["messages", "drop_reason"]).filter(pl.col("drop_reason").is_null()).select(SAID)


def _set(learnt: pl.DataFrame) -> frozenset[int]:
    return frozenset(learnt["said"])


def _candidates(store: Store, scored: str, config: FitConfig) -> pl.DataFrame:
    """The rows that subsets are drawn from: live, for training, with every indicator."""
    named = [column(name) for name in config.indicators]
    rows = store.read(scored, ["messages", "drop_reason", "split", *named])
    if missing := [name for name in named if name not in rows.columns]:
        raise StepError(
            f"the fit asks for {missing[0]}, and no step under `score` gives it; see docs/instructmining.md"
        )
    live = pl.col("drop_reason").is_null() & (pl.col("split") == "train")
    return rows.filter(live, *[pl.col(name).is_finite() for name in named]).select(SAID, *named)


def held(rows: pl.DataFrame, name: str) -> tuple[float, float]:
    values = rows[column(name)]
    return float(values.quantile(HELD[0])), float(values.quantile(HELD[1]))


def observed(config: FitConfig, store: Store, scored: str, trainings: list[Training]) -> pl.DataFrame:
    """One line for each training: the mean of each indicator over its rows, the validation loss, where it is from.

    Trainings on the same rows have the same number under `choice`.
    """
    rows = _candidates(store, scored, config)
    rows = rows.unique("said").select(
        "said", *[pl.col(column(n)).cast(pl.Float64).clip(*held(rows, n)).alias(n) for n in config.indicators]
    )
    lines, choices = [], {}
    for t in (t for t in trainings if t.validated):
        loss = store.read(t.validated, ["base_nll"])["base_nll"].mean()
        learnt = _learnt(store, t.chosen)
        choice = choices.setdefault(_set(learnt), len(choices))
        chosen = learnt.join(rows, on="said")
        made = store.manifest(t.adapter)
        kind = key_of({k: v for k, v in made.config.items() if k != "seed"}, chosen.height)[:8]
        apart = t.number is not None and config.apart(t.number)
        own = {"adapter": t.adapter, "subset": t.number, "choice": choice, "apart": apart}
        own |= {"kind": kind, "rows": chosen.height}
        means = {n: chosen[n].mean() for n in config.indicators}
        lines.append(own | {"optimizer_steps": made.config["optimizer_steps"], "loss": loss} | means)
    if not lines:
        raise StepError("no training could be measured, and nothing can be fitted; what went wrong is said above")
    return pl.DataFrame(lines, schema_overrides={"subset": pl.Int64, "loss": pl.Float64}, infer_schema_length=None)


def concluded(config: FitConfig, store: Store, scored: str, trainings: list[Training]) -> dict[str, Any]:
    """Regress on what was measured, and install the rule if it passes; all that the page says.

    Where it is refused, a rule that had the name before loses it: no run is to use what its page says is refused.
    """
    seen = observed(config, store, scored, trainings)
    table = keep(config, store, scored, seen)
    rows = _candidates(store, scored, config)
    found = fit_observed(config, seen, {name: held(rows, name) for name in config.indicators})
    rule = as_rule(config, store, seen, found)
    retired = None if found.passes else retire(store, rule.name)
    if found.passes:
        install(store, rule)
    return fit_facts(rule, found, seen, table, [f"{t.label}{t.failed}" for t in trainings if t.failed], retired)


def keep(config: FitConfig, store: Store, scored: str, seen: pl.DataFrame) -> str:
    """The observations as a dataset of their own, which the rule can be checked against."""
    key = key_of("instructmining-observations", seen.rows(), store.manifest(scored).digest)
    told = {"indicators": list(config.indicators), "rows": config.rows, "optimizer_steps": config.optimizer_steps}
    name = "instructmining-observations"
    made = Manifest(f"{name}-{key[:12]}", "table", name, 1, told, {}, {"rows": scored})
    if not store.exists(made.id):
        part = store.put_part(key, seen)
        store.seal(replace(made, shards=((part,),), counts={"rows": seen.height}))
    store.name(f"{config.name}.observations", made.id)
    return made.id


def fit_observed(config: FitConfig, seen: pl.DataFrame, bounds: dict[str, tuple[float, float]]) -> Fit:
    """Trainings on the same rows with other seeds are one observation, their mean; one without a loss is none."""
    means = [pl.col(n).mean() for n in (*config.indicators, "loss")]
    some = seen.filter(pl.col("loss").is_finite())
    each = some.group_by("choice", "kind", "apart", maintain_order=True).agg(*means)
    own = seen.filter(pl.col("subset").is_not_null())["kind"]
    kinds = {kind: i for i, kind in enumerate(dict.fromkeys([*own, *each["kind"]]))}

    def as_seen(lines: pl.DataFrame) -> Observations:
        kind = np.array([kinds[k] for k in lines["kind"]], dtype=int)
        means = lines.select(config.indicators).to_numpy()
        return Observations(tuple(config.indicators), means, np.log(lines["loss"].to_numpy()), kind)

    return fit(as_seen(each.filter(~pl.col("apart"))), as_seen(each.filter("apart")), bounds)


def as_rule(config: FitConfig, store: Store, seen: pl.DataFrame, found: Fit) -> Rule:
    others = found.fitted - found.own
    seen_by = f"{found.own} subsets" + (f" and {others} trainings of other runs" if others else "")
    return Rule(
        name=config.name,
        version=key_of(seen.rows())[:12],
        source=f"fitted on {config.pool}: {config.rows} rows, {config.optimizer_steps} steps, {seen_by}",
        intercept=found.regression.intercept,
        terms=found.terms,
        r2=found.regression.r2,
        leave_one_out_r2=found.regression.leave_one_out_r2,
        spearman=None if np.isnan(found.spearman) else found.spearman,
        subsets=found.fitted,
        heldout_subsets=len(found.true),
        model=trained_on(tuned(store, config.model, None)),
    )
