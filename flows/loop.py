"""The loop: import, score, choose, train, evaluate, feed back and round again. Tasks pass dataset ids, never tables."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl
from prefect import flow

from curation.step import find_step
from flows import assemble, cards, report
from flows.approval import approved
from flows.budget import within
from flows.config import LoopConfig, Use
from flows.grown_share import within_share
from flows.models import role_models, tuned
from flows.own_steps import load_steps
from flows.parents import bring_in_parents, parents, told
from flows.progress import say
from flows.publish import Published, publish_report
from flows.recording import if_recorded
from flows.statistics import estimate
from flows.tasks import bring_in, run_one_step, train_one
from storage.store import Store, StoreError

EVERYTHING = 10**9  # more rows than a pool has


@if_recorded
@flow(name="improve", persist_result=False)
def improve(config: LoopConfig, folder: Path, root: Path, pool: str | None = None) -> Published:
    """Import pool and held-out set, one whole loop for every seed, and the report that compares them.

    `pool` is an imported dataset that stands in the place of the config's file.
    """
    load_steps(folder / file for file in config.steps)
    with cards.publishing():
        if pool:
            Store(root).name(config.name, pool)
        pool = pool or bring_in("import the pool", root, folder / config.pool, config.name)
        heldout = bring_in("import the held-out set", root, folder / config.heldout, f"{config.name}-heldout")
        bring_in_parents(config, folder, root)
        runs = [one_seed(config, root, seed, pool, heldout) for seed in config.seeds]
    return publish_report(config, folder, Store(root), runs)


def one_seed(config: LoopConfig, root: Path, seed: int, pool: str, heldout: str) -> report.SeedRun:
    """The rounds of a seed, and the baselines at the same optimiser steps."""
    rounds = go_round(config, root, seed, pool, heldout)
    return _compare(Turn(config, root, seed, 0), pool, heldout, rounds)


def go_round(
    config: LoopConfig, root: Path, seed: int, pool: str, heldout: str, test: bool = True, label: str = ""
) -> list[report.Round]:
    """Rounds of score, choose, train, evaluate and feedback; `test` them on the held-out set."""
    store = Store(root)
    weights, student, rounds, base = None, None, [], [pool]
    fitted: dict[int, str] = {}
    for number in range(1, config.budget.rounds + 1):
        turn = Turn(config, root, seed, number, student, label, fitted)
        guarded = turn.guard(assemble.together(store, base), heldout)
        rows = turn.score(guarded, heldout)
        choice, chosen = turn.choose(rows, weights, rounds[-1].choice if rounds else None)
        student = turn.train("train", chosen, heldout)
        tested = turn.evaluate("evaluate held-out", heldout, student) if test else None
        results, validated, new, moved = None, None, [], None
        if number < config.budget.rounds:  # what feeds a round that never comes is not made
            validation = assemble.where(store, rows, "split", "validation")
            validated = turn.evaluate("evaluate validation", validation, student, likelihood=True, before=rows)
            seen = turn.evaluate("evaluate choice", chosen, student, likelihood=True, before=rows)
            results = turn.keep("results", assemble.together(store, [seen, validated]))
            revise = [u for u in config.feedback if find_step(u.step).kind == "revise"]
            others = [u for u in config.feedback if u not in revise]
            tables = {"results": results, "weights": weights}  # rows that are made are held to what is held out
            held = {"make": {"heldout": heldout}}
            made = [
                turn.apply(
                    u, parents(store, config, u, rows), told(u), **tables, **held.get(find_step(u.step).kind, {})
                )
                for u in others
            ]
            moved = next((d for d in made if store.manifest(d).kind == "table"), None)
            weights = moved or weights
            new = [d for d in made if store.manifest(d).kind == "rows"]
            corrected = turn.revise(revise, rows, student)
            base = [assemble.standing(store, corrected, [u.step for u in revise])] if revise else base
            base = base + [assemble.live(store, d) for d in new]  # what a maker refused stays with it
            new += [corrected] if revise else []
        rounds.append(report.Round(guarded, rows, choice, chosen, student, tested, results, validated, new, moved))
        if results and config.budget.stop_when_flat and not _gained(store, rounds):
            say(f"round {number} gained nothing that the validation rows could show; the loop stops here")
            break
    return rounds


def _compare(turn: "Turn", pool: str, heldout: str, rounds: list[report.Round]) -> report.SeedRun:
    """The arms of the report: the untuned model, a random choice and the full pool, and the rounds."""
    store, guarded = turn.store, rounds[0].guarded
    arms = {"untuned": turn.evaluate("evaluate untuned", heldout, None)}
    adapters, random = [], None
    if turn.config.baselines:
        everything = Turn(turn.config, turn.root, 0, 0)
        same = {"rows": store.manifest(rounds[-1].choice).counts["taken"]}  # the loop's, which may be under the budget
        random = turn.apply(Use(step="random", **{"with": same}), guarded)
        full = everything.apply(Use(step="random", **{"with": {"rows": EVERYTHING}}), guarded, name="full")
        for arm, choice in (("random", random), ("full pool", full)):
            chosen = assemble.taken(store, guarded, choice)
            adapters.append(turn.train(f"train {arm}", chosen, heldout))
            arms[arm] = turn.evaluate(f"evaluate {arm}", heldout, adapters[-1])
    arms |= {f"round {n}": r.heldout for n, r in enumerate(rounds, 1)}
    adapters += [r.adapter for r in rounds]
    return report.SeedRun(turn.seed, pool, guarded, arms, random, rounds, adapters)


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the loop: what its tasks have in common."""

    config: LoopConfig
    root: Path
    seed: int
    number: int
    student: str | None = None  # adapter of the turn before
    label: str = ""  # said before what is done
    fitted: dict[int, str] = field(default_factory=dict)  # place among the scores: its centroids, of the first turn

    @property
    def store(self) -> Store:
        return Store(self.root)

    def guard(self, rows: str, heldout: str) -> str:
        """Mark what may not be trained on: rows of the held-out set; set the validation rows apart."""
        rows = self.apply(Use(step="heldout-overlap"), rows, heldout=heldout)
        return self.apply(Use(step="split", **{"with": {"share": self.config.validation}}), rows)

    def score(self, rows: str, heldout: str) -> str:
        """The steps of the config in order. One that revises by a student has its own, tuned on what is live so far."""
        for place, use in enumerate(self.config.score):
            if (step := find_step(use.step)).kind == "revise" and "student" in step.roles:
                name = f"{use.step}-{place}"
                everything = Use(step="random", **{"with": {"rows": EVERYTHING}})
                choice = self.apply(everything, rows, name=f"{name}-rows")
                student = self.train(f"train {name}", assemble.taken(self.store, rows, choice), heldout)
                rows = self.revise([use], rows, student, name)
            else:
                rows = self.apply(use, rows, centroids=self._centroids(place, use, rows))
        return rows

    def _centroids(self, place: int, use: Use, rows: str) -> str | None:
        """What k-means found in the first turn; the clusters whose weights are learnt are the same in later ones."""
        if use.step != "kmeans-cluster":
            return None
        if place not in self.fitted:
            self.fitted[place] = self.apply(Use(step="kmeans-centroids", **{"with": use.with_}), rows)
        return self.fitted[place]

    def revise(self, uses: list[Use], rows: str, student: str, name: str | None = None) -> str:
        """The rows with what a student of this very turn gives better; as they are where nothing is asked for, or a
        person who is asked does not want it."""
        before = rows
        for use in uses:
            rows = replace(self, student=student).apply(use, rows, name=name)
        if uses and self.config.approve:
            return approved(self.store, rows, before, self._name(f"{name or 'corrections'}-approval"))
        return rows

    def choose(self, rows: str, weights: str | None = None, earlier: str | None = None) -> tuple[str, str]:
        """The choice, and the rows that it took; `earlier` is the choice of the round before."""
        use, budget, tables = self.config.choose, self.config.budget, {"weights": weights, "earlier": earlier}
        if budget.tokens:
            rows = self.apply(Use(step="tokens"), rows)  # the choice stands on the count, and is charged for it

        def pick(some: str, amount: int, of: str = "") -> str:
            limit = {"rows": amount}
            if budget.tokens:
                limit = within(self.store, use, some, amount, tables, **self._drawn())
            asked = use.model_copy(update={"with_": use.with_ | limit})
            return self.apply(asked, some, f"{use.step}-{of}" if of else None, **tables)

        amount, unit = (budget.tokens, "tokens") if budget.tokens else (budget.rows, "rows")
        choice = pick(rows, amount)
        if budget.grown is not None:
            choice = self.keep(use.step, within_share(self.store, rows, choice, budget.grown, amount, unit, pick))
        if budget.tokens and not self.store.manifest(choice).counts["taken"]:
            raise StoreError(f"{use.step}: no row fits a budget of {budget.tokens:,} tokens; give more")
        return choice, self.keep("chosen", assemble.taken(self.store, rows, choice))

    def apply(self, use: Use, rows: str, name: str | None = None, **tables: str | None) -> str:
        """Run a step. What it chooses or makes depends on the round and the seed; scores are the same for all seeds."""
        kind = find_step(use.step).kind
        limits = self._drawn() if kind in ("select", "make", "revise") else {}
        if kind == "select":
            limits["rows"] = self.config.budget.rows
        settings = use.config(**limits)
        given = {k: v for k, v in tables.items() if v}
        label, models = self._label(name or use.step), role_models(self.config, self.store, self.student)
        if kind == "revise" and self.student:
            models["student"] = tuned(self.store, self.config.model, self.student, self.config.engine)
        called = self._name(name or use.step)
        return run_one_step(label, self.root, use.step, settings, rows, given, models, called, self.config.ray)

    def train(self, what: str, rows: str, heldout: str) -> str:
        settings = {**self.config.train, "optimizer_steps": self.config.budget.optimizer_steps, "seed": self.seed}
        return train_one(self._label(what), self.root, rows, heldout, self.config.model, settings, self._name(what))

    def evaluate(
        self,
        what: str,
        rows: str,
        adapter: str | None,
        likelihood: bool = False,
        before: str | None = None,
        examples: str | None = None,
    ) -> str:
        """The student's answers; `before` holds what the base found of the rows, if anything, for the gain.

        `examples` are rows that it is shown before each prompt.
        """
        said = self.config.evaluate
        use = Use(step="evaluate", **{"with": said | {"likelihood": likelihood or said.get("likelihood", False)}})
        student = tuned(self.store, self.config.model, adapter, self.config.engine)
        tables = {"before": before} if before and self.store.read(before, ["base_nll"]).width else {}
        tables |= {"examples": examples} if examples else {}
        name, label = self._name(what), self._label(what)
        ray = self.config.ray
        made = run_one_step(label, self.root, use.step, use.config(), rows, tables, {"student": student}, name, ray)
        # one judge for all arms and rounds
        models = role_models(self.config, self.store, None) | {"student": student} if self.config.check else {}
        for check in self.config.check:
            told = f"{label}, {check.step}"
            made = run_one_step(told, self.root, check.step, check.config(), made, {}, models, name, ray)
        return made

    def keep(self, what: str, dataset: str) -> str:
        self.store.name(self._name(what), dataset)
        return dataset

    def _drawn(self) -> dict[str, int]:
        return {"round": self.number, "seed": self.seed}

    def _label(self, what: str) -> str:
        seed = self.label or (f"seed {self.seed}, " if len(self.config.seeds) > 1 else "")
        return f"{seed}round {self.number}: {what}" if self.number else f"{seed}baseline: {what}"

    def _name(self, what: str) -> str:
        turn = f"round{self.number}" if self.number else "baseline"
        return f"{self.config.name}.seed{self.seed}.{turn}.{what.replace(' ', '-')}"


def _gained(store: Store, rounds: list[report.Round]) -> bool:
    """Whether the last round's gain on the validation rows is over its 95 % interval; the first round always gains.

    Rows whose response the metric cannot compare say nothing of a gain, and are left out as in the report.
    """
    if len(rounds) < 2:
        return True
    tested = [r.validation for r in rounds[-2:]]
    kept = ~pl.col("id").is_in(list(report.unscorable(store, tested)))
    right = pl.col("student_correct").fill_null(False).cast(pl.Float64)
    before, now = (store.read(d, ["id", "student_correct"]).filter(kept).select("id", right=right) for d in tested)
    gain = before.join(now, on="id", suffix="_now").select(pl.col("right_now") - pl.col("right")).to_series()
    return gain.is_empty() or estimate(gain.to_numpy()[None, :]).low > 0
