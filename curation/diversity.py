"""Diversify and Conquer (Yu et al., 2024, arXiv 2409.11378): k-means, a quality draw per cluster, weights that learn.

    cluster budget   b_j proportional to the weight w_j (round 1: the cluster's share of the rows that were
                     clustered, whatever a filter dropped since), by largest remainder
    draw             without replacement, p proportional to quality q (or softmax(q), the paper's repository)
    after training   w_j <- w_j * exp(s_j / tau), s_j the mean gain of the cluster's rows over the base model

The paper's own update, w_j * s_j / sum(s), is undefined for negative gains; the exponential form is its repair. A
floor of 0.1 / K keeps every cluster in the draw, and a cluster nobody looked at keeps its weight.
"""

from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field
from sklearn.cluster import KMeans

from curation.choice import ChoiceConfig, for_training
from curation.draw import largest_remainder, uniform
from curation.step import StepConfig, StepError, step


class Cluster(StepConfig):
    clusters: int = Field(40, ge=1)
    """Number of clusters; fewer where there are fewer rows."""

    seed: int = 0
    """Seed of the k-means++ starts."""


class QualityDraw(ChoiceConfig):
    quality: str = "clear_confidence"
    """Column that says how good a row is; higher is drawn more often."""

    mode: Literal["proportional", "softmax"] = "proportional"
    """Draw in proportion to quality (the paper) or to its exponential (its repository)."""

    round: int = Field(0, ge=0)
    """Turn of the loop, written into the choice and mixed into the draw."""

    def columns(self) -> tuple[str, ...]:
        return (self.quality, *super().columns())


class Reweight(StepConfig):
    tau: float = Field(1.0, gt=0)
    """How slowly weights follow the gains, in nats per token."""

    floor: float = Field(0.1, ge=0, le=1)
    """Least weight of a cluster, as a share of the uniform weight."""


@step("kmeans-cluster", kind="score", scope="dataset", reads="embedding", writes="diversity_cluster diversity_share")
def cluster(rows: pl.DataFrame, cfg: Cluster) -> pl.DataFrame:
    """k-means clusters in embedding space, fitted on the imported rows; grown rows join the nearest.

    So clusters keep their numbers while the pool grows from round to round. The share of imported rows in a row's
    cluster is written beside it: a filter that mistrusts one kind of row must not thin that kind out of the choice.
    """
    if rows.is_empty():
        nothing = {"diversity_cluster": pl.Int32, "diversity_share": pl.Float64}
        return rows.with_columns(**{name: pl.lit(None, dtype=kind) for name, kind in nothing.items()})
    vectors = rows["embedding"].to_numpy()
    imported = (rows["round"] == 0).to_numpy()
    fit_on = vectors[imported] if imported.any() else vectors
    distinct = len(np.unique(fit_on, axis=0))
    means = KMeans(min(cfg.clusters, distinct), n_init=3, random_state=cfg.seed).fit(fit_on)
    share = np.bincount(means.labels_, minlength=means.n_clusters) / len(means.labels_)
    found = means.predict(vectors)
    return rows.with_columns(
        diversity_cluster=pl.Series(found, dtype=pl.Int32), diversity_share=pl.Series(share[found], dtype=pl.Float64)
    )


@step("kmeans-quality", kind="select", scope="dataset", reads="diversity_cluster diversity_share")
def draw(rows: pl.DataFrame, cfg: QualityDraw, weights: pl.DataFrame | None = None) -> pl.DataFrame:
    """Split the budget over clusters by weight, then draw within each in proportion to quality."""
    if cfg.quality not in rows.columns:
        raise StepError(
            f"kmeans-quality draws by {cfg.quality!r}, which the dataset lacks; run the step that writes it"
        )
    pool = for_training(rows)
    pool = pool.filter(pl.col(cfg.quality).cast(pl.Float64).is_not_nan())  # null neither: such a row is not drawn
    sizes = pool.group_by("diversity_cluster").agg(size=pl.len(), weight=pl.col("diversity_share").first())
    sizes = sizes.sort("diversity_cluster")
    if weights is not None:
        sizes = sizes.drop("weight")
        known = weights.select(pl.col("cluster").cast(pl.Int32).alias("diversity_cluster"), "weight")
        sizes = sizes.join(known, on="diversity_cluster", how="left").with_columns(pl.col("weight").fill_null(0.0))
    budget = largest_remainder(sizes["weight"].to_numpy(), sizes["size"].to_numpy(), cfg.rows)
    sizes = sizes.with_columns(budget=pl.Series(budget))
    ranked = _ranked(pool, cfg).join(sizes, on="diversity_cluster", how="left")
    return ranked.sort("diversity_cluster", "rank").select(
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
        ).fill_null("no quality is known"),
        weight=pl.col("weight").cast(pl.Float64),
        round=pl.lit(cfg.round, dtype=pl.Int32),
    )


@step(
    "reweight-clusters",
    kind="table",
    scope="dataset",
    reads="diversity_cluster diversity_share base_nll",
    writes="cluster weight gain rows",
)
def reweight(
    rows: pl.DataFrame, cfg: Reweight, results: pl.DataFrame, weights: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Next round's cluster weights: up where training gained over the base model, down where it did not."""
    clusters = rows.group_by(cluster="diversity_cluster").agg(weight=pl.col("diversity_share").first()).sort("cluster")
    if weights is not None:
        clusters = clusters.select("cluster").join(weights.select("cluster", "weight"), on="cluster", how="left")
    seen = rows.select("id", "diversity_cluster", "base_nll").join(results.select("id", "student_nll"), on="id")
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
    """Weights times exp(gain / tau); NaN gains keep their weight; floored and summing to 1."""
    seen = np.isfinite(gains)
    new = weights.astype(float).copy()
    if seen.any() and new[seen].sum() > 0:
        raised = new[seen] * np.exp((gains[seen] - gains[seen].max()) / cfg.tau)
        new[seen] = raised / raised.sum() * new[seen].sum()  # what the seen clusters had in all stays theirs
    if new.sum() <= 0:
        new = np.ones_like(new)
    new = new / new.sum() + cfg.floor / max(len(new), 1)
    return new / new.sum()


def _ranked(pool: pl.DataFrame, cfg: QualityDraw) -> pl.DataFrame:
    """Rank within each cluster of a draw without replacement (exponential keys: Efraimidis and Spirakis, 2006)."""
    u = uniform(pool["id"], cfg.seed * 1009 + cfg.round)
    quality = pool[cfg.quality].cast(pl.Float64).fill_nan(None)
    q = quality.to_numpy()
    rate = np.exp(q - np.nanmax(q)) if cfg.mode == "softmax" and len(q) else np.clip(q, 1e-9, None)
    key = np.where(np.isnan(rate), np.inf, -np.log(u) / np.where(np.isnan(rate), 1.0, rate))
    keyed = pool.select("id", "diversity_cluster").with_columns(quality=quality, key=pl.Series(key))
    rank = pl.struct("key", "id").rank("ordinal").over("diversity_cluster")
    return keyed.with_columns(rank=rank)
