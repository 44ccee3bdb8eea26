"""k-means clusters in embedding space: fitted once, kept as a table of centroids, and given to whatever rows come.

Weights of clusters are learnt from round to round, and mean something only while clusters stay what they were. So a
pool that has grown or lost rows is not clustered anew: each row is given the nearest of the centroids that were kept,
and a row that was there keeps its cluster.
"""

from collections.abc import Container
from typing import Self

import numpy as np
import polars as pl
from pydantic import Field

from curation.kmeans import Backend, assign, best_by_silhouette, directions, settled, train
from curation.step import StepConfig, StepError, step


class Cluster(StepConfig):
    clusters: int = Field(40, ge=1)
    """Number of clusters; fewer where there are fewer different rows."""

    silhouette: bool = False
    """Take the number with the highest silhouette on a sample: of `clusters`, a half of it, a quarter and so on."""

    backend: Backend = "auto"
    """What computes: faiss-gpu, faiss, scikit-learn, or auto: the first of these that this machine has."""

    seed: int = Field(0, ge=0)
    """Seed of the samples and the starts."""

    def settled(self, models: Container[str]) -> Self:
        return self.model_copy(update={"backend": settled(self.backend)})


@step(
    "kmeans-centroids",
    kind="table",
    scope="dataset",
    reads="embedding",
    writes="cluster share centroid",
    without="messages",
)
def fit(rows: pl.DataFrame, cfg: Cluster) -> pl.DataFrame:
    """Fit k-means clusters on the imported rows: a table of their centroids, and each one's share of these rows.

    `kmeans-cluster` gives rows their clusters by it, also rows that came later. A row whose vector is missing, zero or
    not finite has no say.
    """
    vectors, usable = _vectors(rows)
    return _fitted(rows, vectors, usable, cfg)


@step(
    "kmeans-cluster",
    kind="score",
    scope="dataset",
    reads="embedding",
    writes="diversity_cluster diversity_share diversity_distance",
    without="messages",
    version=2,
)
def cluster(rows: pl.DataFrame, cfg: Cluster, centroids: pl.DataFrame | None = None) -> pl.DataFrame:
    """Give each row its k-means cluster by its embedding: of kept `centroids`, or of ones fitted on the imported rows.

    The share of imported rows in a row's cluster is written beside it: a filter that mistrusts one kind of row must not
    thin that kind out of the choice. So is its distance to the centre, by which typical rows are found. A row whose
    vector is missing, zero or not finite has no cluster.
    """
    vectors, usable = _vectors(rows)
    if centroids is None:
        centroids = _fitted(rows, vectors, usable, cfg)
    if lost := sorted({"cluster", "share", "centroid"} - set(centroids.columns)):
        raise StepError(f"kmeans-cluster: the table of centroids lacks {lost}; make it with kmeans-centroids")
    places = centroids["centroid"].to_numpy()
    known = usable if centroids.height else np.zeros(rows.height, bool)
    number, share = np.full(rows.height, -1), np.zeros(rows.height)
    distance = np.zeros(rows.height, np.float32)
    if known.any():
        if places.shape[1] != vectors.shape[1]:
            raise StepError(
                f"kmeans-cluster: the centroids have {places.shape[1]} dimensions and the embeddings "
                f"{vectors.shape[1]}; make the centroids of these embeddings with kmeans-centroids"
            )
        where = slice(None) if known.all() else known
        found = assign(vectors[where], places, settled(cfg.backend))
        number[where], share[where] = (centroids[c].to_numpy()[found.label] for c in ("cluster", "share"))
        distance[where] = found.distance
    has_one = pl.when(pl.Series(known, dtype=pl.Boolean))
    return rows.with_columns(
        diversity_cluster=has_one.then(pl.Series(number, dtype=pl.Int32)),
        diversity_share=has_one.then(pl.Series(share, dtype=pl.Float64)),
        diversity_distance=has_one.then(pl.Series(distance, dtype=pl.Float32)),
    )


def _vectors(rows: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings, and which of them can be clustered."""
    vectors = rows["embedding"].to_numpy() if rows.height else np.zeros((0, 1), np.float32)
    return vectors, directions(vectors)


def _fitted(rows: pl.DataFrame, vectors: np.ndarray, usable: np.ndarray, cfg: Cluster) -> pl.DataFrame:
    """Columns `cluster`, `share` and `centroid`; no cluster is empty of the rows that it was fitted on."""
    imported = usable & (rows["round"] == 0).to_numpy()
    among = np.flatnonzero(imported if imported.any() else usable)
    places, share = np.zeros((0, vectors.shape[1]), np.float32), np.zeros(0)
    if len(among):
        backend = settled(cfg.backend)
        k = best_by_silhouette(vectors, cfg.clusters, cfg.seed, backend, among) if cfg.silhouette else cfg.clusters
        places = train(vectors, k, cfg.seed, backend, among)
        given = vectors if len(among) == len(vectors) else vectors[among]
        rows_of = np.bincount(assign(given, places, backend).label, minlength=len(places))
        places, share = places[rows_of > 0], rows_of[rows_of > 0] / len(among)  # equal rows need no two clusters
    table = pl.DataFrame({"share": share}).with_row_index("cluster").cast({"cluster": pl.Int32})
    return table.with_columns(centroid=pl.Series(places, dtype=pl.Array(pl.Float32, places.shape[1])))
