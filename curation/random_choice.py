"""The baseline that every other choice is held against: the same number of rows, drawn at random."""

import polars as pl

from curation.choice import ChoiceConfig, for_training, take_first
from curation.draw import uniform
from curation.step import step


class Random(ChoiceConfig):
    pass


@step("random", kind="select", scope="dataset", without="messages")
def take_at_random(rows: pl.DataFrame, cfg: Random) -> pl.DataFrame:
    """Take rows uniformly at random; rows that are kept for validation are left out."""
    pool = for_training(rows).select("id")
    order = pool.with_columns(u=pl.Series(uniform(pool["id"], cfg.seed))).sort("u", "id")
    return take_first(order.with_columns(why=pl.lit("drawn at random"), weight=pl.lit(1.0 / max(pool.height, 1))), cfg)
