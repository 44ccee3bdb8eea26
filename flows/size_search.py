"""How many rows to choose: the validation loss after training on the first n of a choice, on a grid of sizes.

InstructMining searches with BlendSearch (FLAML) and reports a loss that falls, rises and falls again with n. So nothing
is assumed about the curve: every size of a grid with even steps in its logarithm is trained with several seeds.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from prefect import flow

from curation.step import StepError
from flows import assemble, cards
from flows.cells import through
from flows.config import LoopConfig
from flows.engines import release
from flows.loop import Turn
from flows.recording import if_recorded
from flows.rule_page import publish, size_markdown
from flows.statistics import estimate
from flows.tasks import bring_in
from flows.validation_loss import Training, measured
from storage.store import Store


def grid(least: int, most: int, points: int) -> list[int]:
    """Sizes with even steps in their logarithm, both ends among them."""
    return sorted({round(n) for n in np.geomspace(least, max(most, least), points)})


@if_recorded
@flow(name="instructmining-size", persist_result=False)
def search_size(
    config: LoopConfig, folder: Path, root: Path, least: int, most: int | None, points: int, workers: int = 1
) -> dict[str, Any]:
    """Choose, train and measure every size with every seed of the run; returns what the page says."""
    store = Store(root)
    with cards.publishing():
        pool = bring_in("import the pool", root, folder / config.pool, config.name)
        heldout = bring_in("import the held-out set", root, folder / config.heldout, f"{config.name}-heldout")
        first = Turn(config, root, config.seeds[0], 0)
        scored = first.score(first.guard(pool, heldout), heldout)
        validation = assemble.where(store, scored, "split", "validation")
        sizes = grid(least, min(most or 10**9, _available(store, scored)), points)
        cells = [Training(f"{rows:,} rows", rows, seed) for rows in sizes for seed in config.seeds]
        cells = through(cells, "chosen", partial(_choose, config=config, root=root, scored=scored))
        release()
        cells = through(cells, "trained", partial(_train, config=config, root=root, heldout=heldout), workers)
        cells = through(cells, "measured", partial(measured, config=config, root=root, rows=validation), workers)
    said = told(config, store, cells)
    publish(store, f"size-{config.name}", said, size_markdown(said))
    return said


def _available(store: Store, scored: str) -> int:
    rows = store.read(scored, ["drop_reason", "split"])
    found = rows.filter(pl.col("drop_reason").is_null(), pl.col("split") == "train").height
    if not found:
        raise StepError("no row of the pool is live and for training; there is no size to search")
    return found


def _turn(cell: Training, config: LoopConfig, root: Path) -> Turn:
    budget = config.budget.model_copy(update={"rows": cell.number, "tokens": None, "rounds": 1})
    named = config.model_copy(update={"budget": budget, "name": f"{config.name}.size{cell.number}"})
    return Turn(named, root, cell.seed, 1, None, cell.label)


def _choose(cell: Training, config: LoopConfig, root: Path, scored: str) -> Training:
    return replace(cell, chosen=_turn(cell, config, root).choose(scored)[1])


def _train(cell: Training, config: LoopConfig, root: Path, heldout: str) -> Training:
    return replace(cell, adapter=_turn(cell, config, root).train("train", cell.chosen, heldout))


def told(config: LoopConfig, store: Store, cells: list[Training]) -> dict[str, Any]:
    """The curve with its intervals, the best size, and the smallest that is not shown to be worse."""
    losses: dict[int, dict[int, np.ndarray]] = {}  # by rows taken and seed: two sizes may come to the same rows
    for cell in (c for c in cells if c.validated):
        taken = store.manifest(cell.chosen).counts["live"]  # fewer than asked, where the choice has no more
        loss = store.read(cell.validated, ["id", "base_nll"]).sort("id")["base_nll"]
        losses.setdefault(taken, {})[cell.seed] = loss.fill_null(float("nan")).to_numpy()
    failed = [f"{c.label}{c.failed}" for c in cells if c.failed]
    seeds = list(config.seeds)
    whole = {n: np.array([by[s] for s in seeds]) for n, by in sorted(losses.items()) if by.keys() >= set(seeds)}
    if not whole:
        raise StepError(f"no size was trained with every seed: {'; '.join(failed)}")
    finite = np.isfinite(np.concatenate(list(whole.values()))).all(axis=0)
    whole = {rows: found[:, finite] for rows, found in whole.items()}
    best = min(whole, key=lambda rows: whole[rows].mean())
    points = []
    for rows, found in whole.items():
        e, behind = estimate(found, 0.0), estimate(found - whole[best])
        points.append({"rows": rows, "loss": e.mean, "low": e.low, "high": e.high, "behind": behind.mean})
        points[-1] |= {"behind_low": behind.low, "behind_high": behind.high}
    enough = next(p["rows"] for p in points if p["rows"] == best or p["behind_low"] <= 0)
    sentence = f"The validation loss is lowest with {best:,} rows"
    sentence += "." if enough == best else f"; {enough:,} rows are the fewest that are not shown to be worse."
    return {
        "name": config.name,
        "sentence": sentence,
        "best": best,
        "enough": enough,
        "sizes": points,
        "seeds": seeds,
        "optimizer_steps": config.budget.optimizer_steps,
        "failed": failed,
    }
