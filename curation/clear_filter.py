"""CLEAR's Auto-Filter (Chen and Mueller, 2024, arXiv 2403.12776): keep the rows whose confidence is over the median.

    keep row i  iff  c_i > gamma,   gamma = median of c over the live rows, or a threshold, or what keeps a given share

It asks no model, so that another threshold costs nothing: what was paid for is in the columns of `clear-score`. The
paper has one median; `within` takes one for each source or cluster.
"""

from typing import Self

import polars as pl
from pydantic import Field, model_validator

from curation.step import StepConfig, StepError, step

LEAST = 0.4  # of the scored rows: where ties leave a strict median fewer than this, they are broken


class ClearFilter(StepConfig):
    threshold: float | None = Field(None, ge=0, le=1)
    """Rows whose confidence is not over this are dropped; the median of the live rows if not given."""

    keep: float | None = Field(None, gt=0, lt=1)
    """In the place of a threshold: the share of the scored rows that is kept, the surest first."""

    within: str | None = None
    """Column of groups with a median or a share each, such as source or diversity_cluster: no kind is dropped whole."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.keep is not None and self.threshold is not None:
            raise ValueError("a threshold says how many are kept: give threshold or keep, not both")
        if self.within and self.threshold is not None:
            raise ValueError("a threshold is the same for all groups: give threshold or within, not both")
        return self

    def columns(self) -> tuple[str, ...]:
        return (self.within,) if self.within else ()


@step(
    "clear-filter",
    kind="filter",
    scope="dataset",
    reads="clear_confidence clear_consistency",
    takes="clear_similarity clear_error",
    writes="clear_threshold clear_tied",
    version=2,
)
def drop_doubtful(rows: pl.DataFrame, cfg: ClearFilter) -> pl.DataFrame:
    """Drop the rows whose confidence is not over the threshold (CLEAR Auto-Filter; the median by default).

    Coarse confidences tie. Where a strict median would keep under 40 % of the rows, ties are broken by consistency,
    then similarity, then id, to keep half, and one at the least. `clear_tied` marks the rows at the threshold.
    """
    if cfg.within and cfg.within not in rows.columns:
        raise StepError(f"clear-filter: no column {cfg.within!r} in the dataset; run the step that writes it first")
    group = pl.col(cfg.within) if cfg.within else pl.lit(0)
    confidence, consistency = (pl.col(f"clear_{name}").cast(pl.Float64) for name in ("confidence", "consistency"))
    similarity = pl.col("clear_similarity").cast(pl.Float64) if "clear_similarity" in rows.columns else pl.lit(0.0)
    order = pl.struct(*(c.fill_null(-1) for c in (confidence, consistency, similarity)), "id")
    place = order.rank("ordinal", descending=True).over(group)
    scored = confidence.count().over(group)
    first = (place <= _most(cfg, scored)) & confidence.is_not_null()
    if cfg.threshold is not None:
        threshold = pl.lit(cfg.threshold, dtype=pl.Float64)
        keep = confidence > threshold
    elif cfg.keep is not None:
        threshold, keep = pl.when(~first).then(confidence).max().over(group), first
    else:
        threshold = confidence.median().over(group)
        over = confidence > threshold
        keep = pl.when(over.sum().over(group) < LEAST * scored).then(first).otherwise(over)
    keep, tied = keep.fill_null(False), (confidence == threshold).fill_null(False)
    return rows.with_columns(
        clear_threshold=threshold,
        clear_tied=tied,
        drop_reason=pl.when(keep).then("drop_reason").otherwise(_why(rows, confidence, threshold, tied)),
    )


def _most(cfg: ClearFilter, scored: pl.Expr) -> pl.Expr:
    """How many rows of a group are kept where they are counted out."""
    kept = scored // 2 if cfg.keep is None else (scored * cfg.keep + 1e-9).floor().cast(pl.Int64)
    return kept.clip(1)


def _why(rows: pl.DataFrame, confidence: pl.Expr, threshold: pl.Expr, tied: pl.Expr) -> pl.Expr:
    under = pl.format("clear-filter: confidence {} is not over {}", confidence.round(3), threshold.round(3))
    tie = pl.format("clear-filter: confidence {} ties with the threshold", confidence.round(3))
    error = pl.col("clear_error") if "clear_error" in rows.columns else pl.lit(None, dtype=pl.String)
    nothing = pl.lit("clear-filter: no confidence could be had")
    return (
        pl.when(confidence.is_null())
        .then(pl.concat_str(nothing, pl.format(" ({})", error).fill_null("")))
        .when(tied)
        .then(tie)
        .otherwise(under)
    )
