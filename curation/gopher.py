"""Rules for length and repetition, with the numbers of Gopher (Rae et al., 2021, arXiv 2112.11446, section A.1).

They were found for web pages. Of instruction data they are asked about the response alone, and the shares of repetition
only where it has as many words as a page of Gopher's, since a short answer repeats itself by being short.
"""

from collections.abc import Iterator
from typing import Literal

import polars as pl
from pydantic import Field

from curation.step import StepConfig, step

# Table A1: the share of a text that may be repeated. Lines and paragraphs by number and by characters, n-grams by
# characters; none is counted twice where n-grams overlap.
MOST_REPEATED = {
    "gopher_repeated_lines": 0.30,
    "gopher_repeated_paragraphs": 0.30,
    "gopher_repeated_line_characters": 0.20,
    "gopher_repeated_paragraph_characters": 0.20,
    "gopher_top_2_gram": 0.20,
    "gopher_top_3_gram": 0.18,
    "gopher_top_4_gram": 0.16,
    "gopher_repeated_5_grams": 0.15,
    "gopher_repeated_6_grams": 0.14,
    "gopher_repeated_7_grams": 0.13,
    "gopher_repeated_8_grams": 0.12,
    "gopher_repeated_9_grams": 0.11,
    "gopher_repeated_10_grams": 0.10,
}
STOP_WORDS = ["the", "be", "to", "of", "and", "that", "have", "with"]
BULLETS = r"•●○■□▪▫※·*\u{2013}-"
_AT_ONCE = 4096  # rows whose words are held at one time
_MIX = 1_000_003  # an n-gram's hash is its words' hashes, each times this once more

QUALITY = (
    "gopher_words",
    "gopher_word_length",
    "gopher_hash_symbols",
    "gopher_ellipsis_symbols",
    "gopher_bullets",
    "gopher_ellipses",
    "gopher_with_letters",
    "gopher_stop_words",
)


class GopherQuality(StepConfig):
    of: Literal["response", "conversation"] = "response"
    """What is judged: the last message, or all messages."""

    least_words: int = Field(50, ge=0)
    """Fewer words than this are too few; 50 in the paper. Say 1 where answers may be short."""

    most_words: int = Field(100_000, ge=1)
    """More words than this are too many."""

    least_stop_words: int = Field(2, ge=0, le=8)
    """How many of the, be, to, of, and, that, have, with there must be. They are English: say 0 for other languages."""


@step("gopher-quality", kind="filter", writes=" ".join(QUALITY), version=2)
def drop_unlike_text(rows: pl.DataFrame, cfg: GopherQuality) -> pl.DataFrame:
    """Drop what is too short or long, or does not look like text: Gopher's rules of quality.

    The mean length of words is 3 to 10; at most one # for ten words, and one ellipsis; at most 90 % of lines begin with
    a bullet, and 30 % end in an ellipsis; 80 % of words have a letter.
    """
    text = pl.col("text")
    words, lines = text.str.extract_all(r"\S+"), text.str.extract_all(r"[^\n]*\S[^\n]*")
    n_words, n_lines = words.list.len(), lines.list.len()
    ellipsis = r"\.\.\.|…"
    bare = words.list.eval(pl.element().str.strip_chars(".,;:!?\"'()").str.to_lowercase())
    found = rows.select(text=_text(cfg.of)).select(
        gopher_words=n_words.cast(pl.Int64),
        gopher_word_length=words.list.eval(pl.element().str.len_chars()).list.mean(),
        gopher_hash_symbols=_share(text.str.count_matches("#"), n_words),
        gopher_ellipsis_symbols=_share(text.str.count_matches(ellipsis), n_words),
        gopher_bullets=_share(lines.list.eval(pl.element().str.contains(rf"^\s*[{BULLETS}]")).list.sum(), n_lines),
        gopher_ellipses=_share(lines.list.eval(pl.element().str.contains(rf"({ellipsis})\s*$")).list.sum(), n_lines),
        gopher_with_letters=_share(words.list.eval(pl.element().str.contains(r"\p{L}")).list.sum(), n_words),
        gopher_stop_words=bare.list.set_intersection(pl.lit(STOP_WORDS)).list.len().cast(pl.Int64),
    )
    rules = [
        (pl.col("gopher_words") < cfg.least_words, "{} words are under " + str(cfg.least_words), "gopher_words"),
        (pl.col("gopher_words") > cfg.most_words, "{} words are over " + str(cfg.most_words), "gopher_words"),
        (~pl.col("gopher_word_length").is_between(3, 10), "words of {} letters, not 3 to 10", "gopher_word_length"),
        (pl.col("gopher_hash_symbols") > 0.1, "{} # a word are over 0.1", "gopher_hash_symbols"),
        (pl.col("gopher_ellipsis_symbols") > 0.1, "{} ellipses a word are over 0.1", "gopher_ellipsis_symbols"),
        (pl.col("gopher_bullets") > 0.9, "{} of lines begin with a bullet, over 0.9", "gopher_bullets"),
        (pl.col("gopher_ellipses") > 0.3, "{} of lines end in an ellipsis, over 0.3", "gopher_ellipses"),
        (pl.col("gopher_with_letters") < 0.8, "{} of words have a letter, under 0.8", "gopher_with_letters"),
        (
            pl.col("gopher_stop_words") < cfg.least_stop_words,
            "{} kinds of stop words are under " + str(cfg.least_stop_words),
            "gopher_stop_words",
        ),
    ]
    why = [pl.when(broken).then(pl.format(said, pl.col(column).round(2))) for broken, said, column in rules]
    return _marked(rows, found, "gopher-quality", why)


