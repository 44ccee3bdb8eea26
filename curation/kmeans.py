"""k-means for pools of any size: trained on a sample that grows, after which each row is given its nearest centroid.

Most iterations of k-means move the centroids a little and cost the same as the first. So the first ones look at few
rows and the last ones at 256 for each centroid, faiss's own number (nested mini-batches: Newling and Fleuret, 2016,
arXiv 1602.02934). The arithmetic is faiss's, on a GPU where there are both, or scikit-learn's where there is no faiss.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin_min, silhouette_score

Backend = Literal["auto", "faiss", "faiss-gpu", "scikit-learn"]

STAGES = ((32, 8), (64, 4), (128, 2), (256, 1))  # rows for each centroid, and iterations over them
MOST = STAGES[-1][0]
CHAIN = 20  # steps by which AFK-MC2 draws a start (Bachem et al., 2016); the stages mend what more would mend
ITERATIONS = 20  # where the sample does not grow
RESTARTS = 3  # where one training takes no time
SMALL = 2_000_000  # rows x centroids that take none
BLOCK = 1 << 15  # rows that are looked at together: 50 MB of 384 dimensions
JUDGED = 10_000  # rows by which a number of clusters is judged; all their distances are computed


@dataclass(frozen=True, slots=True)
class Assigned:
    label: np.ndarray
    """Number of the nearest centroid, int32."""
    distance: np.ndarray
    """Euclidean distance to it, float32."""


def backend_here() -> Backend:
    """The fastest backend that this machine has."""
    if find_spec("faiss") is None:
        return "scikit-learn"
    import faiss

    return "faiss-gpu" if faiss.get_num_gpus() else "faiss"


def settled(backend: Backend) -> Backend:
    """What `auto` means on this machine."""
    return backend_here() if backend == "auto" else backend


def directions(vectors: np.ndarray) -> np.ndarray:
    """Which vectors, of shape (rows, dimensions), can be clustered: those of finite numbers that are not all zero."""
    out = np.zeros(len(vectors), bool)
    for start, block in blocks(vectors):
        largest = np.abs(block).max(axis=1, initial=0.0)
        out[start : start + len(block)] = np.isfinite(largest) & (largest > 0)  # NaN and infinity spread to the maximum
    return out


def blocks(vectors: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The vectors as float32, some rows at a time, each block with the number of its first row."""
    for start in range(0, len(vectors), BLOCK):
        yield start, vectors[start : start + BLOCK].astype(np.float32, copy=False)


def train(
    vectors: np.ndarray, clusters: int, seed: int, backend: Backend, among: np.ndarray | None = None
) -> np.ndarray:
    """Centroids, float32 of shape (clusters or fewer, dimensions); never more than there are vectors.

    `among` are the numbers of the rows to train on, if not all.
    """
    drawn = np.random.default_rng(seed).permutation(len(vectors) if among is None else among)
    clusters = min(clusters, len(drawn))
    drawn = drawn[: MOST * clusters]
    small = len(drawn) * clusters <= SMALL
    if backend == "scikit-learn":
        means = KMeans(clusters, n_init=RESTARTS if small else 1, max_iter=ITERATIONS, random_state=seed)
        return means.fit(vectors[np.sort(drawn)].astype(np.float32)).cluster_centers_.astype(np.float32)
    import faiss

    centroids = None
    for rows, iterations in ((MOST, ITERATIONS),) if small else STAGES:
        means = faiss.Kmeans(
            vectors.shape[1],
            clusters,
            niter=iterations,
            nredo=RESTARTS if small else 1,
            seed=seed + 1,
            init_method=faiss.ClusteringInitMethod_AFK_MC2,
            afkmc2_chain_length=CHAIN,
            min_points_per_centroid=1,
            max_points_per_centroid=rows,
            gpu=backend == "faiss-gpu",
        )
        means.train(vectors[np.sort(drawn[: rows * clusters])].astype(np.float32), init_centroids=centroids)
        centroids = means.centroids
    return centroids


def assign(vectors: np.ndarray, centroids: np.ndarray, backend: Backend) -> Assigned:
    """The nearest centroid of each vector, found block by block."""
    label, distance = np.zeros(len(vectors), np.int32), np.zeros(len(vectors), np.float32)
    nearest = _searcher(centroids, backend)
    for start, block in blocks(vectors):
        end = start + len(block)
        label[start:end], distance[start:end] = nearest(block)
    return Assigned(label, distance)


def _searcher(centroids: np.ndarray, backend: Backend) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    if backend == "scikit-learn":
        return lambda block: pairwise_distances_argmin_min(block, centroids)
    import faiss

    index = faiss.IndexFlatL2(centroids.shape[1])
    index = faiss.index_cpu_to_all_gpus(index) if backend == "faiss-gpu" else index
    index.add(centroids)

    def nearest(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        squared, label = index.search(block, 1)
        return label[:, 0], np.sqrt(np.maximum(squared[:, 0], 0))

    return nearest


def best_by_silhouette(vectors: np.ndarray, most: int, seed: int, backend: Backend, among: np.ndarray) -> int:
    """The number of clusters, of `most`, a half of it, a quarter and so on to 2, with the highest mean silhouette.

    Each is clustered and judged on the same sample of the rows `among`. The smaller of two equally good numbers is
    taken; 1 where there are too few rows to tell.
    """
    drawn = np.random.default_rng(seed).permutation(among)[:JUDGED]
    sample = vectors[np.sort(drawn)].astype(np.float32)
    tried = []
    while most >= 2:
        if most < len(sample):
            label = assign(sample, train(sample, most, seed, backend), backend).label
            if 2 <= len(np.unique(label)) < len(sample):
                tried.append((float(silhouette_score(sample, label)), -most))
        most = most // 2 if most > 3 else most - 1
    return -max(tried)[1] if tried else 1
