"""Diversify and Conquer (Yu et al., 2024, arXiv 2409.11378): a quality draw per cluster, weights that learn.

    cluster budget   b_j proportional to the weight w_j (round 1: the cluster's share of the rows that were
                     clustered, whatever a filter dropped since), by largest remainder
    draw             without replacement, p proportional to quality q (or softmax(q), the paper's repository)
    after training   w_j <- w_j * exp(s_j / tau), s_j the mean gain of the cluster's rows over the base model

The paper's own update, w_j * s_j / sum(s), is undefined for negative gains; the exponential form is its repair, and the
paper's (from the least gain where one is negative) and its repository's are there beside it. A floor of 0.1 / K keeps
every cluster in the draw, and a cluster nobody looked at keeps its weight.
"""

from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from curation.choice import ChoiceConfig, for_training
from curation.draw import exponential_keys, largest_remainder, softmax_rates, uniform
from curation.step import StepConfig, StepError, step


class QualityDraw(ChoiceConfig):
    quality: str = "clear_confidence"
    """Column that says how good a row is; higher is drawn more often."""

    mode: Literal["proportional", "softmax"] = "proportional"
    """Draw in proportion to quality (the paper) or to its exponential (its repository)."""

    round: int = Field(0, ge=0)
    """Turn of the loop, written into the choice and mixed into the draw."""

    rounds: int = Field(1, ge=1)
    """Rounds over which the choice is filled, each with as many new rows; 1 draws it whole, and anew each round."""

    def columns(self) -> tuple[str, ...]:
        return (self.quality, *super().columns())


class Reweight(StepConfig):
    update: Literal["exponential", "ratio", "softmax"] = "exponential"
    """Weights times exp(gain / tau); times gain over the sum of gains (the paper); or softmax of gains (its code)."""

    tau: float = Field(1.0, gt=0)
    """How slowly weights follow the gains, in nats per token; `ratio` has no such pace."""

    judged_by: Literal["all", "validation"] = "all"
    """Rows whose gains count; those kept for validation were not trained on, so no wrong answer was learnt by heart."""

    floor: float = Field(0.1, ge=0, le=1)
    """Least weight of a cluster, as a share of the uniform weight."""


