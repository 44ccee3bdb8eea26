"""Exact and near copies of a row: the same question with the same answer, more than once.

A copy has the same answer, but for case, spacing and punctuation. The same question with another answer is no copy but
a conflict, and which of the answers is right is for a judge to say. What makes prompts near is in curation/shingles.py,
how near ones are found in curation/minhash.py.
"""

import polars as pl
from pydantic import Field

from curation.minhash import copies
from curation.shingles import LONGEST, common_sentences, distinctive, normalised, prompt_text, response_text
from curation.step import StepConfig, StepError, step


class Duplicates(StepConfig):
    jaccard: float = Field(0.8, gt=0, le=1)
    """Prompts at least this similar are near copies."""

    shingle: int = Field(5, ge=1, le=LONGEST)
    """Characters in a shingle."""

    quality: str = ""
    """Column by which the best row of a group is kept; without one it is the first by round and id."""

    def columns(self) -> tuple[str, ...]:
        return (self.quality,) if self.quality else ()


@step("duplicates", kind="filter", writes="duplicates_group", scope="dataset", version=3)
def drop_duplicates(rows: pl.DataFrame, cfg: Duplicates) -> pl.DataFrame:
    """Drop all but the best of every group of copies: by quality where a column is named, then by round and id.

    `duplicates_group` is the id of the row that was kept, for it and for its copies.
    """
    asked, answered = normalised(prompt_text()), normalised(response_text())
    texts = rows.select("id", prompt=prompt_text(), asked=asked, answered=answered)[best_first(rows, cfg.quality)]
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


def best_first(rows: pl.DataFrame, quality: str = "") -> pl.Series:
    """The numbers of the rows, by falling quality where a column is named, then by round and id."""
    if quality and quality not in rows.columns:
        raise StepError(f"the best row is kept by {quality!r}, which the dataset lacks; run the step that writes it")
    by = pl.col(quality).cast(pl.Float64).fill_nan(None) if quality else pl.lit(0.0)
    order = rows.select("round", "id", number=pl.int_range(pl.len(), dtype=pl.UInt32), quality=by)
    return order.sort("quality", "round", "id", descending=[True, False, False], nulls_last=True)["number"]


def _near(firsts: pl.DataFrame, cfg: Duplicates) -> pl.DataFrame:
    """Columns `first`, `kept` and `jaccard`: for each row the row that stands for it, itself or one before it."""
    told = distinctive(firsts["prompt"], common_sentences(firsts["prompt"]))
    groups = firsts.select(pl.format("{}\0{}", "answered", told["template"])).to_series()
    found = copies(told["text"], groups, cfg.jaccard, cfg.shingle)
    ids = firsts["id"]
    near = pl.DataFrame({"first": ids[found["copy"]], "kept": ids[found["kept"]], "jaccard": found["jaccard"]})
    near = near.with_columns(jaccard=pl.col("jaccard").map_elements("{:.2f}".format, return_dtype=pl.String))
    return (
        pl.DataFrame({"first": ids}, schema={"first": pl.String})
        .join(near, on="first", how="left")
        .with_columns(kept=pl.coalesce("kept", "first"))
    )
