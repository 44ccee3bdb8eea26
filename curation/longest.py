"""Long Is More for Alignment (Zhao et al., 2024, arXiv 2402.04833): the rows with the longest responses.

On open-ended instructions it beat rows picked by hand (LIMA) and by GPT-3.5 (AlpaGasus). Where the responses are labels
it says nothing: it takes the rows with the longest labels.

Length is counted in characters, which need no tokenizer: the choice is the same for every model.
"""

import polars as pl
from pydantic import Field

from curation.choice import ChoiceConfig, for_training, take_first
from curation.draw import uniform
from curation.shingles import response_text
from curation.step import step


class Longest(ChoiceConfig):
    rows: int = Field(1000, ge=1)
    """How many rows are taken; 1,000 in the paper."""

    seed: int = Field(0, ge=0)
    """Another seed, another draw among responses of the same length."""


@step("longest", kind="select", scope="dataset")
def take_longest(rows: pl.DataFrame, cfg: Longest) -> pl.DataFrame:
    """Take the rows with the longest responses, in characters; rows that are kept for validation are left out."""
    pool = for_training(rows).select("id", length=response_text().str.len_chars())
    order = pool.with_columns(u=pl.Series(uniform(pool["id"], cfg.seed))).sort(
        "length", "u", "id", descending=[True, False, False]
    )
    # Nothing is drawn but ties, so no group has a probability.
    return take_first(order.with_columns(why=pl.format("response of {} characters", "length"), weight=None), cfg)
