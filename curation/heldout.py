"""Rows of the pool that say what a held-out row says: trained on, they would make the report say too much.

Three rules. A prompt is the same but for case, spacing and punctuation; or near, by its shingles (see shingles.py);
or more than half of the words of a held-out prompt or answer stand in it in runs of eight (curation/ngrams.py). Under
sixteen words one run would be more than half, and short requests are often alike: these have the first two rules alone.
"""

import polars as pl
from pydantic import Field

from curation.minhash import nearest
from curation.ngrams import covered
from curation.shingles import LONGEST, common_sentences, distinctive, normalised, prompt_text, response_text
from curation.step import StepConfig, step

QUOTED = ("prompt", "answer")  # rules that speak of runs of words
FOUND = {"row": pl.UInt32, "heldout": pl.UInt32, "rule": pl.String, "share": pl.Float64}


class HeldoutOverlap(StepConfig):
    jaccard: float = Field(0.8, gt=0, le=1)
    """Prompts at least this similar to a held-out one are dropped."""

    shingle: int = Field(5, ge=1, le=LONGEST)
    """Characters in a shingle."""

    ngram: int = Field(8, ge=0, le=50)
    """Words in a run; 0 leaves the rule out."""

    share: float = Field(0.5, ge=0, lt=1)
    """Rows that cover more than this share of a held-out prompt or answer by such runs are dropped."""


@step("heldout-overlap", kind="filter", version=4)
def drop_heldout(rows: pl.DataFrame, cfg: HeldoutOverlap, heldout: pl.DataFrame) -> pl.DataFrame:
    """Drop rows whose prompt is, or nearly is, that of a held-out row, whatever the answers, or that quotes one.

    `contamination` shows the same rows beside what they overlap with.
    """
    held = heldout.sort("id")
    first = overlaps(rows, held, cfg).unique("row", keep="first", maintain_order=True)
    said = pl.format(
        "; {} % of its {} in runs of {} words", (pl.col("share") * 100).round(0).cast(pl.Int64), "rule", cfg.ngram
    )
    ids = held["id"][first["heldout"]]
    why = first.select(
        "row",
        why=pl.format(
            "heldout-overlap: {}{}", ids, pl.when(pl.col("rule").is_in(QUOTED)).then(said).otherwise(pl.lit(""))
        ),
    )
    numbered = rows.select(row=pl.int_range(pl.len(), dtype=pl.UInt32))
    return rows.with_columns(drop_reason=numbered.join(why, on="row", how="left", maintain_order="left")["why"])


def overlaps(rows: pl.DataFrame, held: pl.DataFrame, cfg: HeldoutOverlap) -> pl.DataFrame:
    """Columns `row`, `heldout` (numbers), `rule` and `share`: each row's worst overlap by each rule."""
    mine, theirs = compared(rows, held)
    first = theirs.with_row_index("heldout").unique("asked", keep="first", maintain_order=True)
    same = mine.with_row_index("row").join(first, on="asked", maintain_order="left")
    found = [same.select("row", "heldout", rule=pl.lit("same"), share=pl.lit(1.0))]
    pair = (mine["text"], mine["template"], theirs["text"], theirs["template"])
    near = nearest(*pair, cfg.jaccard, cfg.shingle)
    found.append(near.select(row="text", heldout="held", rule=pl.lit("near"), share="jaccard"))
    if cfg.ngram:
        answers = [f.select(response_text()).to_series() for f in (rows, held)]
        for rule, texts in zip(QUOTED, ((mine["text"], theirs["text"]), answers), strict=True):
            quoted = covered(*texts, cfg.ngram, cfg.share).sort(["share", "held"], descending=[True, False])
            quoted = quoted.unique("text", keep="first", maintain_order=True)
            found.append(quoted.select(row="text", heldout="held", rule=pl.lit(rule), share="share"))
    return pl.concat([f.cast(FOUND) for f in found])


def compared(rows: pl.DataFrame, held: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Of both: `asked`, the prompt; `text`, what is its own in it; `template`, what it has in common with others.

    What sentences are common is counted in the held-out set alone, so that no other row of the pool has a say: a row
    that passed in the pool passes again in every choice from it.
    """
    prompts = [f.select(prompt_text()).to_series().alias("prompt") for f in (rows, held)]
    common = common_sentences(prompts[1])
    mine, theirs = (
        pl.concat([p.to_frame().select(asked=normalised(pl.col("prompt"))), distinctive(p, common)], how="horizontal")
        for p in prompts
    )
    return mine, theirs
