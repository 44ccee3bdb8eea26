"""Rows that say the same in other words: their embeddings point the same way (SemDeDup: Abbas et al., 2023).

A large pool is first cut into k-means clusters, and only rows of one cluster are compared, as in the paper (arXiv
2303.09540). A row is compared with all kept rows of its cluster, so each copy is near the row that its reason names.
"""

from collections.abc import Container
from typing import Self

import numpy as np
import polars as pl
from pydantic import Field

from curation.duplicates import best_first
from curation.kmeans import Backend, assign, directions, settled, train
from curation.shingles import normalised, response_text
from curation.step import StepConfig, step

TOGETHER = 2000  # rows compared at once; also about the size of a cluster
EQUAL = 1 - 1e-5  # from here on a cosine is 1: single precision puts that of equal vectors to either side of it


class SemanticDuplicates(StepConfig):
    cosine: float = Field(0.95, gt=0, le=1)
    """Rows at least this similar say the same."""

    same_answer: bool = False
    """Only rows with the same answer are copies; say so where the embeddings are of prompts alone."""

    quality: str = ""
    """Column by which the best row of a group is kept; without one it is the first by round and id."""

    backend: Backend = "auto"
    """What clusters a large pool: faiss-gpu, faiss, scikit-learn, or auto: the first of these that this machine has."""

    def columns(self) -> tuple[str, ...]:
        return (self.quality,) if self.quality else ()

    def settled(self, models: Container[str]) -> Self:
        return self.model_copy(update={"backend": settled(self.backend)})


@step(
    "semantic-duplicates",
    kind="filter",
    scope="dataset",
    reads="embedding",
    writes="semantic_duplicates_group",
    version=2,
)
def drop_semantic_duplicates(rows: pl.DataFrame, cfg: SemanticDuplicates) -> pl.DataFrame:
    """Drop all but the best of every group of rows whose embeddings are near; a row without a vector is kept.

    `semantic_duplicates_group` is the id of the row that was kept, for it and for its copies.
    """
    order = best_first(rows, cfg.quality).to_numpy()
    vectors = rows["embedding"].to_numpy() if rows.height else np.zeros((0, 1), np.float32)
    usable = directions(vectors)
    order = order[usable[order]]
    answers = rows.select(normalised(response_text()).hash(0)).to_series().to_numpy() if cfg.same_answer else None
    stands, cosine = np.arange(rows.height), np.zeros(rows.height)
    for members in _clusters(vectors, order, settled(cfg.backend)):
        kept = members[:0]
        for start in range(0, len(members), TOGETHER):
            kept = _compare(members[start : start + TOGETHER], kept, vectors, answers, cfg.cosine, stands, cosine)
    ids = rows["id"]
    found = pl.DataFrame({"id": ids, "kept": ids[stands], "cosine": cosine.round(3)})
    copied = found.filter(pl.col("id") != pl.col("kept"))["kept"].unique()
    reason = pl.format("semantic-duplicates: says what {} says (cosine {})", "kept", "cosine")
    return rows.with_columns(
        found.select(
            semantic_duplicates_group=pl.when(pl.col("kept").is_in(copied.implode())).then("kept"),
            drop_reason=pl.when(pl.col("id") != pl.col("kept")).then(reason),
        )
    )


def _clusters(vectors: np.ndarray, order: np.ndarray, backend: Backend) -> list[np.ndarray]:
    """The rows of each cluster, in their order."""
    if len(order) <= 2 * TOGETHER:
        return [order] if len(order) else []
    label = assign(vectors[order], train(vectors, len(order) // TOGETHER, 0, backend, order), backend).label
    by_label = np.argsort(label, kind="stable")
    return np.split(order[by_label], np.flatnonzero(np.diff(label[by_label])) + 1)


def _compare(
    block: np.ndarray,
    kept: np.ndarray,
    vectors: np.ndarray,
    answers: np.ndarray | None,
    least: float,
    stands: np.ndarray,
    cosine: np.ndarray,
) -> np.ndarray:
    """The kept rows with those of a block that are near none; writes for the others who stands for them."""
    mine = _units(vectors[block])
    for start in range(0, len(kept), TOGETHER):
        theirs = kept[start : start + TOGETHER]
        alike = _alike(mine, _units(vectors[theirs]), block, theirs, answers)
        best = alike.argmax(axis=1)
        most = alike[np.arange(len(block)), best]
        nearer = (most >= least) & (most > cosine[block])
        stands[block[nearer]], cosine[block[nearer]] = theirs[best[nearer]], most[nearer]
    alike = np.tril(_alike(mine, mine, block, block, answers), -1)
    new = stands[block] == block
    for row in np.flatnonzero(new & (alike >= least).any(axis=1)):
        earlier = np.where(new, alike[row], -1.0)
        if earlier.max() >= least:
            new[row] = False
            stands[block[row]], cosine[block[row]] = block[earlier.argmax()], earlier.max()
    return np.concatenate([kept, block[new]])


def _units(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _alike(
    a: np.ndarray, b: np.ndarray, rows: np.ndarray, others: np.ndarray, answers: np.ndarray | None
) -> np.ndarray:
    alike = a @ b.T
    alike[alike > EQUAL] = 1.0
    return alike if answers is None else np.where(answers[rows][:, None] == answers[others], alike, -1.0)
