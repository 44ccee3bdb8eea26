"""The baseline that every other choice is held against: the same number of rows, drawn at random."""

import polars as pl
from pydantic import Field

from curation.draw import uniform
from curation.step import StepConfig, step


class Random(StepConfig):
    rows: int = Field(700, ge=1)
    """How many rows are taken."""

    round: int = Field(0, ge=0)
    """Turn of the loop, written into the choice."""

    seed: int = 0
    """Another seed, another draw."""

    def columns(self) -> tuple[str, ...]:
        return ("split",)


@step("random", kind="select", scope="dataset")
def take_at_random(rows: pl.DataFrame, cfg: Random) -> pl.DataFrame:
    """Take rows uniformly at random; rows that are kept for validation are left out."""
    pool = rows.filter(pl.col("split") == "train") if "split" in rows.columns else rows
    order = pool.select("id").with_columns(u=pl.Series(uniform(pool["id"], cfg.seed))).sort("u", "id")
    return order.select(
        "id",
        taken=pl.int_range(pl.len()) < cfg.rows,
        why=pl.lit("drawn at random"),
        weight=pl.lit(1.0 / max(pool.height, 1)),
        round=pl.lit(cfg.round, dtype=pl.Int32),
    )
