"""Near texts among many: MinHash with locality-sensitive hashing (Broder, 1997; Indyk and Motwani, 1998), by rensa.

MinHash proposes pairs, and every pair that is returned was verified on the full sets of shingles. Signing and the
search for texts that have any partner are rensa's; only those are looked at again.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl
from rensa import RMinHash, RMinHashDigestMatrix, RMinHashLSH

from curation.shingles import Shingles, shingled

BANDS, ROWS_PER_BAND = 25, 5  # a pair at Jaccard 0.8 is proposed with probability 0.99995, one at 0.4 with 0.23
_SIGNATURE = BANDS * ROWS_PER_BAND
_SEED = 42
_VERIFIED = 100_000  # pairs whose shingles are compared at once
_WORTH = 0.1  # share of the open texts that one look at them all is to decide
_PROPOSED = 1 << 21  # pairs of texts in a band that are looked at together, a pair once for each of its bands


def copies(texts: pl.Series, groups: pl.Series, jaccard: float, size: int) -> pl.DataFrame:
    """Columns `copy`, `kept` and `jaccard`: which text is near an earlier one that is itself no copy.

    Texts are numbered in their order, and the earlier of two near ones of the same group is kept. A text is compared
    with every kept one that MinHash proposes, so each is near the very text that stands for it.
    """
    matrices = [_signed(chunk) for chunk in shingled(texts, size, groups)]
    index = _index(jaccard)
    for start, matrix in zip(np.cumsum([0, *map(_rows, matrices)]), matrices, strict=False):
        index.insert_matrix(matrix, int(start))
    flags = [flag for matrix in matrices for flag in index.query_duplicate_flags_matrix(matrix)]
    del index, matrices
    some = np.flatnonzero(flags)
    open_, sets = _bands_and_sets(texts, groups, some, size)
    found, worth = [_PAIRS], True
    while open_.height and worth:
        before = open_["item"].n_unique()
        kept, near = _firsts(open_, sets, jaccard)
        decided = pl.concat([kept, near["b"]])
        worth = len(decided) > before * _WORTH
        found.append(near)
        open_ = open_.filter(~pl.col("item").is_in(decided.implode()))
        open_ = open_.filter(pl.len().over("band") > 1)
    return pl.concat([*found, *_in_order(open_, sets, jaccard)]).sort("b").rename({"a": "kept", "b": "copy"})


def _firsts(open_: pl.DataFrame, sets: pl.DataFrame, jaccard: float) -> tuple[pl.Series, pl.DataFrame]:
    """Texts that come first in all of their bands, which are near no earlier text; and their copies, the best pairs."""
    firsts = open_.with_columns(first=pl.col("item").min().over("band"))
    earliest = firsts.group_by("item").agg(pl.col("first").min())
    kept = earliest.filter(pl.col("item") == pl.col("first")).select("item")
    proposed = firsts.join(kept, left_on="first", right_on="item", how="semi")
    proposed = proposed.filter(pl.col("item") != pl.col("first")).select(a="first", b="item").unique()
    near = _verified(proposed, sets, sets, jaccard).sort(["jaccard", "a"], descending=[True, False])
    return kept["item"], near.unique("b", keep="first", maintain_order=True)


def _in_order(open_: pl.DataFrame, sets: pl.DataFrame, jaccard: float) -> Iterator[pl.DataFrame]:
    """The same for texts in families where each waits for the one before it: as many at a time as propose few pairs.

    All pairs of these texts with each other and with the texts kept before them are verified at once; only which of
    them stay depends on their order. A copy is gone before the next texts are looked at.
    """
    done = -1
    while (open_ := open_.filter((pl.len().over("band") > 1) & (pl.col("item").max().over("band") > done))).height:
        earlier = pl.col("item").rank("ordinal").over("band").cast(pl.Int64) - 1
        waiting = open_.with_columns(earlier=earlier).filter(pl.col("item") > done)
        pairs = waiting.group_by("item").agg(pl.col("earlier").sum()).sort("item")
        some = pairs.filter((pl.col("earlier").cum_sum() <= _PROPOSED) | (pl.int_range(pl.len()) == 0))["item"]
        last = int(some[-1])
        now = waiting.filter(pl.col("item") <= last).select("item", "band")
        proposed = open_.filter(pl.col("item") <= last).join(now, on="band", suffix="_b")
        proposed = proposed.filter(pl.col("item") < pl.col("item_b")).select(a="item", b="item_b").unique()
        near = _verified(proposed, sets, sets, jaccard).sort(["b", "jaccard", "a"], descending=[False, True, False])
        copied: set[int] = set()
        stands = []
        for a, b in near.select("a", "b").iter_rows():  # those before b are decided when it is its turn
            first = b not in copied and a not in copied
            stands.append(first)
            copied.update([b] if first else [])
        yield near.filter(pl.Series(stands, dtype=pl.Boolean))
        open_, done = open_.filter(~pl.col("item").is_in(list(copied))), last


def nearest(
    texts: pl.Series, groups: pl.Series, held: pl.Series, held_groups: pl.Series, jaccard: float, size: int
) -> pl.DataFrame:
    """Columns `text`, `held` and `jaccard`: for each text that is near a held one, the nearest such.

    Compared are texts of one group, and those of no group ("") with all.
    """
    index = _index(jaccard)
    start = 0
    for chunk in shingled(held, size):
        matrix = _signed(chunk)
        index.insert_matrix(matrix, start)
        start += _rows(matrix)
    flags: list[bool] = []
    for chunk in shingled(texts, size):
        flags += index.query_duplicate_flags_matrix_one_shot(_signed(chunk))  # also those near each other
    mine, sets = _bands_and_sets(texts, None, np.flatnonzero(flags), size)
    theirs, held_sets = _bands_and_sets(held, None, np.arange(len(held)), size)
    mine = mine.with_columns(group=groups.gather(mine["item"]))
    theirs = theirs.with_columns(group=held_groups.gather(theirs["item"]))
    proposed = mine.join(theirs, on="band", suffix="_held")
    alike = (pl.col("group") == pl.col("group_held")) | (pl.col("group") == "") | (pl.col("group_held") == "")
    proposed = proposed.filter(alike).select(a="item_held", b="item").unique()
    near = _verified(proposed, held_sets, sets, jaccard).sort(["jaccard", "a"], descending=[True, False])
    return near.unique("b", keep="first", maintain_order=True).select(text="b", held="a", jaccard="jaccard")


_PAIRS = pl.DataFrame(schema={"a": pl.Int64, "b": pl.Int64, "jaccard": pl.Float64})


def _index(jaccard: float) -> RMinHashLSH:
    return RMinHashLSH(jaccard, _SIGNATURE, BANDS)


def _signed(shingles: Shingles) -> RMinHashDigestMatrix:
    offsets = shingles.offsets.astype(np.uint64)
    return RMinHash.digest_matrix_from_flat_token_hashes(shingles.hashes, offsets, _SIGNATURE, _SEED)


def _rows(matrix: RMinHashDigestMatrix) -> int:
    return matrix.len()


def _bands_and_sets(
    texts: pl.Series, groups: pl.Series | None, some: np.ndarray, size: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Of some texts: (item, band) for each of their bands, and (item, shingles)."""
    bands, sets = [pl.Series([], dtype=pl.UInt64)], [pl.Series([], dtype=pl.List(pl.UInt64))]
    for chunk in shingled(texts[some], size, None if groups is None else groups[some]):
        signature = np.array(_signed(chunk).to_rows(), np.uint64).reshape(-1, BANDS, ROWS_PER_BAND)
        parts = pl.DataFrame({str(i): signature[:, :, i].ravel() for i in range(ROWS_PER_BAND)})
        number = pl.Series(np.tile(np.arange(BANDS), len(signature)))
        bands.append(parts.with_columns(number=number).hash_rows(0))
        sets.append(chunk.sets())
    items = pl.Series(some, dtype=pl.Int64)
    banded = pl.DataFrame({"item": np.repeat(some, BANDS).astype(np.int64), "band": pl.concat(bands)})
    return banded, pl.DataFrame({"item": items, "shingles": pl.concat(sets)})


def _verified(pairs: pl.DataFrame, sets: pl.DataFrame, others: pl.DataFrame, least: float) -> pl.DataFrame:
    """The pairs (a of `sets`, b of `others`) whose Jaccard similarity is at least `least`."""
    near = [_PAIRS]
    for some in pairs.iter_slices(_VERIFIED):
        both = some.join(sets, left_on="a", right_on="item").join(others, left_on="b", right_on="item", suffix="_b")
        shared = pl.col("shingles").list.set_intersection("shingles_b").list.len()
        either = pl.col("shingles").list.len() + pl.col("shingles_b").list.len() - shared
        near.append(both.select("a", "b", jaccard=shared / either).filter(pl.col("jaccard") >= least))
    return pl.concat(near)
