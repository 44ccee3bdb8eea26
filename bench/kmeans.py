"""k-means of `curation/kmeans.py` beside faiss's own and scikit-learn's MiniBatchKMeans, on made-up embeddings.

    python bench/kmeans.py --rows 1000000 --clusters 1000

Vectors lie around three times as many centres as there are clusters, with noise of full rank, at unit length, in half
precision. Inertia is over all rows, from the same assignment. The limit of all of it is how fast the machine multiplies
single-precision matrices (sgemm), which is printed first. Seconds are wall clock, and of the processor in brackets:
where others work on the machine only the second tell anything.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import polars as pl
from sklearn.cluster import MiniBatchKMeans

from curation.diversity import QualityDraw, draw
from curation.kmeans import assign, train

DIMENSIONS, LATENT = 384, 64


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--clusters", type=int, default=1_000)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--without-others", action="store_true", help="ours alone: its peak memory is the process's")
    chosen = options.parse_args()
    faiss.omp_set_num_threads(chosen.threads)
    vectors = embeddings(chosen.rows, chosen.clusters)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{chosen.rows:,} x {DIMENSIONS}, k = {chosen.clusters:,}; {vectors.nbytes / 1e9:.2f} GB; before: {peak:.2f} GB"
    )

    centroids = told("trained, ours", lambda: train(vectors, chosen.clusters, 0, "faiss"))
    found = told("assigned, ours", lambda: assign(vectors, centroids, "faiss"))
    told("drawn, ours", lambda: drawn(found.label, chosen.rows // 100))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"train, assign and draw: peak {peak:.2f} GB")
    ours = inertia(found.distance)
    print(f"inertia {ours:.1f}")
    if chosen.without_others:
        return

    block = vectors[:65536].astype(np.float32)
    work = 2 * len(block) * DIMENSIONS * chosen.clusters / 1e9
    sgemm = work / best(lambda: block @ centroids.T)
    assigned = work / best(lambda: assign(block, centroids, "faiss"))
    print(f"sgemm {sgemm:.0f} GFLOP/s of the processor's time; assignment {assigned:.0f}, {assigned / sgemm:.0%} of it")

    single = vectors.astype(np.float32)
    own = faiss.Kmeans(DIMENSIONS, chosen.clusters, niter=20, max_points_per_centroid=256, seed=1)
    told("trained, faiss's own (20 iterations on 256 rows a centroid)", lambda: own.train(single))
    theirs = inertia(assign(vectors, own.centroids, "faiss").distance)
    print(f"inertia {theirs:.1f}: ours is {ours / theirs - 1:+.2%}")
    mini = MiniBatchKMeans(chosen.clusters, random_state=0, n_init=1)
    told("trained, scikit-learn's MiniBatchKMeans", lambda: mini.fit(single))
    theirs = inertia(assign(vectors, mini.cluster_centers_.astype(np.float32), "faiss").distance)
    print(f"inertia {theirs:.1f}: ours is {ours / theirs - 1:+.2%}")


def embeddings(rows: int, clusters: int) -> np.ndarray:
    """Unit vectors, float16, made some at a time."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((3 * clusters, LATENT), dtype=np.float32) * rng.exponential(1, LATENT).astype(
        np.float32
    )
    spread = rng.standard_normal((LATENT, DIMENSIONS), dtype=np.float32)
    out = np.empty((rows, DIMENSIONS), np.float16)
    for start in range(0, rows, 16384):
        n = min(16384, rows - start)
        near = centres[rng.integers(0, len(centres), n)] + 0.7 * rng.standard_normal((n, LATENT), dtype=np.float32)
        some = near @ spread + rng.standard_normal((n, DIMENSIONS), dtype=np.float32)
        out[start : start + n] = some / np.linalg.norm(some, axis=1, keepdims=True)
    return out


def drawn(label: np.ndarray, budget: int) -> pl.DataFrame:
    """The draw of a hundredth of the rows, over the columns that the step is given."""
    numbers = np.random.default_rng(0).integers(0, 2**63, len(label))
    share = np.bincount(label) / len(label)
    rows = pl.DataFrame({"id": pl.Series(numbers).map_elements(lambda n: f"{n:020x}", return_dtype=pl.String)})
    rows = rows.with_columns(
        diversity_cluster=pl.Series(label),
        diversity_share=pl.Series(share[label]),
        clear_confidence=pl.Series(np.random.default_rng(1).random(len(label))),
    )
    return draw.fn(rows, QualityDraw(rows=budget))


def inertia(distance: np.ndarray) -> float:
    return float((distance.astype(np.float64) ** 2).sum())


def told(what: str, do: Callable[[], Any]) -> Any:
    wall, processor = time.perf_counter(), time.process_time()
    out = do()
    print(f"{what}: {time.perf_counter() - wall:.1f} s ({time.process_time() - processor:.1f} s)", flush=True)
    return out


def best(do: Callable[[], object], times: int = 3) -> float:
    """The least of some runs, in seconds of the processor."""
    took = []
    for _ in range(times):
        began = time.process_time()
        do()
        took.append(time.process_time() - began)
    return min(took)


if __name__ == "__main__":
    main()
