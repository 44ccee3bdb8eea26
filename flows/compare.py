"""Compare choices: every arm trains on rows of its own, alike in all else, and is tested on the same held-out rows."""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from prefect import flow

from curation.step import find_step
from flows import cards, report
from flows.cells import through
from flows.compare_config import ALWAYS, Arm, CompareConfig
from flows.config import LoopConfig, Use
from flows.engines import release
from flows.loop import Turn, go_round
from flows.own_steps import load_steps
from flows.parents import bring_in_parents
from flows.publish import known_spoilt, publish_comparison
from flows.recording import if_recorded
from flows.tasks import bring_in
from storage.store import Store, key_of

COSTS = ("seconds", "requests", "generated_tokens")
EVERYTHING = 10**9  # more rows than a pool has


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm at one budget with one seed, as far as it has come; or why it went no further."""

    arm: str
    size: int | None  # rows or tokens; None is all there are
    seed: int
    loop: LoopConfig
    rows: str = ""
    choice: str = ""
    chosen: str = ""
    adapter: str = ""
    tested: str = ""
    earlier: tuple[str, ...] = ()  # datasets of earlier rounds that the choice cost
    failed: str | None = None

    @property
    def label(self) -> str:
        return f"{self.arm}{f' {self.size:,}' if self.size else ''}, seed {self.seed}, "

    def turn(self, root: Path) -> Turn:
        return Turn(self.loop, root, self.seed, 1, None, self.label)


@if_recorded
@flow(name="compare", persist_result=False)
def compare(config: CompareConfig, folder: Path, root: Path, workers: int = 1) -> dict[str, Any]:
    """Choose, train and test every arm, budget and seed; what was done before is not done again.

    All choices come first, one after another since arms share steps; then all trainings, then all tests on one engine
    whose adapters are swapped, both by as many processes as there are `workers`. A cell that fails says why, and the
    others go on.
    """
    store, began = Store(root), time.time()
    load_steps(folder / file for file in config.steps)
    with cards.publishing():
        pool = bring_in("import the pool", root, folder / config.pool, config.name)
        heldout = bring_in("import the held-out set", root, folder / config.heldout, f"{config.name}-heldout")
        cells = every_cell(config)
        for loop in {cell.loop.name: cell.loop for cell in cells}.values():
            bring_in_parents(loop, folder, root)
        first = Turn(cells[0].loop, root, 0, 0)
        untuned = first.evaluate("evaluate untuned", heldout, None)
        guarded = first.guard(pool, heldout)
        scored: dict[tuple[str, int], str] = {}  # what an arm's steps make of the pool is the same for all its budgets
        choose = partial(_choose, root=root, guarded=guarded, heldout=heldout, scored=scored)
        cells = through(cells, "chosen", choose)
        release()
        cells = through(cells, "trained", partial(_train, root=root, pool=pool, heldout=heldout), workers)
        cells = through(cells, "tested", partial(_test, root=root, heldout=heldout), workers)
    spoilt = known_spoilt(folder / config.spoilt) if config.spoilt else None
    results = gather(config, store, pool, heldout, untuned, cells, spoilt, began, workers)
    publish_comparison(results, store)
    return results


def _choose(cell: Cell, root: Path, guarded: str, heldout: str, scored: dict[tuple[str, int], str]) -> Cell:
    turn, same = cell.turn(root), (cell.arm, cell.seed)  # a correction has a student, which depends on the seed
    rows = scored.get(same) or scored.setdefault(same, turn.score(guarded, heldout))
    if cell.loop.budget.rounds > 1:
        return cell  # its rounds choose as they train; they find what the first of them scores
    choice, chosen = turn.choose(rows)
    return replace(cell, rows=rows, choice=choice, chosen=chosen)


def _train(cell: Cell, root: Path, pool: str, heldout: str) -> Cell:
    if cell.chosen:
        return replace(cell, adapter=cell.turn(root).train("train", cell.chosen, heldout))
    *before, last = go_round(cell.loop, root, cell.seed, pool, heldout, test=False, label=cell.label)
    earlier = tuple(d for r in before for d in (r.adapter, r.results or "", *r.grown) if d)
    return replace(
        cell, rows=last.scored, choice=last.choice, chosen=last.chosen, adapter=last.adapter, earlier=earlier
    )


def _test(cell: Cell, root: Path, heldout: str) -> Cell:
    return replace(cell, tested=cell.turn(root).evaluate("evaluate held-out", heldout, cell.adapter))


def every_cell(config: CompareConfig) -> list[Cell]:
    sizes = config.budget.rows or config.budget.tokens
    asked = [(arm, size) for size in sizes for arm in (*(a for a in ALWAYS if a != "full"), *config.arms)]
    cells = [Cell(arm, size, seed, config.loop(arm, size)) for arm, size in asked for seed in config.seeds]
    full = config.loop("full", EVERYTHING)
    full = full.model_copy(update={"budget": full.budget.model_copy(update={"rows": EVERYTHING, "tokens": None})})
    return cells + [Cell("full", None, seed, full) for seed in config.seeds]


def gather(
    config: CompareConfig,
    store: Store,
    pool: str,
    heldout: str,
    untuned: str,
    cells: list[Cell],
    spoilt: set[int] | None,
    began: float,
    workers: int,
) -> dict[str, Any]:
    """All that the page is made of, as plain values for JSON: the answers row by row, what each cell took and cost."""
    origin = store.read_side(pool, "origin").select("id", "line")
    wrong = origin.select("id", spoilt=pl.col("line").is_in(list(spoilt))) if spoilt is not None else None
    ends = [d for c in cells for d in (c.tested, c.choice, c.adapter, *c.earlier) if d]
    made = report.lineage(store, [untuned, *ends])
    facts = [store.run_facts(m.id) for m in made]
    left_out = report.unscorable(store, [untuned, *(c.tested for c in cells if not c.failed)])
    held = store.manifest(heldout)
    return {
        "name": config.name,
        "model": config.model,
        "unit": "rows" if config.budget.rows else "tokens",
        "sizes": config.budget.rows or config.budget.tokens,
        "baseline": config.baseline,
        "optimizer_steps": config.budget.optimizer_steps,
        "seeds": config.seeds,
        "pool": dict(store.manifest(pool).counts),
        "heldout": {"rows": held.counts["live"] - len(left_out), "unscorable": len(left_out), "digest": held.digest},
        "spoilt": float(origin["line"].is_in(list(spoilt)).mean()) if spoilt is not None else None,
        "untuned": _answers(store, untuned, left_out),
        "cells": [_facts(store, cell, wrong, left_out) for cell in cells],
        "overlap": _overlaps(store, cells),
        "arms": {name: _told(arm) for name, arm in config.every_arm().items()},
        "steps": {
            use.step: find_step(use.step).help.partition("\n")[0]
            for arm in config.every_arm().values()
            for uses in arm.stages().values()
            for use in uses
        },
        "seconds": {
            "here": round(time.time() - began, 1),
            "computing": round(sum(f.get("seconds", 0.0) for f in facts if f.get("started", 0.0) >= began), 1),
            "everything": round(sum(f.get("seconds", 0.0) for f in facts), 1),
            "workers": workers,
        },
    }


def _told(arm: Arm) -> dict[str, list[str]]:
    """What an arm does, in words: its steps with the settings that the config gives them."""

    def said(use: Use) -> str:
        said = {**use.with_, **({"from": use.from_} if use.from_ else {})}
        given = ", ".join(f"{name} {value}" for name, value in said.items())
        return f"{use.step} ({given})" if given else use.step

    told = {what: [said(use) for use in uses] for what, uses in arm.stages().items()}
    told["models"] = [f"{role} {model.model or ''} {model.adapter or ''}".strip() for role, model in arm.roles.items()]
    flat = ", fewer where nothing is gained" if arm.stop_when_flat else ""
    told |= {"rounds": [f"{arm.rounds}{flat}"]} if arm.rounds > 1 else {}
    return told | ({"grown rows": [f"at most {arm.grown:.0%} of a choice"]} if arm.grown is not None else {})


def _facts(store: Store, cell: Cell, wrong: pl.DataFrame | None, left_out: set[str]) -> dict[str, Any]:
    said = {"arm": cell.arm, "size": cell.size, "seed": cell.seed, "failed": cell.failed}
    if cell.failed:
        return said
    adapter = store.run_facts(cell.adapter)
    cost = _costs(store, [cell.choice, *cell.earlier])
    said |= {
        "taken": store.manifest(cell.choice).counts["taken"],
        "trained_tokens": adapter.get("tokens", 0),
        "training_seconds": adapter.get("seconds", 0.0),
        "choosing": {what: round(sum(f.get(what, 0) for f in cost), 1) for what in COSTS},
        "choice": key_of(sorted(store.read(cell.chosen, ["id"])["id"])),
        "chosen": cell.chosen,
        "adapter": cell.adapter,
        "answers": _answers(store, cell.tested, left_out),
    }
    if wrong is not None:
        said["spoilt"] = round(report.taken_share(store, cell.rows, cell.choice, wrong)["spoilt"], 4)
    return said


def _costs(store: Store, ends: list[str]) -> list[dict[str, Any]]:
    """What each part and each adapter behind these datasets cost when it was made, whoever made it."""
    made = report.lineage(store, ends)
    parts = {part.file: part for m in made for shard in m.shards for part in shard}
    return [store.part_facts(p) for p in parts.values()] + [store.run_facts(m.id) for m in made if m.kind == "adapter"]


def _answers(store: Store, tested: str, left_out: set[str]) -> dict[str, Any]:
    """Held-out answers by row, the rows in one order: right or wrong as 1 and 0, and the loss where it was measured."""
    rows = store.read(tested, ["id", "student_correct", "student_nll"]).sort("id")
    rows = rows.filter(~pl.col("id").is_in(list(left_out)))
    right = "".join("1" if c else "0" for c in rows["student_correct"].fill_null(False))
    loss = rows["student_nll"]
    return {"right": right} | ({} if loss.null_count() else {"loss": loss.round(4).to_list()})


def _overlaps(store: Store, cells: list[Cell]) -> list[dict[str, Any]]:
    """Jaccard index of the rows that two arms took, at the largest budget, mean over seeds."""
    largest = max((c.size for c in cells if c.size), default=None)
    took = {
        (c.arm, c.seed): set(store.read(c.choice).filter("taken")["id"])
        for c in cells
        if c.choice and not c.failed and c.size in (largest, None)
    }
    arms, out = list(dict.fromkeys(arm for arm, _ in took)), []
    for i, a in enumerate(arms):
        for b in arms[i + 1 :]:
            both = [(took[a, s], took[b, s]) for s in {s for _, s in took} if (a, s) in took and (b, s) in took]
            if both:
                out.append({"arms": [a, b], "jaccard": round(float(np.mean([_jaccard(*pair) for pair in both])), 4)})
    return out


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0
