"""A few rows of a dataset, however large it is: what cards show. Only its first and last shards are read."""

import json
import math
import re
from typing import Any

import polars as pl

from storage.schema import instruction, response
from storage.store import Manifest, Shard, Store

CELL = 120  # characters; a longer cell of a table cannot be read in the UI
TABLE_ROWS = 200  # the UI's list of artifacts loads every table in full
DRAWN = 100_000  # rows behind a histogram

# Control characters, and those that reorder the text around them.
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_STRUCTURE = re.compile(r"[!-&(-+\-.:<->@\[-`{-~]")  # all punctuation of ASCII but ' , / ; ?


def sample_rows(store: Store, dataset: str, n: int) -> pl.DataFrame:
    """At most n rows with instruction, response and scores; of a choice, taken rows and some that were not."""
    made = store.manifest(dataset)
    if made.kind != "choice":
        return _readable(spread(_ends(store, made), n))
    choice = numbers_and_words(store, made)
    if choice.is_empty():
        return choice
    source = made.inputs.get("rows", "")
    if store.exists(source):
        said = _readable(_ends(store, store.manifest(source), ["id", "messages"]))
        found = choice.join(said, on="id", how="inner", maintain_order="left") if said.width else choice
        choice = found if found.height else choice
    taken, left = (choice.filter(pl.col("taken") == flag) for flag in (True, False))
    enough = max(n - left.height, n * 7 // 10)
    picked = spread(taken, enough)
    return pl.concat([picked, spread(left, n - picked.height)])


def sample_table(store: Store, dataset: str, rows: int = TABLE_ROWS) -> list[dict[str, Any]]:
    """Rows for a table of the UI: short cells of Markdown that show as text, no numbers that JSON does not have."""
    columns = ["id", "instruction", "response", "drop_reason"]
    table = sample_rows(store, dataset, min(rows, 500))
    first = [c for c in columns if c in table.columns]
    others = [c for c in table.columns if c not in columns and c not in ("method", "parent_id")]
    own = [c for c in others if c not in ("source", "round")]
    ordered = table.select([*first, *own, *[c for c in others if c not in own]])
    return [{name: _cell(value) for name, value in row.items()} for row in ordered.iter_rows(named=True)]


def numbers_and_words(store: Store, made: Manifest, limit: int = DRAWN) -> pl.DataFrame:
    """The columns that hold one number or a short text per row, over shards from both ends up to the limit."""
    wide: set[str] = {"messages"}
    frames: list[pl.DataFrame] = []
    for shard in _both_ends(made.shards, limit):
        for column in sorted({c for part in shard for c in part.columns} - wide - _columns(frames)):
            if store.read_shard(shard, [column]).schema.get(column, pl.Null).is_nested():
                wide.add(column)
        frames.append(store.read_shard(shard, [c for c in _in_order(shard) if c not in wide]))
    return pl.concat(frames, how="diagonal_relaxed").head(limit) if frames else pl.DataFrame()


def _ends(store: Store, made: Manifest, columns: list[str] | None = None) -> pl.DataFrame:
    """The first shard and the last, without embeddings."""
    shards = made.shards if len(made.shards) <= 2 else (made.shards[0], made.shards[-1])
    frames = [store.read_shard(shard, columns) for shard in shards]
    kept = [f.select(c for c in f.columns if c == "messages" or not _is_vector(f.schema[c])) for f in frames]
    return pl.concat(kept, how="diagonal_relaxed") if kept else pl.DataFrame()


def _both_ends(shards: tuple[Shard, ...], limit: int) -> list[Shard]:
    """Shards taken from the front and the back in turn, until they hold as many rows as asked; in their order."""
    picked: set[int] = set()
    rows, front, back = 0, 0, len(shards) - 1
    while rows < limit and front <= back:
        i = front if len(picked) % 2 == 0 else back
        front, back = front + (i == front), back - (i != front)
        picked.add(i)
        rows += shards[i][0].rows if shards[i] else 0
    return [shards[i] for i in sorted(picked)]


def spread(rows: pl.DataFrame, n: int) -> pl.DataFrame:
    """n rows at even distances, the first and the last among them."""
    if rows.height <= n:
        return rows
    return rows[[i * (rows.height - 1) // max(n - 1, 1) for i in range(n)]]


def _readable(rows: pl.DataFrame) -> pl.DataFrame:
    if "messages" not in rows.columns:
        return rows
    said = rows["messages"].to_list()
    return rows.drop("messages").with_columns(
        pl.Series("instruction", [instruction(m) if m else "" for m in said], dtype=pl.String),
        pl.Series("response", [response(m) if m else "" for m in said], dtype=pl.String),
    )


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return as_cell(text if len(text) <= CELL else text[: CELL - 1] + "…")


def as_cell(text: str) -> str:
    """Text as one line of Markdown that shows exactly it.

    The UI renders the cells of a table as Markdown and follows it all the way: it loads an image from anywhere and
    leaves `javascript:` in links. Unlike in HTML, entities would show as written, so this escapes with backslashes.
    """
    return _STRUCTURE.sub(r"\\\g<0>", " ".join(INVISIBLE.sub(code_point, text).split()))


def code_point(found: re.Match[str]) -> str:
    return f"\u27e8U+{ord(found[0]):04X}\u27e9"


def _is_vector(kind: pl.DataType) -> bool:
    return isinstance(kind, pl.List | pl.Array) and kind.inner.is_numeric()


def _columns(frames: list[pl.DataFrame]) -> set[str]:
    return {c for frame in frames for c in frame.columns}


def _in_order(shard: Shard) -> list[str]:
    return list(dict.fromkeys(c for part in shard for c in part.columns))
