"""What makes two prompts alike: the Jaccard similarity of their character shingles (Broder, 1997).

Prompts of one task share their instruction, and would all be alike by it. So a sentence or line that stands in ten or
more different prompts, or in most of a smaller set, is left out of the shingles. Two prompts can be near only if the
same sentences were left out of both: the same question about two passages is two questions.

What is near is found in curation/minhash.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from curation.draw import GOLDEN, mixed

COMMON = 10  # different prompts, of a set of twenty or more
LONGEST = 50  # characters of a shingle
_CHUNK = 1 << 19  # characters looked at together, so that they stay in the processor's cache


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
class Shingles:
    """The shingles of some texts, hashed; a text's own lie between two offsets, and may hold one several times."""

    hashes: np.ndarray
    offsets: np.ndarray

    def sets(self) -> pl.Series:
        """Each text's different shingles, as a list column."""
        lists = pl.DataFrame({"text": np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))})
        lists = lists.with_columns(shingle=pl.Series(self.hashes)).group_by("text", maintain_order=True)
        return lists.agg(pl.col("shingle").unique())["shingle"]


def shingled(texts: pl.Series, size: int, groups: pl.Series | None = None) -> Iterator[Shingles]:
    """The shingles of `size` characters of each text, a chunk of texts at a time.

    Texts of different `groups` share none. A text shorter than a shingle is one shingle.
    """
    told = texts.str.pad_end(size).alias("text").to_frame()
    told = told.with_columns(group=0 if groups is None else groups.hash(0))
    told = told.with_columns(length=pl.col("text").str.len_chars().cast(pl.Int64))
    chunks = told["length"].cum_sum() // _CHUNK
    for chunk in told.with_columns(chunk=chunks).partition_by("chunk", maintain_order=True):
        lengths = chunk["length"].to_numpy()
        codes = np.frombuffer("".join(chunk["text"]).encode("utf-32-le"), np.uint32).astype(np.uint64)
        rolled = codes[: len(codes) - size + 1].copy()
        for place in range(1, size):
            rolled *= GOLDEN
            rolled += codes[place : len(rolled) + place]
        if groups is not None:
            rolled ^= np.repeat(chunk["group"].to_numpy(), lengths)[: len(rolled)]
        inside = np.ones(len(rolled), bool)  # a window that starts where a text ends reaches into the next
        ends = np.cumsum(lengths)[:-1]
        for place in range(1, size):
            inside[ends - place] = False
        yield Shingles(mixed(rolled[inside]), np.concatenate([[0], np.cumsum(lengths - size + 1)]))
