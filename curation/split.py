"""The validation split, cut from the pool by a hash of what a row asks: no row changes sides when the pool grows.

Rows that ask the same but for case, spacing and punctuation stay together. Near copies may not: run `duplicates` first.
"""

import hashlib

import polars as pl
from pydantic import Field

from curation.shingles import normalised, prompt_text
from curation.step import StepConfig, step


class Split(StepConfig):
    share: float = Field(0.05, ge=0, le=1)
    """Share of different prompts that become validation rows."""

    salt: str = "0"
    """Another salt gives another split."""


@step("split", kind="score", writes="split")
def split(rows: pl.DataFrame, cfg: Split) -> pl.DataFrame:
    """Say of each row whether it is for `train` or `validation`; rows that ask the same are on the same side.

    A row that a step made is never for validation, where a decision would judge its own work. Where it asks what falls
    to that side it is `aside`, neither trained on nor read.
    """
    asked = rows.select(normalised(prompt_text())).to_series()
    sides = ["validation" if _place(text, cfg.salt) < cfg.share else "train" for text in asked]
    side = (
        pl.when(pl.col("parent_id").is_null())
        .then(pl.Series(sides, dtype=pl.String))
        .otherwise(pl.Series(["aside" if s == "validation" else s for s in sides], dtype=pl.String))
    )
    return rows.with_columns(split=side)


def _place(text: str, salt: str) -> float:
    """A place between 0 and 1 that depends on nothing but the text and the salt."""
    digest = hashlib.sha256(f"{salt}\n{text}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
