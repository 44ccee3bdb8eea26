"""Preference pairs out of corrections: the answer that was preferred and the one that it replaced, by row id."""

import polars as pl
from pydantic import Field

from curation.step import StepConfig, step


class PreferencePairs(StepConfig):
    least: float = Field(0.0, ge=0, le=1)
    """Least confidence that the chosen answer is the better one."""


@step(
    "preference-pairs",
    kind="table",
    scope="dataset",
    takes="clear_correction_confidence",
    writes="chosen rejected confidence",
)
def pairs(rows: pl.DataFrame, cfg: PreferencePairs) -> pl.DataFrame:
    """The id of each live correction (chosen), of the row it replaced (rejected), and how sure the judge was."""
    known = "clear_correction_confidence" in rows.columns
    sure = pl.col("clear_correction_confidence") if known else pl.lit(None)
    made = rows.filter(pl.col("method") == "clear-correct").select(
        chosen="id", rejected="parent_id", confidence=sure.cast(pl.Float64)
    )
    return made.filter(pl.col("confidence").fill_null(0.0) >= cfg.least).sort("chosen")
