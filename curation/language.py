"""Which of 97 languages a row is in, told by py3langid (langid of Lui and Baldwin, 2012), whose model comes with it.

It is sure of a sentence and guesses at a word: texts of few letters are not judged.
"""

from functools import cache
from typing import Any, Literal

import polars as pl
from pydantic import Field

from curation.step import StepConfig, StepError, step


class Language(StepConfig):
    of: Literal["response", "conversation"] = "conversation"
    """What is read: the last message, or all messages."""

    among: str = ""
    """Codes of the languages that it can be, with spaces between; all 97 if none is named."""

    least_letters: int = Field(20, ge=0)
    """Texts with fewer letters than this are not judged."""


@step("language", kind="score", writes="language_code language_probability")
def tell_language(rows: pl.DataFrame, cfg: Language) -> pl.DataFrame:
    """Tell the language of each row, as a code such as `en`, and how probable it is; neither where it is too short."""
    known = _identifier(cfg.among)
    content = pl.col("messages").list.eval(pl.element().struct.field("content").fill_null(""))
    text = content.list.last().fill_null("") if cfg.of == "response" else content.list.join("\n")
    texts = rows.select("id", text=text)
    judged = texts.filter(pl.col("text").str.count_matches(r"\p{L}") >= cfg.least_letters)
    told = [known.classify(t) for t in judged["text"].to_list()]
    found = judged.select(
        "id",
        language_code=pl.Series([code for code, _ in told], dtype=pl.String),
        language_probability=pl.Series([float(p) for _, p in told], dtype=pl.Float64),
    )
    own = ("language_code", "language_probability")
    return rows.drop(own, strict=False).join(found, on="id", how="left", maintain_order="left")


class LanguageFilter(StepConfig):
    keep: str = "en"
    """Codes of the languages that stay, with spaces between."""

    least: float = Field(0.5, ge=0, le=1)
    """A row goes only where its language is at least this probable."""


@step("language-filter", kind="filter", reads="language_code language_probability")
def drop_other_languages(rows: pl.DataFrame, cfg: LanguageFilter) -> pl.DataFrame:
    """Drop the rows that are surely in another language; what was not judged stays."""
    other = ~pl.col("language_code").is_in(cfg.keep.split()) & (pl.col("language_probability") >= cfg.least)
    told = pl.col("language_code").cast(pl.String), pl.col("language_probability").cast(pl.Float64).round(2)
    why = pl.format("language-filter: {} ({}) is none of {}", *told, pl.lit(cfg.keep))
    return rows.with_columns(drop_reason=pl.when(other).then(why))


@cache
def _identifier(among: str) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    known = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if codes := among.split():
        if strange := sorted(set(codes) - set(known.labels)):
            there = " ".join(sorted(known.labels))
            raise StepError(f"language: there is no language {strange[0]!r}; there are {there}")
        known.set_languages(codes)
    return known
