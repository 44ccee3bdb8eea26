"""What `thresher fit-rule` reads: the pool, model and held-out set of a run, and how many subsets to learn from.

pool: raw.jsonl
heldout: test.jsonl                # guarded against and never read: a rule is fitted on validation rows
indicators: [output_length, perplexity, mtld, knn6]
score:
  - {step: embed}
  - {step: instructmining-knn}
  - {step: instructmining-score, with: {indicators: [output_length, perplexity, mtld]}}
subsets: 68
rows: 200
optimizer_steps: 30
"""

from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from curation.rule import PUBLISHED, known
from flows.config import Budget, Given, LoopConfig, Use, check_given, check_steps, read

APART = 4  # of so many blocks of four subsets one is kept apart, so that all kinds of draws are in both


class FitConfig(Given):
    indicators: list[str] = Field(min_length=1)
    """Candidates: what the rule may be made of."""

    _known = field_validator("indicators")(known)

    score: list[Use] = Field(default_factory=list)
    """Steps that give the rows these indicators, in order."""

    subsets: int = Field(60, ge=8)
    """Subsets that are drawn, trained on and measured; a quarter is kept apart for the test. Ten for each indicator
    and one more, in the other three quarters, is a good number."""

    rows: int = Field(200, ge=1)
    """Rows of each subset."""

    optimizer_steps: int = Field(30, ge=1)
    """Optimiser steps of every training."""

    @model_validator(mode="after")
    def _all_is_used(self) -> Self:
        if idle := sorted({"evaluate", "spoilt"} & self.model_fields_set):
            raise ValueError(f"{idle[0]}: a fit measures the loss on validation rows alone, and uses no such setting")
        if self.name in PUBLISHED:
            raise ValueError(f"name: a published rule is called {self.name!r} already")
        if len(set(self.indicators)) < len(self.indicators):
            raise ValueError("indicators: one of them stands there twice")
        return self

    def loop(self) -> LoopConfig:
        """The fit as a run, so that what it shares with other runs is computed once."""
        given = {name: getattr(self, name) for name in Given.model_fields}
        budget = Budget(rows=self.rows, rounds=1, optimizer_steps=self.optimizer_steps)
        return LoopConfig(**given, budget=budget, score=self.score, choose=Use(step="instructmining-subset"))

    def apart(self, number: int) -> bool:
        return number // 4 % APART == APART - 1


def load_fit(path: Path, changes: list[str] = ()) -> FitConfig:
    """Read the config of a fit."""
    config = read(path, changes, FitConfig)
    check_given(path, config)
    check_steps(path, config.loop())
    return config
