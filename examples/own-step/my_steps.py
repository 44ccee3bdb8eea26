"""Two steps of my own, to copy and change: how many questions an answer asks back, and a filter on it.

thresher check-steps my_steps.py                                  # do they keep their promises?
thresher step asks-back mine --steps my_steps.py                  # a command with help and options, like any other
thresher step asks-back-filter mine.asks-back --most 1 --steps my_steps.py
"""

import polars as pl
from pydantic import Field

from curation.step import StepConfig, step


class AsksBack(StepConfig):
    """The settings: each becomes an option of the command, and the line under it its help."""

    count_all: bool = False
    """Count every question mark of a row of them (???) instead of once."""


@step("asks-back", kind="score", writes="my_questions", good="-my_questions")  # fewer are better
def count_questions(rows: pl.DataFrame, cfg: AsksBack) -> pl.DataFrame:
    """Count the questions in each response."""
    response = pl.col("messages").list.last().struct.field("content").fill_null("")
    return rows.with_columns(my_questions=response.str.count_matches(r"\?" if cfg.count_all else r"\?+"))


class AsksBackFilter(StepConfig):
    most: int = Field(2, ge=0)
    """Rows whose response asks more questions than this are dropped."""


@step("asks-back-filter", kind="filter", reads="my_questions")
def drop_asking(rows: pl.DataFrame, cfg: AsksBackFilter) -> pl.DataFrame:
    """Drop the rows whose response asks too much."""
    why = pl.format("asks-back-filter: {} questions are over {}", "my_questions", pl.lit(cfg.most))
    return rows.with_columns(drop_reason=pl.when(pl.col("my_questions") > cfg.most).then(why).otherwise("drop_reason"))
