"""Records of one question and one answer as columns: what most rows of most files are, without a look at each field."""

import hashlib
import json
from itertools import chain
from typing import Any, Literal

import polars as pl
import pyarrow as pa

from storage.formats import FORMATS, own_columns
from storage.records import Block
from storage.schema import SPOKEN
from storage.turns import Record, Unusable

_SEEN = r"[^\s\x1c-\x1f]"  # what str.strip() leaves

_TEXT = pa.string()
SCHEMAS = {  # of records that may be rows as they are
    "alpaca": pa.schema(
        {"instruction": _TEXT, "input": _TEXT, "output": _TEXT, "system": _TEXT, "history": pa.list_(pa.list_(_TEXT))}
    ),
    "prompt-completion": pa.schema({"prompt": _TEXT, "completion": _TEXT}),
}


def flat_rows(block: Block, format: str, longest: int) -> pl.DataFrame | None:
    """The records that are rows as they are: `place` in the block, `asked`, `answer`, `columns` and `form`.

    All others (what is broken, has more turns, or is over the limit of `longest` characters) are left out. None where
    the format has no such records.
    """
    if format not in SCHEMAS:
        return None
    if block.columns is not None:
        rows, others = _of_columns(block.columns, format), False
    else:
        records = [r if isinstance(r, dict) else {} for r in block.records]
        fields = set(chain.from_iterable(records))
        others = bool(fields - set(FORMATS[format].fields))
        try:
            rows = _of_records(records, fields, format)
        except UnicodeEncodeError:  # half a surrogate pair; what is made record by record is mended
            return None
    seen = {name: pl.col(name).str.contains(_SEEN) for name in ("asked", "more", "answer")}
    both = pl.concat_str("asked", pl.lit("\n"), "more")
    whole = pl.when(seen["asked"] & seen["more"]).then(both).when(seen["asked"]).then("asked").otherwise("more")
    form = pl.concat_str(pl.lit('{"input": '), pl.col("more").str.len_chars().cast(pl.String), pl.lit("}"))
    rows = rows.with_row_index("place").select(
        "place",
        "answer",
        asked=whole,
        form=pl.when(seen["more"]).then(form),
        there=pl.all_horizontal(pl.col("asked", "more", "answer").is_not_null())
        & pl.col("alone")
        & seen["answer"]
        & (seen["asked"] | seen["more"]),
    )
    short = pl.col("asked").str.len_chars() + pl.col("answer").str.len_chars() <= longest
    storable = ~(pl.col("asked").str.contains("\0", literal=True) | pl.col("answer").str.contains("\0", literal=True))
    rows = rows.filter(pl.col("there") & short & storable)
    if not others:
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
    start, middle = pl.lit('[[["user", '), pl.lit(', null], ["assistant", ')
    end = pl.lit(f", null]], {json.dumps(source, ensure_ascii=False)}, null, 0]")
    texts = pl.concat_str(start, _quoted("asked"), middle, _quoted("answer"), end).cast(pl.Binary)
    hashed = hashlib.sha256
    return [hashed(text).hexdigest()[:20] for text in rows.select(texts).to_series().to_list()]


def _quoted(column: str) -> pl.Expr:
    """A text as it is written in JSON."""
    return pl.struct(t=column).struct.json_encode().str.strip_prefix('{"t":').str.strip_suffix("}")


def _of_columns(columns: pa.Table, format: str) -> pl.DataFrame:
    """`asked`, `more` and `answer`, which are null where they are no text, and whether nothing else is said."""
    given = pl.from_arrow(columns)
    if format == "prompt-completion":
        return given.select(asked="prompt", more=pl.lit(""), answer="completion", alone=pl.lit(True))
    system, history = pl.col("system").fill_null("") == "", pl.col("history").list.len().fill_null(0) == 0
    more = pl.col("input").fill_null("")
    return given.select(asked="instruction", more=more, answer="output", alone=system & history)


def _of_records(records: list[Record], fields: set[str], format: str) -> pl.DataFrame:
    """What _of_columns gives."""
    alone, more = [True] * len(records), [""] * len(records)
    if format == "prompt-completion":
        asked, answer = (_texts([r.get(name) for r in records], None) for name in ("prompt", "completion"))
    else:
        asked, answer = (_texts([r.get(name) for r in records], None) for name in ("instruction", "output"))
        if "input" in fields:
            more = _texts([r.get("input") for r in records], "")
        if {"history", "system"} & fields:
            alone = [r.get("history") in (None, []) and r.get("system") in (None, "") for r in records]
    texts = {"asked": asked, "more": more, "answer": answer}
    types = dict.fromkeys(texts, pl.String) | {"alone": pl.Boolean}
    return pl.DataFrame(texts | {"alone": alone}, schema=types)


def _texts(values: list[Any], empty: str | None) -> list[str | None]:
    """Texts as they are, `empty` for null, and None for what is no text."""
    if set(map(type, values)) == {str}:
        return values
    return [v if type(v) is str else empty if v is None else None for v in values]


# ---- and back


def _two(role: str, content: str, asks: str, answers: str) -> pl.Expr:
    """A list of two messages."""
    texts = ((asks, "asked"), (answers, "answer"))
    return pl.concat_list(pl.struct(pl.lit(by).alias(role), pl.col(text).alias(content)) for by, text in texts)


_LENGTH = pl.col("asked").str.len_chars().cast(pl.Int64)
_N = pl.col("form").str.extract(r'"input": (\d+)').cast(pl.Int64)  # characters at the end that were the input
_IS_CUT = _N.is_between(1, _LENGTH)
FLAT = {  # formats that hold a question and an answer, and their fields
    "alpaca": {
        "instruction": pl.when(_IS_CUT).then(pl.col("asked").str.head(_LENGTH - _N).str.strip_suffix("\n"))
        .otherwise("asked"),
        "input": pl.when(_IS_CUT).then(pl.col("asked").str.tail(_N)).otherwise(pl.lit("")),
        "output": pl.col("answer"),
    },
    "prompt-completion": {"prompt": pl.col("asked"), "completion": pl.col("answer")},
    "messages": {"messages": _two("role", "content", "user", "assistant")},
    "sharegpt": {"conversations": _two("from", "value", "human", "gpt")},
}  # fmt: skip


def flat_records(messages: pl.Series, forms: list[str | None], format: str) -> pl.DataFrame | None:
    """The records that shapes.py makes of these rows; None if one of them is not a question and an answer alone."""
    if (messages.list.len() != 2).any():
        return None
    said = messages.explode().struct.unnest()
    roles, contents = said["role"], said["content"]
    plain = (roles.gather_every(2) == "user").all() and (roles.gather_every(2, 1) == "assistant").all()
    if not plain or contents.null_count() or any((said[name] != "").any() for name in SPOKEN):
        return None
    both = pl.DataFrame({"asked": contents.gather_every(2), "answer": contents.gather_every(2, 1)})
    return both.with_columns(form=pl.Series(forms, dtype=pl.String)).select(**FLAT[format])