class GopherRepetition(StepConfig):
    of: Literal["response", "conversation"] = "response"
    """What is judged: the last message, or all messages."""

    least_words: int = Field(50, ge=0)
    """Texts of fewer words are not judged; no page of Gopher's has fewer than 50."""


@step("gopher-repetition", kind="filter", writes=" ".join(MOST_REPEATED))
def drop_repetitious(rows: pl.DataFrame, cfg: GopherRepetition) -> pl.DataFrame:
    """Drop what repeats its lines, paragraphs or runs of words more than the thirteen numbers of Gopher's table A1."""
    texts = rows.select(text=_text(cfg.of))["text"]
    batches = [repetition(batch) for batch in texts.to_frame().iter_slices(_AT_ONCE)]
    found = pl.concat(batches) if batches else pl.DataFrame(schema=_SHARES | {"words": pl.Int64})
    judged, why = pl.col("words") >= cfg.least_words, []
    for column, most in MOST_REPEATED.items():
        said = f"{column.removeprefix('gopher_').replace('_', ' ')}: {{}} of it, over {most}"
        too_much = judged & (pl.col(column) > most)
        why.append(pl.when(too_much).then(pl.format(said, pl.col(column).round(2))))
    return _marked(rows, found, "gopher-repetition", why)


_SHARES = dict.fromkeys(MOST_REPEATED, pl.Float64)


def repetition(texts: pl.DataFrame) -> pl.DataFrame:
    """For the texts in the column `text`: how much of each is said again, and its number of `words`.

    Of lines, paragraphs and runs of five to ten words each occurrence after the first counts; of the run of two to four
    words that comes most often, all do.
    """
    numbered = texts.with_row_index("row")
    out = numbered.select("row")
    for column, what in (("line", r"[^\n]*\S[^\n]*"), ("paragraph", r"(?s)\S.*?(?:\n[ \t]*\n|\z)")):
        said = numbered.select("row", piece=pl.col("text").str.extract_all(what)).explode("piece").drop_nulls()
        said = said.with_columns(piece=pl.col("piece").str.strip_chars())
        said = said.with_columns(size=pl.col("piece").str.len_chars())
        again = pl.int_range(pl.len()).over("row", "piece") > 0
        shares = (
            said.with_columns(again=again)
            .group_by("row")
            .agg(
                pl.col("again").mean().alias(f"gopher_repeated_{column}s"),
                (pl.col("size").filter("again").sum() / pl.col("size").sum()).alias(
                    f"gopher_repeated_{column}_characters"
                ),
            )
        )
        out = out.join(shares, on="row", how="left", maintain_order="left")
    words = numbered.select("row", word=pl.col("text").str.extract_all(r"\S+")).explode("word").drop_nulls()
    words = words.with_columns(
        size=pl.col("word").str.len_chars(),
        hash=pl.col("word").hash(seed=0),
        left=pl.len().over("row") - pl.int_range(pl.len()).over("row"),
    ).drop("word")
    for name, starts in _runs(words):
        share = words.select("row", "size", said=_covered(starts, int(name.split("_")[-2]))).group_by("row")
        told = share.agg((pl.col("size").filter("said").sum() / pl.col("size").sum()).alias(name))
        out = out.join(told, on="row", how="left", maintain_order="left")
    n_words = words.group_by("row").agg(words=pl.len().cast(pl.Int64))
    out = out.join(n_words, on="row", how="left", maintain_order="left")
    return out.select(*[pl.col(c).fill_null(0.0).cast(pl.Float64) for c in MOST_REPEATED], pl.col("words").fill_null(0))


def _runs(words: pl.DataFrame) -> Iterator[tuple[str, pl.Series]]:
    """For each rule about runs of words: its name, and whether a run that counts starts at each word."""
    run = words["hash"]
    for n in range(2, 11):
        run = run * _MIX + words["hash"].shift(1 - n).fill_null(0)
        runs = words.select("row", run=run, whole=pl.col("left") >= n)
        if n < 5:
            times = pl.when("whole").then(pl.len().over("row", "run", "whole")).otherwise(0)
            runs = runs.with_columns(times=times)
            most = runs.with_columns(most=pl.col("times").max().over("row"))
            first = most.with_columns(
                top=pl.col("run").filter((pl.col("times") == pl.col("most")) & pl.col("whole")).first().over("row")
            )
            top = pl.col("whole") & (pl.col("times") > 1) & (pl.col("run") == pl.col("top"))
            yield f"gopher_top_{n}_gram", first.select(top.fill_null(False)).to_series()
        else:
            again = pl.col("whole") & (pl.int_range(pl.len()).over("row", "run", "whole") > 0)
            yield f"gopher_repeated_{n}_grams", runs.select(again).to_series()


def _covered(starts: pl.Series, n: int) -> pl.Series:
    """Whether each word lies in a run of n that starts at one of the marked words; no run reaches into another text."""
    return starts.cast(pl.UInt8).rolling_max(n, min_samples=1).cast(pl.Boolean)


def _text(of: str) -> pl.Expr:
    """What is judged, as one text."""
    content = pl.col("messages").list.eval(pl.element().struct.field("content").fill_null(""))
    return content.list.last().fill_null("") if of == "response" else content.list.join("\n\n")


def _share(count: pl.Expr, of: pl.Expr) -> pl.Expr:
    return pl.when(of > 0).then(count / of).otherwise(0.0)


def _marked(rows: pl.DataFrame, found: pl.DataFrame, name: str, why: list[pl.Expr]) -> pl.DataFrame:
    """The rows with what was found beside them; the first rule that a row breaks is its reason."""
    told = found.select(pl.format(f"{name}: {{}}", pl.coalesce(why))).to_series()
    own = [c for c in found.columns if c != "words"]
    return rows.drop(own, strict=False).with_columns(*found.select(own).get_columns(), drop_reason=told)
