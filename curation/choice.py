"""What the steps that choose have in common: their settings, the rows they may take, and the first of an order."""

from collections.abc import Callable

import polars as pl
from pydantic import Field

from curation.step import StepConfig


class ChoiceConfig(StepConfig):
    rows: int = Field(700, ge=1)
    """How many rows are taken in all."""

    round: int = Field(0, ge=0)
    """Turn of the loop, written into the choice."""

    seed: int = Field(0, ge=0)
    """Another seed, another draw."""

    def columns(self) -> tuple[str, ...]:
        return ("split",)


def for_training(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows that may be taken: those kept for validation are left out, where a split was made."""
    return rows.filter(pl.col("split") == "train") if "split" in rows.columns else rows


def take_first(order: pl.DataFrame, cfg: ChoiceConfig) -> pl.DataFrame:
    """The choice that takes the first rows of an order, which has the columns `id`, `why` and `weight`."""
    taken, turn = pl.int_range(pl.len()) < cfg.rows, pl.lit(cfg.round, dtype=pl.Int32)
    return order.select("id", "why", pl.col("weight").cast(pl.Float64), taken=taken, round=turn)


def most_within(budget: int, tokens: Callable[[int], int], rows: int) -> int:
    """The most rows, up to a number, whose choice holds no more tokens than the budget.

    Found by halving: a choice of more rows is taken to hold more tokens.
    """
    low, high = 0, rows
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if tokens(middle) <= budget else (low, middle - 1)
    return low
