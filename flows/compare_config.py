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

import re
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from flows.config import (
    Budget,
    Given,
    LoopConfig,
    RoleModel,
    Strict,
    Use,
    check_given,
    check_steps,
    load,
    read,
)

# Arms that every comparison has: `full` is given all rows.
ALWAYS = {"random": Use(step="random"), "longest": Use(step="longest"), "full": Use(step="random")}


class Arm(Strict):
    score: list[Use] = Field(default_factory=list)
    """Steps that score and mark the pool, in order."""

    choose: Use
    """Step that chooses the rows."""

    feedback: list[Use] = Field(default_factory=list)
    """Steps by which a round's results change the next, where there are several rounds."""

    rounds: int = Field(1, ge=1, le=50)
    """Turns of the loop; what is compared is the last turn's choice."""

    roles: dict[str, RoleModel] = Field(default_factory=dict)
    """Models of roles in this arm, over those of the whole comparison."""


class CompareBudget(Strict):
    rows: list[int] | None = None
    """Rows that every arm may choose; several make a curve."""

    tokens: list[int] | None = None
    """In the place of rows: the tokens that a choice may hold."""

    optimizer_steps: int = Field(150, ge=1)
    """Optimiser steps of every training run."""

    @field_validator("rows", "tokens", mode="before")
    @classmethod
    def _several(cls, said: Any) -> Any:
        return [said] if isinstance(said, int) else sorted(set(said)) if isinstance(said, list) else said

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        sizes = self.rows or self.tokens
        if (self.rows is None) == (self.tokens is None) or not sizes or min(sizes) < 1:
            raise ValueError("give rows or tokens, one or several numbers over 0")
        return self


class CompareConfig(Given):
    budget: CompareBudget = CompareBudget(rows=[700])
    arms: dict[str, Arm] = Field(default_factory=dict)
    """What is compared; `random`, `longest` and `full` are always there."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        if taken := sorted({*ALWAYS, "untuned"} & set(self.arms)):
            raise ValueError(f"{taken[0]!r} is always there; name yours otherwise")
        return self

    def loop(self, arm: str, size: int) -> LoopConfig:
        """The arm as a run of its own, so that what it shares with other runs is computed once."""
        said = (self.arms | {name: Arm(choose=use) for name, use in ALWAYS.items()})[arm]
        unit = "rows" if self.budget.rows else "tokens"
        given = {name: getattr(self, name) for name in Given.model_fields}
        own = {
            "name": f"{self.name}.{re.sub('[^A-Za-z0-9._-]+', '-', arm)}.{size}",
            "roles": self.roles | said.roles,
            "budget": Budget(**{unit: size}, rounds=said.rounds, optimizer_steps=self.budget.optimizer_steps),
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
    """A run's config as a comparison: the whole loop, and the loop with each of its stages left out."""
    run = load(path, changes)
    whole = Arm(score=run.score, choose=run.choose, feedback=run.feedback, rounds=run.budget.rounds)
    arms = {"whole": whole}
    for part in ("score", "feedback"):
        for i, use in enumerate(uses := getattr(run, part)):
            arms[f"without {use.step}"] = whole.model_copy(update={part: uses[:i] + uses[i + 1 :]})
    arms["choose at random"] = whole.model_copy(update={"choose": ALWAYS["random"]})
    if run.budget.rounds > 1:
        arms["one round"] = whole.model_copy(update={"feedback": [], "rounds": 1})
    given = {name: getattr(run, name) for name in Given.model_fields} | {"name": f"{run.name}-ablation"}
    budget = CompareBudget(rows=[run.budget.rows], optimizer_steps=run.budget.optimizer_steps)
    return CompareConfig(**given, budget=budget, arms=arms)