@step(
    "kmeans-quality",
    kind="select",
    scope="dataset",
    reads="diversity_cluster diversity_share",
    without="messages",
    version=3,
)
def draw(
    rows: pl.DataFrame, cfg: QualityDraw, weights: pl.DataFrame | None = None, earlier: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Split the budget over clusters by weight, then draw within each in proportion to quality.

    With `rounds` over 1 the rows of the `earlier` choice stay taken and only the round's share of new ones is drawn,
    so that the last round has filled the budget.
    """
    if cfg.quality not in rows.columns:
        raise StepError(
            f"kmeans-quality draws by {cfg.quality!r}, which the dataset lacks; run the step that writes it"
        )
    pool = for_training(rows).drop_nulls("diversity_cluster")
    pool = pool.filter(pl.col(cfg.quality).cast(pl.Float64).is_finite())  # null neither: such a row is not drawn
    wanted, kept = cfg.rows, pool.clear()
    if cfg.rounds > 1:
        before = earlier.filter("taken")["id"] if earlier is not None else pl.Series([], dtype=pl.String)
        kept = pool.filter(pl.col("id").is_in(before.implode()))
        pool = pool.filter(~pl.col("id").is_in(before.implode()))
        wanted = max(cfg.rows * min(max(cfg.round, 1), cfg.rounds) // cfg.rounds - kept.height, 0)
    sizes = pool.group_by("diversity_cluster").agg(size=pl.len(), weight=pl.col("diversity_share").first())
    sizes = sizes.sort("diversity_cluster")
    if weights is not None:
        known = weights.select(pl.col("cluster").cast(pl.Int32).alias("diversity_cluster"), moved="weight")
        # a cluster that had no row when weights were learnt has its share of the pool
        sizes = sizes.join(known, on="diversity_cluster", how="left", maintain_order="left")
        sizes = sizes.with_columns(weight=pl.coalesce("moved", "weight", pl.lit(0.0))).drop("moved")
    budget = largest_remainder(sizes["weight"].to_numpy(), sizes["size"].to_numpy(), wanted)
    sizes = sizes.with_columns(budget=pl.Series(budget, dtype=pl.Int64))
    ranked = _ranked(pool, cfg).join(sizes, on="diversity_cluster", how="left")
    turn = pl.lit(cfg.round, dtype=pl.Int32)
    drawn = ranked.sort("diversity_cluster", "rank").select(
        "id",
        taken=pl.col("rank") <= pl.col("budget"),
        why=pl.format(
            "cluster {}: {} of {} rows by weight {}, drawn with {} {}",
            "diversity_cluster",
            "budget",
            "size",
            pl.col("weight").round(4),
            pl.lit(cfg.quality),
            pl.col("quality").round(3),
        ),
        weight=pl.col("weight").cast(pl.Float64),
        round=turn,
    )
    none = pl.lit(None, dtype=pl.Float64)
    stay = kept.select("id", taken=True, why=pl.lit("taken in an earlier round"), weight=none, round=turn)
    return pl.concat([stay, drawn])


@step(
    "reweight-clusters",
    kind="table",
    scope="dataset",
    reads="diversity_cluster diversity_share base_nll",
    writes="cluster weight gain rows",
    takes="split",
    without="messages",
    version=3,
)
def reweight(
    rows: pl.DataFrame, cfg: Reweight, results: pl.DataFrame, weights: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Next round's cluster weights: up where training gained over the base model, down where it did not."""
    rows = rows.drop_nulls("diversity_cluster")
    clusters = rows.group_by(cluster="diversity_cluster").agg(weight=pl.col("diversity_share").first()).sort("cluster")
    if weights is not None:
        # A cluster whose rows a filter dropped this time keeps its weight for the rounds when they are back.
        learnt = weights.select(pl.col("cluster").cast(pl.Int32), learnt="weight")
        clusters = clusters.join(learnt, on="cluster", how="full", coalesce=True)
        clusters = clusters.select("cluster", weight=pl.coalesce("learnt", "weight"))
    judged = rows
    if cfg.judged_by == "validation":
        if "split" not in rows.columns:
            raise StepError("reweight-clusters judges by validation rows, and no row is one; run `split` first")
        judged = rows.filter(pl.col("split") == "validation")
    seen = judged.select("id", "diversity_cluster", "base_nll").join(results.select("id", "student_nll"), on="id")
    gains = (
        seen.with_columns(gain=pl.col("base_nll") - pl.col("student_nll"))
        .drop_nulls("gain")
        .group_by(cluster="diversity_cluster")
        .agg(gain=pl.col("gain").mean(), rows=pl.len().cast(pl.Int64))
    )
    out = clusters.join(gains, on="cluster", how="left").sort("cluster")
    out = out.with_columns(pl.col("rows", "weight").fill_null(0))
    new = updated_weights(out["weight"].to_numpy(), out["gain"].cast(pl.Float64).fill_null(np.nan).to_numpy(), cfg)
    return out.select("cluster", pl.Series("weight", new, dtype=pl.Float64), "gain", "rows")


def updated_weights(weights: np.ndarray, gains: np.ndarray, cfg: Reweight) -> np.ndarray:
    """The next weights, by `cfg.update`; NaN gains keep their weight; floored and summing to 1.

    `ratio` with a negative gain among them counts gains from the least one.
    """
    seen = np.isfinite(gains)
    new = weights.astype(float).copy()
    if seen.any() and new[seen].sum() > 0:
        s, was = gains[seen], new[seen]
        if cfg.update == "ratio":
            raised = was * (s - min(s.min(), 0.0))
        else:
            raised = np.exp((s - s.max()) / cfg.tau) * (was if cfg.update == "exponential" else 1.0)
        if raised.sum() > 0:  # else no gain tells a cluster from another
            new[seen] = raised / raised.sum() * was.sum()  # what the seen clusters had in all stays theirs
    if new.sum() <= 0:
        new = np.ones_like(new)
    new = new / new.sum() + cfg.floor / max(len(new), 1)
    return new / new.sum()


def _ranked(pool: pl.DataFrame, cfg: QualityDraw) -> pl.DataFrame:
    """The rows with their `quality` and their `rank` in the draw of their cluster."""
    quality = pool[cfg.quality].cast(pl.Float64)
    rate = softmax_rates(quality.to_numpy()) if cfg.mode == "softmax" else quality.to_numpy()
    key = exponential_keys(uniform(pool["id"], cfg.seed, "kmeans-quality", cfg.round), rate)
    keyed = pool.select("id", "diversity_cluster").with_columns(quality=quality, key=pl.Series(key))
    rank = pl.struct("key", "id").rank("ordinal").over("diversity_cluster")
    return keyed.with_columns(rank=rank)
