"""What of a pool overlaps with a held-out set or a benchmark, pair by pair, for a person to look at.

The rules of `heldout-overlap` and one more: embeddings that point the same way find a paraphrase, and also much that is
no leak. So nothing is dropped here; the table says which rule flagged what, and shows both prompts.
"""

import numpy as np
import polars as pl
from pydantic import Field

from curation.heldout import FOUND, HeldoutOverlap, compared, overlaps
from curation.shingles import prompt_text, response_text
from curation.step import Embedder, step

BLOCK = 1 << 12  # rows, and held-out rows, whose cosines are held at once: 64 MB


class Contamination(HeldoutOverlap):
    cosine: float = Field(0.9, ge=0, le=1)
    """Prompts whose embeddings are at least this similar are flagged; 0 leaves the rule out and needs no model."""

    def unasked(self) -> tuple[str, ...]:
        return () if self.cosine else ("embedder",)


@step("contamination", kind="table", version=2, writes="id heldout source rule share said heldout_said")
def review(rows: pl.DataFrame, cfg: Contamination, heldout: pl.DataFrame, embedder: Embedder) -> pl.DataFrame:
    """A table of the rows that overlap with a held-out row: by which rule, how much, and what both say.

    Rules: `same` prompt, `near` by shingles, `prompt` or `answer` quoted in runs of words, `meaning` by embeddings.
    """
    held = heldout.sort("id")
    found = overlaps(rows, held, cfg)
    if cfg.cosine:
        mine, theirs = (frame["text"].to_list() for frame in compared(rows, held))
        found = pl.concat([found, _alike(embedder.embed(mine), embedder.embed(theirs), cfg.cosine)])
    number = pl.int_range(pl.len(), dtype=pl.UInt32)
    said = [f.select("id", "source", n=number, prompt=prompt_text(), answer=response_text()) for f in (rows, held)]
    both = found.join(said[0], left_on="row", right_on="n").join(
        said[1], left_on="heldout", right_on="n", suffix="_held"
    )
    by_answer = pl.when(pl.col("rule") == "answer")
    return both.sort(["share", "id", "rule"], descending=[True, False, False]).select(
        "id",
        "source",
        "rule",
        pl.col("share").round(3),
        heldout="id_held",
        said=by_answer.then("answer").otherwise("prompt"),
        heldout_said=by_answer.then("answer_held").otherwise("prompt_held"),
    )


def _alike(mine: np.ndarray, theirs: np.ndarray, least: float) -> pl.DataFrame:
    """Each row's nearest held-out row, where their cosine is at least so much."""
    best, most = np.zeros(len(mine), np.int64), np.full(len(mine), -1.0, np.float32)
    for a in range(0, len(mine), BLOCK):
        for b in range(0, len(theirs), BLOCK):
            # a text without a direction is near none
            cosine = np.nan_to_num(mine[a : a + BLOCK] @ theirs[b : b + BLOCK].T, copy=False, nan=-1.0)
            first = cosine.argmax(axis=1)
            here = cosine[np.arange(len(first)), first]
            nearer = np.flatnonzero(here > most[a : a + BLOCK])
            best[a + nearer], most[a + nearer] = first[nearer] + b, here[nearer]
    row = np.flatnonzero(most >= least)
    columns = {"row": row, "heldout": best[row], "rule": ["meaning"] * len(row), "share": most[row]}
    return pl.DataFrame(columns, schema_overrides={"rule": pl.String}).cast(FOUND)
