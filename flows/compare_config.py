"""What `thresher compare` reads: the pool, model and held-out set of a run, a budget, and arms that choose differently.

pool: raw.jsonl
heldout: test.jsonl
budget: {rows: [350, 700], optimizer_steps: 100}     # or tokens: [20000]
arms:
  clear:
    score:
      - {step: clear-score}
      - {step: clear-filter}
    choose: {step: random}
seeds: [0, 1, 2]
"""

import itertools
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from curation.step import find_step
from flows.config import (
    Budget,
    Given,
    LoopConfig,
    Roles,
    Strict,
    Use,
    check_given,
    check_steps,
    load,
    read,
)

# Arms that every comparison has: `full` is given all rows.
ALWAYS = {"random": Use(step="random"), "longest": Use(step="longest"), "full": Use(step="random")}


Sizes = Annotated[list[Annotated[int, Field(ge=1, strict=True)]], Field(min_length=1)]
_ARM = re.compile("[A-Za-z0-9][A-Za-z0-9._+ -]{0,39}")


class Arm(Strict):
    score: list[Use] = Field(default_factory=list)
    """Steps that score and mark the pool, in order."""

    choose: Use
    """Step that chooses the rows."""

    feedback: list[Use] = Field(default_factory=list)
    """Steps by which a round's results change the next, where there are several rounds."""

    rounds: int = Field(1, ge=1, le=50)
    """Turns of the loop; what is compared is the last turn's choice."""

    stop_when_flat: bool = False
    """Stop when a round's gain on the validation rows is inside its 95 % interval."""

    grown: float | None = Field(None, ge=0, lt=1)
    """Largest share of a choice that grown rows may be; any, if not given."""

    roles: Roles = Field(default_factory=dict)
    """Models of roles in this arm, over those of the whole comparison."""

    def stages(self) -> dict[str, list[Use]]:
        """The arm's steps by what they are there for."""
        return {"scores and marks": self.score, "chooses": [self.choose], "feeds back": self.feedback}


class CompareBudget(Strict):
    rows: Sizes | None = None
    """Rows that every arm may choose; several make a curve."""

    tokens: Sizes | None = None
    """In the place of rows: the tokens that a choice may hold."""

    optimizer_steps: int = Field(150, ge=1)
    """Optimiser steps of every training run."""

    @field_validator("rows", "tokens", mode="before")
    @classmethod
    def _one_is_a_list(cls, said: Any) -> Any:
        return [said] if isinstance(said, int) else said

    @field_validator("rows", "tokens")
    @classmethod
    def _in_order(cls, said: list[int] | None) -> list[int] | None:
        return said and sorted(set(said))

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if (self.rows is None) == (self.tokens is None):
            raise ValueError("give rows or tokens, not both")
        return self


class CompareConfig(Given):
    budget: CompareBudget = CompareBudget(rows=[700])
    arms: dict[str, Arm] = Field(default_factory=dict)
    """What is compared; `random`, `longest` and `full` are always there."""

    baseline: str = "random"
    """Arm that all others are compared with."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        for name in self.arms:
            if name in (*ALWAYS, "untuned"):
                raise ValueError(f"the arm {name!r} is always there; name yours otherwise")
            if not _ARM.fullmatch(name):
                raise ValueError(f"{name[:50]!r} is no name of an arm: up to 40 letters, digits, spaces and . _ + -")
        for (one, a), (other, b) in itertools.combinations(self.arms.items(), 2):
            if a == b:
                raise ValueError(f"the arms {one!r} and {other!r} are the same; leave one out")
            if _slug(one) == _slug(other):
                raise ValueError(f"the arms {one!r} and {other!r} have names too much alike")
        if self.baseline not in (*ALWAYS, *self.arms):
            raise ValueError(f"baseline: there is no arm {self.baseline!r}")
        return self

    def every_arm(self) -> dict[str, Arm]:
        return {name: Arm(choose=use) for name, use in ALWAYS.items()} | self.arms

    def loop(self, arm: str, size: int) -> LoopConfig:
        """The arm as a run of its own, so that what it shares with other runs is computed once."""
        said = self.every_arm()[arm]
        unit = "rows" if self.budget.rows else "tokens"
        given = {name: getattr(self, name) for name in Given.model_fields}
        own = {
            "name": f"{self.name}.{_slug(arm)}.{size}",
            "roles": self.roles | said.roles,
            "budget": Budget(
                **{unit: size, "rounds": said.rounds, "stop_when_flat": said.stop_when_flat, "grown": said.grown},
                optimizer_steps=self.budget.optimizer_steps,
            ),
            **{name: getattr(said, name) for name in ("score", "choose", "feedback")},
        }
        return LoopConfig(**given | own)


def load_comparison(path: Path, changes: list[str] = ()) -> CompareConfig:
    """Read the config of a comparison."""
    config = read(path, changes, CompareConfig)
    check_given(path, config)
    for name, arm in config.arms.items():
        check_steps(path, arm, f"arms.{name}.")
    return config


def ablation(path: Path, changes: list[str] = ()) -> CompareConfig:
    """A run's config as a comparison of the whole loop with the loop without each of its stages.

    What reads the columns of a stage goes with it. A stage that the choice cannot do without is not left out.
    """
    run = load(path, changes)
    given = {name: getattr(run, name) for name in Given.model_fields} | {"name": f"{run.name}-ablation"}
    rounds = run.budget.rounds
    stages = {name: getattr(run, name) for name in ("score", "choose", "feedback")}
    whole = Arm(**stages, **{name: getattr(run.budget, name) for name in ("rounds", "stop_when_flat", "grown")})
    arms = {"whole": whole}
    for use in [*run.score, *(run.feedback if rounds > 1 else [])]:
        less, gone = _without(whole, use)
        if set(_needs(run.choose)) <= _written(less.score):
            arms[f"without {' + '.join(gone)}"[:40].strip()] = less
    if run.choose != ALWAYS["random"]:
        arms["chosen at random"] = whole.model_copy(update={"choose": ALWAYS["random"]})
    if rounds > 1:
        arms["one round"] = whole.model_copy(update={"feedback": [], "rounds": 1, "stop_when_flat": False})
    distinct = {name: arm for i, (name, arm) in enumerate(arms.items()) if arm not in list(arms.values())[:i]}
    unit = {"tokens": [run.budget.tokens]} if run.budget.tokens else {"rows": [run.budget.rows]}
    budget = CompareBudget(**unit, optimizer_steps=run.budget.optimizer_steps)
    return CompareConfig(**given, budget=budget, arms=distinct, baseline="whole")


def _without(arm: Arm, use: Use) -> tuple[Arm, list[str]]:
    """The arm without a stage and what cannot go on without it; and the names of what has gone."""
    kept = {"score": [u for u in arm.score if u is not use], "feedback": [u for u in arm.feedback if u is not use]}
    gone = [use.step]
    while lost := [u for part in kept.values() for u in part if not set(_needs(u)) <= _written(kept["score"])]:
        gone += [u.step for u in lost]
        kept = {part: [u for u in uses if u not in lost] for part, uses in kept.items()}
    return arm.model_copy(update=kept), gone


def _needs(use: Use) -> list[str]:
    """Columns of other steps that a step reads; the split is always there."""
    return [c for c in (*find_step(use.step).reads, *use.config().columns()) if c != "split"]


def _written(uses: list[Use]) -> set[str]:
    return {column for use in uses for column in find_step(use.step).writes}


def _slug(arm: str) -> str:
    return re.sub("[^A-Za-z0-9._-]+", "-", arm)
