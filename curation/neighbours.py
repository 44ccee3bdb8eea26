"""Distance of each vector to its k-th nearest neighbour: exact in blocks, or by faiss where there are many."""

import importlib.util
from typing import Literal

import numpy as np

Search = Literal["auto", "exact", "faiss"]
EXACT_BELOW = 20_000  # up to here the exact search takes seconds
RECALL = 0.97  # of the k neighbours, on a sample, that the approximate search must find; the aim is 0.95 on all
_BLOCK = 1 << 24  # distances that are held at once
_SPARE = 8  # more are looked for than are wanted: a product's rounding puts near ones in another order
_SAMPLE = 512
_SEARCH = 1 << 16  # queries of one call


def settled(search: Search) -> Search:
    """What `auto` means on this machine: faiss where it is installed."""
    if search != "auto":
        return search
    return "faiss" if importlib.util.find_spec("faiss") else "exact"


def kth_distance(vectors: np.ndarray, k: int, search: Search = "exact") -> np.ndarray:
    """Euclidean distance to the k-th nearest other vector, float64, shape (rows,).

    Equal vectors are 0 apart, exactly. NaN where a vector is not finite, or fewer than k others are there.
    """
    out = np.full(len(vectors), np.nan)
    fine = np.flatnonzero(np.isfinite(vectors).all(axis=1))
    if len(fine) <= k:
        return out
    points = np.ascontiguousarray(vectors[fine] if len(fine) < len(vectors) else vectors, dtype=np.float32)
    out[fine] = nearest(points, k, search)[1][:, -1]
    return out


def nearest(
    points: np.ndarray, k: int, search: Search = "exact", rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest others of each point, or of some rows of them, nearest first, and how far they are.

    `points` are finite and more than k. Both results have the shape (rows, k); where the approximate search found
    fewer, the number is -1 and the distance NaN.
    """
    asked, rows = (points, np.arange(len(points))) if rows is None else (points[rows], rows)
    n = min(k + 1 + _SPARE, len(points))  # with the point itself
    few = len(points) <= EXACT_BELOW or search == "exact"
    found = nearest_exact(asked, points, n) if few else nearest_approximate(points, n, asked)
    far = _distances(asked, points, found)
    far[found == rows[:, None]] = -1.0  # itself comes first, before what is equal to it
    order = np.argsort(far, axis=1, kind="stable")[:, 1 : k + 1]
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(far, order, axis=1)


def _distances(asked: np.ndarray, points: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Of each vector to those found for it; by differences, since products round equal vectors apart."""
    out = np.empty(found.shape)
    for a in range(0, len(asked), 1024):
        some = points[found[a : a + 1024]] - asked[a : a + 1024, None]
        out[a : a + 1024] = np.sqrt(np.einsum("ijk,ijk->ij", some, some, dtype=np.float64))
    out[found < 0] = np.nan  # faiss found too few in the lists it looked into; NaN sorts last
    return out


def nearest_exact(queries: np.ndarray, points: np.ndarray, n: int) -> np.ndarray:
    """The n nearest points of each query, a query that is a point among them; shape (queries, n), in no order."""
    squares, out = np.einsum("ij,ij->i", points, points), np.empty((len(queries), n), np.int64)
    block = max(1, _BLOCK // len(points))
    for a in range(0, len(queries), block):
        far = squares - 2 * (queries[a : a + block] @ points.T)
        out[a : a + block] = np.argpartition(far, n - 1, axis=1)[:, :n]
    return out


def nearest_approximate(points: np.ndarray, n: int, queries: np.ndarray) -> np.ndarray:
    """The same by lists of near points.

    So many lists are looked into as it takes to find what the exact search finds of a sample.
    """
    import faiss

    lists = int(2 * np.sqrt(len(points)))
    index = faiss.index_factory(points.shape[1], f"IVF{lists},Flat")
    index.cp.seed, index.cp.max_points_per_centroid = 0, 64
    index.train(points)
    index.add(points)
    sample = points[np.random.default_rng(0).choice(len(points), _SAMPLE, replace=False)]
    known = nearest_exact(sample, points, n)
    index.nprobe = 8
    while index.nprobe < lists and recall(index.search(sample, n)[1], known) < RECALL:
        index.nprobe = min(2 * index.nprobe, lists)
    return np.concatenate([index.search(queries[a : a + _SEARCH], n)[1] for a in range(0, len(queries), _SEARCH)])


def recall(found: np.ndarray, known: np.ndarray) -> float:
    """Share of the known neighbours that were found, both of shape (queries, n)."""
    return float(np.mean([np.isin(k, f).mean() for f, k in zip(found, known, strict=True)]))
