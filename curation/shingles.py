"""How alike two prompts are: the Jaccard similarity of their character shingles, found through MinHash (Broder, 1997).

Prompts of one task share their instruction, and would all be alike by it. So a sentence or line that stands in ten or
more different prompts, or in most of a smaller set, is left out of the shingles. Two prompts can be near only if the
same sentences were left out of both: the same question about two passages is two questions.

MinHash bands only propose pairs; every similarity that is returned was computed on the full sets.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from curation.draw import GOLDEN, mixed

COMMON = 10  # different prompts, of a set of twenty or more
BANDS, ROWS_PER_BAND = 25, 5  # a pair at Jaccard 0.8 is proposed with probability 0.99995, one at 0.4 with 0.23
_CHUNK = 1 << 20  # shingles hashed at once


def prompt_text() -> pl.Expr:
    """Everything said before the response."""
    contents = pl.col("messages").list.eval(pl.element().struct.field("content").fill_null(""))
    return contents.list.head(contents.list.len() - 1).list.join("\n")


def response_text() -> pl.Expr:
    last = pl.col("messages").list.last().struct
    return pl.concat_str(last.field("content"), last.field("tool_calls"), separator="\n", ignore_nulls=True)


def normalised(text: pl.Expr) -> pl.Expr:
    """The text without differences of case, spacing and punctuation around words; `2+2` and `2-2` stay apart."""
    plain = text.str.normalize("NFKC").str.to_lowercase()
    plain = plain.str.replace_all("[\u2018\u2019]", "'").str.replace_all("[\u201c\u201d]", '"')
    bare = plain.str.replace_all(r"""[.,;:!?'")]+(\s|$)""", " ").str.replace_all(r"""(^|\s)['"(¿¡]+""", " ")
    bare = bare.str.replace_all(r"\s+", " ").str.strip_chars()
    return pl.when(bare.str.len_chars() > 0).then(bare).otherwise(plain)


def common_sentences(prompts: pl.Series) -> pl.Series:
    """The normalised sentences that stand in many of these prompts; equal prompts count once."""
    said = pl.DataFrame({"prompt": prompts}).select(whole=normalised(pl.col("prompt")), sentence=_sentences())
    different = said.unique("whole")
    least = min(COMMON, max(3, different.height // 2 + 1))
    spread = different.explode("sentence").group_by("sentence").agg(prompts=pl.col("whole").n_unique())
    return spread.filter(pl.col("prompts") >= least)["sentence"].drop_nulls().sort()


def distinctive(prompts: pl.Series, common: pl.Series) -> pl.DataFrame:
    """Columns `text`, a prompt without common sentences (or whole, if it has no others), and `template`, these."""
    is_common = pl.element().is_in(common.implode())
    said = pl.DataFrame({"prompt": prompts}).select(whole=normalised(pl.col("prompt")), sentence=_sentences())
    told = said.with_columns(
        text=pl.col("sentence").list.eval(pl.element().filter(~is_common)).list.join(" "),
        template=pl.col("sentence").list.eval(pl.element().filter(is_common)).list.join("\n"),
    )
    has_text = pl.col("text") != ""
    return told.select(
        text=pl.when(has_text).then("text").otherwise("whole"),
        template=pl.when(has_text).then("template").otherwise(pl.lit("")),
    )


def _sentences() -> pl.Expr:
    lines = pl.col("prompt").str.replace_all(r"([.:?!])\s+", "$1\n").str.split("\n")
    said = lines.list.eval(normalised(pl.element()))
    return said.list.eval(pl.element().filter(pl.element() != ""))


@dataclass(frozen=True, slots=True)
class Near:
    item: int
    jaccard: float


@dataclass(slots=True)
class Index:
    """Items by their shingles; only items of one group can be near each other."""

    threshold: float
    buckets: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    sets: dict[int, np.ndarray] = field(default_factory=dict)

    def add(self, item: int, group: str, shingles: np.ndarray, bands: list[int]) -> None:
        self.sets[item] = shingles
        for band in bands:
            self.buckets.setdefault((group, band), []).append(item)

    def nearest(self, group: str, shingles: np.ndarray, bands: list[int]) -> Near | None:
        """The item most alike, the earlier added one of two as alike; None if all are below the threshold."""
        proposed = sorted({item for band in bands for item in self.buckets.get((group, band), ())})
        alike = [Near(item, _jaccard(shingles, self.sets[item])) for item in proposed]
        return max((a for a in alike if a.jaccard >= self.threshold), key=lambda a: a.jaccard, default=None)


def shingled(texts: list[str], size: int) -> Iterator[tuple[np.ndarray, list[int]]]:
    """The set of shingles of each text, as sorted hashes, and its MinHash bands."""
    chunk: list[np.ndarray] = []
    held = 0
    for text in texts:
        chunk.append(_shingles(text, size))
        held += len(chunk[-1])
        if held >= _CHUNK:
            yield from zip(chunk, _bands(chunk), strict=True)
            chunk, held = [], 0
    yield from zip(chunk, _bands(chunk), strict=True)


def _shingles(text: str, size: int) -> np.ndarray:
    codes = np.frombuffer(text.ljust(size).encode("utf-32-le"), np.uint32).astype(np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(codes, size)
    powers = GOLDEN ** np.arange(size, dtype=np.uint64)
    return np.unique(mixed((windows * powers).sum(axis=1, dtype=np.uint64)))


def _bands(sets: list[np.ndarray]) -> list[list[int]]:
    if not sets:
        return []
    flat = np.concatenate(sets)
    starts = np.cumsum([0] + [len(s) for s in sets[:-1]])
    salts = mixed(np.arange(1, 2 * BANDS * ROWS_PER_BAND + 1, dtype=np.uint64)).reshape(-1, 2)
    smallest = [np.minimum.reduceat(flat * (factor | np.uint64(1)) + offset, starts) for factor, offset in salts]
    signature = np.stack(smallest, axis=1).reshape(len(sets), BANDS, ROWS_PER_BAND)
    powers = GOLDEN ** np.arange(ROWS_PER_BAND, dtype=np.uint64)
    number = np.arange(BANDS, dtype=np.uint64)
    return mixed((signature * powers).sum(axis=2, dtype=np.uint64) + number).tolist()


def _jaccard(a: np.ndarray, b: np.ndarray) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)
