"""Records of one question and one answer as columns: what most rows of most files are, without a look at each field."""

import hashlib
import json
from collections.abc import Callable
from itertools import chain
from typing import Any, Literal

import polars as pl

from storage.formats import FORMATS, own_columns
from storage.records import Block
from storage.turns import Record, Unusable

_SEEN = r"[^\s\x1c-\x1f]"  # what str.strip() leaves


_ESCAPES = {chr(n): f"\\u{n:04x}" for n in range(32)} | {
    "\n": "\\n", "\r": "\\r", "\t": "\\t", "\f": "\\f", "\b": "\\b", '"': '\\"', "\\": "\\\\",
}  # fmt: skip


def flat_rows(block: Block, format: str, longest: int) -> pl.DataFrame | None:
    """The records that are rows as they are: `place` in the block, `asked`, `answer`, `columns` and `form`.

    All others (what is broken, has more turns, or is over the limit of `longest` characters) are left out. None where
    the format has no such records.
    """
    if format not in _COLUMNS:
        return None
    records = block.records
    if set(map(type, records)) != {dict}:
        records = [r if isinstance(r, dict) else {} for r in records]
    fields = set(chain.from_iterable(records))
    asked, more, answer, simple = _COLUMNS[format](records, fields)
    texts = {"asked": asked, "more": more, "answer": answer}
    try:
        rows = pl.DataFrame(texts, schema=dict.fromkeys(texts, pl.String))
    except UnicodeEncodeError:  # half a surrogate pair; what is made record by record is mended
        return None
    seen = {name: pl.col(name).str.contains(_SEEN) for name in rows.columns}
    both = pl.concat_str("asked", pl.lit("\n"), "more")
    whole = pl.when(seen["asked"] & seen["more"]).then(both).when(seen["asked"]).then("asked").otherwise("more")
    form = pl.concat_str(pl.lit('{"input": '), pl.col("more").str.len_chars().cast(pl.String), pl.lit("}"))
    rows = rows.with_row_index("place").select(
        "place",
        "answer",
        asked=whole,
        form=pl.when(seen["more"]).then(form),
        flat=pl.lit(True) if simple is None else pl.Series(simple, dtype=pl.Boolean),
        there=pl.all_horizontal(pl.col(*texts).is_not_null()) & seen["answer"] & (seen["asked"] | seen["more"]),
    )
    short = pl.col("asked").str.len_chars() + pl.col("answer").str.len_chars() <= longest
    storable = ~(pl.col("asked").str.contains("\0", literal=True) | pl.col("answer").str.contains("\0", literal=True))
    rows = rows.filter(pl.col("flat") & pl.col("there") & short & storable)
    if not fields - set(FORMATS[format].fields):
        return rows.select("place", "asked", "answer", "form", columns=pl.lit(None, dtype=pl.String))
    own = [_own(block, place, format) for place in rows["place"]]
    kept = pl.Series([said is not False for said in own], dtype=pl.Boolean)
    rows = rows.with_columns(columns=pl.Series([said or None for said in own], dtype=pl.String)).filter(kept)
    return rows.select("place", "asked", "answer", "form", "columns")


def _own(block: Block, place: int, format: str) -> str | Literal[False] | None:
    """The other columns of a record; False where they cannot be kept, which is said record by record."""
    try:
        return own_columns(block.exact(place), format)
    except Unusable:
        return False


def flat_ids(rows: pl.DataFrame, source: str) -> list[str]:
    """What row_id gives for a user's message and the answer to it: the same JSON, made in columns."""
    start, middle = pl.lit('[[["user", "'), pl.lit('", null], ["assistant", "')
    end = pl.lit(f'", null]], {json.dumps(source, ensure_ascii=False)}, null, 0]')
    escaped = [pl.col(name).str.replace_many(_ESCAPES) for name in ("asked", "answer")]
    texts = rows.select(pl.concat_str(start, escaped[0], middle, escaped[1], end).cast(pl.Binary)).to_series()
    hashed = hashlib.sha256
    return [hashed(text).hexdigest()[:20] for text in texts.to_list()]


def _alpaca(records: list[Record], fields: set[str]) -> tuple[Any, ...]:
    asked, answer = (_texts([r.get(name) for r in records], None) for name in ("instruction", "output"))
    more = _texts([r.get("input") for r in records], "") if "input" in fields else [""] * len(records)
    turns = [not r.get("history") and not r.get("system") for r in records] if {"history", "system"} & fields else None
    return asked, more, answer, turns


def _prompt_completion(records: list[Record], fields: set[str]) -> tuple[Any, ...]:
    asked, answer = (_texts([r.get(name) for r in records], None) for name in ("prompt", "completion"))
    return asked, [""] * len(records), answer, None


def _texts(values: list[Any], empty: str | None) -> list[str | None]:
    """Texts as they are, `empty` for null, and None for what is no text."""
    if set(map(type, values)) == {str}:
        return values
    return [v if type(v) is str else empty if v is None else None for v in values]


_COLUMNS: dict[str, Callable[[list[Record], set[str]], tuple[Any, ...]]] = {
    "alpaca": _alpaca,
    "prompt-completion": _prompt_completion,
}
