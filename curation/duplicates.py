"""Exact and near copies of a row: the same question with the same answer, more than once.

A copy has the same answer, but for case, spacing and punctuation. The same question with another answer is no copy but
a conflict, and which of the answers is right is for a judge to say. What makes prompts near is in curation/shingles.py.
"""

import polars as pl
from pydantic import Field

from curation.shingles import Index, common_sentences, distinctive, normalised, prompt_text, response_text, shingled
from curation.step import StepConfig, step


class Duplicates(StepConfig):
    jaccard: float = Field(0.8, gt=0, le=1)
    """Prompts at least this similar are near copies."""

    shingle: int = Field(5, ge=1, le=50)
    """Characters in a shingle."""


@step("duplicates", kind="filter", writes="duplicates_group", scope="dataset")
def drop_duplicates(rows: pl.DataFrame, cfg: Duplicates) -> pl.DataFrame:
    """Drop all but the first of every group of copies, in order of round and id.

    `duplicates_group` is the id of the row that was kept, for it and for its copies.
    """
    asked, answered = normalised(prompt_text()), normalised(response_text())
    texts = rows.select("id", "round", prompt=prompt_text(), asked=asked, answered=answered).sort("round", "id")
    texts = texts.with_columns(first=pl.col("id").first().over("asked", "answered"))
    kept = _near(texts.filter(pl.col("id") == pl.col("first")), cfg)
    groups = texts.join(kept, on="first", how="left")

    copied = groups.filter(pl.col("id") != pl.col("kept"))["kept"].unique().to_list()
    near = pl.format("duplicates: near copy of {} (Jaccard {})", "kept", "jaccard")
    exact = pl.format("duplicates: exact copy of {}", "kept")
    reason = pl.when(pl.col("jaccard").is_not_null()).then(near).otherwise(exact)
    marks = groups.select(
        "id",
        duplicates_group=pl.when(pl.col("kept").is_in(copied)).then("kept"),
        drop_reason=pl.when(pl.col("id") != pl.col("kept")).then(reason),
    )
    return rows.drop("drop_reason", "duplicates_group", strict=False).join(
        marks, on="id", how="left", maintain_order="left"
    )


def _near(firsts: pl.DataFrame, cfg: Duplicates) -> pl.DataFrame:
    """For each row, the row that stands for it: itself, or an earlier one that it is nearest to.

    A row is compared only with rows that are kept, so each is near the very row that its reason names.
    """
    told = distinctive(firsts["prompt"], common_sentences(firsts["prompt"]))
    ids = firsts["id"].to_list()
    groups = [f"{answer}\x00{template}" for answer, template in zip(firsts["answered"], told["template"], strict=True)]
    index, kept, jaccard = Index(cfg.jaccard), [], []
    for n, (shingles, bands) in enumerate(shingled(told["text"].to_list(), cfg.shingle)):
        near = index.nearest(groups[n], shingles, bands)
        if near is None:
            index.add(n, groups[n], shingles, bands)
        kept.append(ids[n if near is None else near.item])
        jaccard.append(None if near is None else f"{near.jaccard:.2f}")
    columns = {"first": ids, "kept": kept, "jaccard": jaccard}
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))
