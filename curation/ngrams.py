"""How much of a text stands word for word in another: the rule of Tulu 3 (Lambert et al., 2024, arXiv 2411.15124).

A word of a held-out text counts as covered where it stands in a run of n words that the other text has too. Runs that
stand in ten or more held-out texts are what these have in common, no leak, and are not counted.
"""

import polars as pl

from curation.draw import GOLDEN
from curation.shingles import COMMON, normalised


def covered(texts: pl.Series, held: pl.Series, n: int, share: float) -> pl.DataFrame:
    """Columns `text`, `held`, `share`: pairs where more than a share of the held words is covered.

    Texts are numbered in their order. A held text so short that one run alone is more than the share is in no pair: in
    a request of ten words eight are soon alike.
    """
    theirs, mine = _runs(held, n, n / share if share else n), _runs(texts, n, n)
    theirs = theirs.filter(pl.col("text").n_unique().over("run") < COMMON).rename({"text": "held", "words": "of"})
    mine = mine.select("text", "run").join(theirs.select("run").unique(), on="run", how="semi").unique()
    pairs = mine.join(theirs, on="run").sort("text", "held", "place")
    step = (pl.col("place").shift(-1) - pl.col("place")).over("text", "held").fill_null(n)
    return (
        pairs.with_columns(new=pl.min_horizontal(step, pl.lit(n)))
        .group_by("text", "held", maintain_order=True)
        .agg(share=pl.col("new").sum() / pl.col("of").first())
        .filter(pl.col("share") > share)
    )


def _runs(texts: pl.Series, n: int, least: float) -> pl.DataFrame:
    """Each run of n words, hashed: its text, its place, and how many words the text has, which are `least` or more."""
    said = pl.DataFrame({"said": texts})
    split = said.select(text=pl.int_range(pl.len()), word=normalised(pl.col("said")).str.split(" "))
    words = split.with_columns(words=pl.col("word").list.len().cast(pl.Int64))
    words = words.filter(pl.col("words") >= least).explode("word")
    hashed = [pl.col("word").hash(0).shift(-k) * pl.lit(_power(k), dtype=pl.UInt64) for k in range(n)]
    place = pl.int_range(pl.len()).over("text")
    return words.select("text", "words", place=place, run=pl.sum_horizontal(hashed)).filter(
        pl.col("place") + n <= pl.col("words")
    )


def _power(k: int) -> int:
    return pow(int(GOLDEN), k, 2**64)
