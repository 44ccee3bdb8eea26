"""Spoil a known share of good answers, to learn which scores see it (the setting of CLEAR's section on noise, 20 %).

    kind            what becomes of a row
    swap            its answer is that of another row of the same source, each other row as likely
    span            its answer is a piece of its prompt, as many words as the answer had
    truncation      its answer ends after 30 to 70 % of its words; of a single word, of its characters
    number          one digit of one number in its answer is another digit
    near-duplicate  it stays, and a near copy of its prompt comes beside it, with a swapped answer

A spoilt answer is none that the data gives to the same prompt, case, spacing and punctuation aside. Everything is drawn
by row id. A spoilt row looks like any other: its id is that of its content, the other columns are the row's own, and
the rows come in order of id. Who was spoilt is said in a table apart.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from curation.draw import uniform
from curation.shingles import normalised, prompt_text, response_text
from curation.step import StepConfig, StepError
from storage.schema import ROW, Messages, row_id

Kind = Literal["swap", "span", "truncation", "number", "near-duplicate"]
KINDS: tuple[Kind, ...] = ("swap", "span", "truncation", "number", "near-duplicate")
FLAGS = {"id": pl.String, "spoilt": pl.Boolean, "kind": pl.String, "made_of": pl.String}
TRIES = 8  # answers proposed for a row and kind before another kind is tried
_BATCH = 4096  # rows looked at together
_STRIDE = (5**0.5 - 1) / 2  # steps of the golden section fall far from all earlier ones
_WORD = re.compile(r"\S+")
_NUMBER = re.compile(r"^\s*[0-9]+[.)]\s|([0-9]+(?:[.,][0-9]+)*)", re.MULTILINE)  # the number of a list item is none
_LETTERS = re.compile(r"[^\W\d_]{4,}")


class Noise(StepConfig):
    rate: float = Field(0.2, gt=0, lt=1)
    """Share of the rows that is spoilt."""

    kinds: tuple[Kind, ...] = Field(KINDS, min_length=1)
    """Kinds of noise; each spoilt row gets one of those that are possible for it."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Another seed, other rows and other wrong answers."""

    @field_validator("kinds")
    @classmethod
    def _in_order(cls, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
        return tuple(k for k in KINDS if k in kinds)


@dataclass(frozen=True, slots=True)
class Spoilt:
    rows: pl.DataFrame  # the columns of a row, in order of id
    flags: pl.DataFrame  # one for each row: id, whether it is spoilt, its kind, and the clean row it was made of


def spoil(rows: pl.DataFrame, noise: Noise) -> Spoilt:
    """Spoil round(rate * rows) answers; every other row stays as it is.

    Raises StepError where the rate leaves nothing spoilt or nothing clean, or where too few rows can be spoilt in the
    kinds asked for, such as by swapping answers where all rows of a source have one.
    """
    rows, wanted = rows.select(ROW.names).sort("id"), round(noise.rate * rows.height)
    if not 0 < wanted < rows.height:
        raise StepError(f"rate {noise.rate} of {rows.height} rows spoils {wanted}; some must be spoilt and some not")
    told = _told(rows)
    left = told.with_columns(u=_draw(told, noise, 0)).sort("u", "id")
    found: list[pl.DataFrame] = []
    while (missing := wanted - sum(f.height for f in found)) and left.height:
        some, left = left.head(max(missing, _BATCH)), left.slice(max(missing, _BATCH))
        wrong = _one_each(some, told, noise)
        found.append(some.select("id").join(wrong, on="id", how="inner", maintain_order="left").head(missing))
    if missing:
        raise StepError(
            f"{wanted - missing} of {rows.height} rows can be spoilt by {', '.join(noise.kinds)}, and rate "
            f"{noise.rate} asks for {wanted}; lower --rate or name more --kinds"
        )
    return _assembled(rows, pl.concat(found), noise)


def span(prompt: str, answer: str, u: float) -> list[str]:
    """Pieces of the prompt with as many words as the answer, the first from a drawn place."""
    words = prompt.split()
    n = min(max(len(answer.split()), 1), len(words))
    starts = len(words) - n + 1 if words else 0
    places = [int((u + i * _STRIDE) % 1 * starts) for i in range(min(TRIES, starts))]
    return [" ".join(words[at : at + n]) for at in places]


def truncation(prompt: str, answer: str, u: float) -> list[str]:
    """Beginnings of the answer: after a word in its middle, or the word before; then after a character."""
    share = 0.3 + 0.4 * u
    ends = [m.end() for m in _WORD.finditer(answer)]
    places = range(_within(share, len(ends)), 0, -1) if len(ends) > 1 else ()
    letters = answer.strip()
    by_character = [letters[: _within(share, len(letters))]] if len(letters) > 1 else []
    return [answer[: ends[at - 1]] for at in places][: TRIES - 1] + by_character


def number(prompt: str, answer: str, u: float) -> list[str]:
    """The answer with one digit of one of its numbers changed, which makes it another number."""
    digits = [
        (at, at == m.start(1))
        for m in _NUMBER.finditer(answer)
        if m[1]
        for at in range(*m.span(1))
        if answer[at].isdigit()
    ]
    if not digits:
        return []
    scaled = u * len(digits)
    at, leads = digits[int(scaled)]
    others = [d for d in "0123456789"[leads:] if d != answer[at]]
    return [answer[:at] + others[int(scaled % 1 * len(others))] + answer[at + 1 :]]


def near_copy(text: str, u: float) -> str:
    """The text with a small slip in its last line: two letters exchanged, another case, or another end."""
    head, newline, line = text.rstrip().rpartition("\n")
    words = [m for m in _LETTERS.finditer(line) if _exchanged(m[0]) != m[0]]
    slips = [line[:1].swapcase() + line[1:], line[:-1] if re.search("..[.?!]$", line) else f"{line}."]
    if words:
        word = words[int(u * 3 % 1 * len(words))]
        slips.insert(0, line[: word.start()] + _exchanged(word[0]) + line[word.end() :])
    first = int(u * len(slips))
    slips = [s for s in slips[first:] + slips[:first] if s != line]
    return head + newline + slips[0]


_IN_TEXT: dict[str, Callable[[str, str, float], list[str]]] = {
    "span": span,
    "truncation": truncation,
    "number": number,
}


def _told(rows: pl.DataFrame) -> pl.DataFrame:
    """What is known of each row, sorted so that equal answers of a source stand together.

    `at` is a row's place; `first` and `size` are where its source begins and how many rows that has; `block` and
    `alike` are the same for the rows of the source with its answer.
    """
    last = pl.col("messages").list.last().struct
    known = rows.select(
        "id",
        "source",
        prompt=prompt_text(),
        asked=normalised(prompt_text()),
        plain=normalised(response_text().fill_null("")),
        content=last.field("content").fill_null(""),
        tool_calls=last.field("tool_calls"),
    )
    known = known.sort("source", "plain", "id").with_columns(at=pl.int_range(pl.len()))
    return known.with_columns(
        first=pl.col("at").min().over("source"),
        size=pl.len().over("source").cast(pl.Int64),
        block=pl.col("at").min().over("source", "plain"),
        alike=pl.len().over("source", "plain").cast(pl.Int64),
    )


def _one_each(some: pl.DataFrame, told: pl.DataFrame, noise: Noise) -> pl.DataFrame:
    """A wrong answer for each of some rows: the first kind, in an order drawn for the row, that is possible for it."""
    draws = [_draw(some, noise, 1 + KINDS.index(kind)) for kind in noise.kinds]
    order = np.argsort(np.stack(draws), axis=0)
    found: list[pl.DataFrame] = []
    for turn in order:
        done = pl.concat([f["id"] for f in found]) if found else pl.Series([], dtype=pl.String)
        waiting = ~some["id"].is_in(done.implode())
        for place, kind in enumerate(noise.kinds):
            mine = some.filter(waiting & pl.Series(turn == place))
            found.append(_wrong(mine, told, kind, noise).with_columns(kind=pl.lit(kind)))
    return pl.concat(found)


def _wrong(some: pl.DataFrame, told: pl.DataFrame, kind: str, noise: Noise) -> pl.DataFrame:
    """Columns id, content and tool_calls: the first proposal that is no answer the data gives to the same prompt."""
    proposals = _in_text(some, kind, noise) if kind in _IN_TEXT else _swapped(some, told, noise)
    said = pl.concat_str("content", "tool_calls", separator="\n", ignore_nulls=True)
    proposals = proposals.join(some.select("id", "asked"), on="id", how="left", maintain_order="left")
    proposals = proposals.with_columns(plain=normalised(said))
    given = told.select("asked", "plain").unique()
    wrong = proposals.join(given, on=["asked", "plain"], how="anti", maintain_order="left")
    return wrong.unique("id", keep="first", maintain_order=True).select("id", "content", "tool_calls")


def _in_text(some: pl.DataFrame, kind: str, noise: Noise) -> pl.DataFrame:
    """Proposals made from the text of prompt and answer. An answer that calls a tool is not text alone: none."""
    mine = some.filter((pl.col("content") != "") & pl.col("tool_calls").is_null())
    made = [
        _IN_TEXT[kind](prompt, answer, u)
        for prompt, answer, u in zip(mine["prompt"], mine["content"], _draw(mine, noise, 10), strict=True)
    ]
    proposals = mine.select("id", content=pl.Series(made, dtype=pl.List(pl.String))).explode("content").drop_nulls()
    return proposals.with_columns(tool_calls=pl.lit(None, dtype=pl.String))


def _swapped(some: pl.DataFrame, told: pl.DataFrame, noise: Noise) -> pl.DataFrame:
    """Proposals from other rows of the source. Without a prompt another's text would be as right: none."""
    mine = some.filter((pl.col("prompt").str.strip_chars() != "") & (pl.col("size") > pl.col("alike")))
    first, room, block, alike = (mine[c].to_numpy() for c in ("first", "size", "block", "alike"))
    u, tries = _draw(mine, noise, 11), []
    for i in range(TRIES):
        at = first + ((u + i * _STRIDE) % 1 * (room - alike)).astype(np.int64)
        at += np.where(at >= block, alike, 0)  # over the rows with the same answer
        tries.append(mine.select("id", at=pl.Series(at, dtype=pl.Int64)))
    tried = pl.concat(tries)
    return tried.join(told.select("at", "content", "tool_calls"), on="at", how="left", maintain_order="left").drop("at")


def _assembled(rows: pl.DataFrame, wrong: pl.DataFrame, noise: Noise) -> Spoilt:
    """The rows with the wrong ones in their place, or beside theirs if these are near copies; and the flags."""
    spoilt = rows.join(wrong, on="id", how="inner", maintain_order="left")
    taken, made, flags = set(rows["id"]), [], []
    for row, u in zip(spoilt.to_dicts(), _draw(spoilt, noise, 12), strict=True):
        clean, kind = row["id"], row.pop("kind")
        row["messages"] = _said(row["messages"], row.pop("content"), row.pop("tool_calls"), kind, u)
        row["id"] = _free_id(row, taken)
        taken.add(row["id"])
        made.append(row)
        flags.append((row["id"], True, kind, clean))
    replaced = wrong.filter(pl.col("kind") != "near-duplicate")["id"]
    kept = rows.filter(~pl.col("id").is_in(replaced.implode()))
    untouched = kept.select("id", spoilt=False, kind=pl.lit(None, dtype=pl.String), made_of="id")
    return Spoilt(
        pl.concat([kept, pl.DataFrame(made, schema=rows.schema)]).sort("id"),
        pl.concat([untouched, pl.DataFrame(flags, schema=FLAGS, orient="row")]).sort("id"),
    )


def _said(messages: Messages, content: str, tool_calls: str | None, kind: str, u: float) -> Messages:
    *before, last = messages
    if kind == "near-duplicate":
        before = [*before[:-1], before[-1] | {"content": near_copy(before[-1]["content"] or "", u)}]
    return [*before, last | {"content": content, "tool_calls": tool_calls}]


def _free_id(row: dict[str, Any], taken: set[str]) -> str:
    """The id that an import would give: by content, the next copy where there is an equal row already."""
    ids = (row_id(row["messages"], row["source"], row["parent_id"], copy) for copy in itertools.count())
    return next(i for i in ids if i not in taken)


def _draw(rows: pl.DataFrame, noise: Noise, purpose: int) -> np.ndarray:
    """A number in (0, 1) for each row, another for each purpose."""
    return uniform(rows["id"], noise.seed * 101 + purpose)


def _exchanged(word: str) -> str:
    """The two letters in the middle of a word the other way round."""
    at = len(word) // 2
    return word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :]


def _within(share: float, n: int) -> int:
    """That share of n, at least one and not all."""
    return min(max(int(share * n), 1), n - 1)
