"""Rows as files that other tools read: every format of formats.py, in JSON lines, JSON, CSV, Parquet, Arrow or text."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from storage.flat import FLAT, flat_records
from storage.preferences import MASK, REJECTED, UNWANTED
from storage.record_files import KINDS, Batch, write_records
from storage.records import plain_suffix
from storage.schema import Messages
from storage.shapes import Shape, plain, tree
from storage.store import Store, StoreError
from storage.turns import Record

FILES = ("alpaca", "sharegpt", "messages", "prompt-completion", "preference", "kto", "oasst", "text")
FOLDERS = ("trl", "axolotl", "llama-factory", "ms-swift", "hf")
_AT_ONCE = 2048  # rows

Row = tuple[str, Messages, Messages | None, bool]  # id, messages, the rejected conversation, whether it is wanted
Origin = tuple[str | None, str | None]  # a row's other columns and its form, both as JSON
_NOTHING: Origin = (None, None)


@dataclass(slots=True)
class Written:
    rows: int
    lost: dict[str, int] = field(default_factory=dict)
    """What the format could not hold, and in how many rows."""
    read_with: str = ""
    """A command or call that reads what was written."""


def export_rows(store: Store, dataset: str, path: Path, format: str = "messages", own: bool = True) -> Written:
    """Write the live rows of a dataset, given by name or id. The file appears when it is whole.

    `own`: with the other columns that the imported records had, and in the form that they had.
    """
    if format not in (*FILES, "parquet"):
        raise StoreError(f"there is no export format {format!r}; there are {', '.join((*FILES, 'parquet', *FOLDERS))}")
    kind = "parquet" if format == "parquet" else KINDS.get(plain_suffix(path.name), "jsonl")
    format = "messages" if format == "parquet" else format
    dataset = rows_of(store, dataset)
    if not path.parent.is_dir():
        raise StoreError(f"there is no folder {path.parent} to write {path.name} to; make it first")
    shape = Shape(format, table=kind not in ("jsonl", "json"))
    if shape.table and format == "oasst":
        raise StoreError(f"{path.name} would be a table, which holds no trees; name a .jsonl or .json file")
    if kind == "text" and format != "text":
        raise StoreError(
            f"{path.name} would be text, which holds no {format}; name a .jsonl file, or use --format text"
        )
    if shape.table and format in ("prompt-completion", "kto", "preference"):
        both = ((messages, rejected or messages) for _, messages, rejected, _ in selected(store, dataset, format))
        shape.lists = not all(plain(messages) and plain(rejected) for messages, rejected in both)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        rows = write_records(lambda: records(store, dataset, shape, own), temporary, kind, path.name)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return Written(rows, dict(shape.lost))


def export_folder(store: Store, dataset: str, path: Path, format: str) -> Written:
    """Write the files and settings of a trainer, or a data set of Hugging Face's `datasets` with its card."""
    from storage.hf_folder import write_hf
    from storage.trainers import write_trainer

    name, dataset = dataset, rows_of(store, dataset)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise StoreError(f"{path} is there already; name a folder that is new or empty")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        if format == "hf":
            written = write_hf(store, dataset, temporary, path, name)
        else:
            written = write_trainer(store, dataset, temporary, path, format)
        if path.is_dir():
            path.rmdir()
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return written


def rows_of(store: Store, dataset: str) -> str:
    """The id of a dataset of rows; refuses what is none."""
    dataset = store.resolve(dataset)
    if (kind := store.manifest(dataset).kind) != "rows":
        raise StoreError(f"{dataset} is a {kind}, not rows; export the dataset that it was made from")
    return dataset


def records(store: Store, dataset: str, shape: Shape, own: bool) -> Iterator[Batch]:
    """The records of a dataset, some at a time, counting in `shape.lost` what they do not hold."""
    origin = origins(store, dataset) if own else {}
    shape.lost = Counter()
    if shape.format == "oasst":
        yield from _trees(store, dataset, origin)
    elif shape.format in FLAT and not shape.table:
        yield from _in_columns(store, dataset, shape, origin)
    else:
        rows = selected(store, dataset, shape.format)
        while some := list(islice(rows, _AT_ONCE)):
            yield [_record(row, shape, origin) for row in some]


def _in_columns(store: Store, dataset: str, shape: Shape, origin: dict[str, Origin]) -> Iterator[Batch]:
    """Records as columns where all of some rows are one question and one answer, and have no columns of their own."""
    for shard in store.shards(dataset, ["id", "messages", "drop_reason"]):
        for rows in shard.filter(pl.col("drop_reason").is_null()).iter_slices(_AT_ONCE):
            told = [origin.get(id, _NOTHING) for id in rows["id"]]
            flat = None
            if not any(columns for columns, _ in told):
                flat = flat_records(rows["messages"], [form for _, form in told], shape.format)
            both = rows.select("id", "messages").iter_rows() if flat is None else ()
            yield flat if flat is not None else [_record((*row, None, True), shape, origin) for row in both]


def _record(row: Row, shape: Shape, origin: dict[str, Origin]) -> Record:
    id, messages, rejected, wanted = row
    columns, form = origin.get(id, _NOTHING)
    record = shape.record(id, messages, json.loads(form) if form else {}, rejected, wanted)
    for name, value in json.loads(columns).items() if columns else ():
        if name in record:
            shape.lost[f"column {name!r} is left out: the format has a field of that name"] += 1
        else:
            record[name] = value
    return record


def selected(store: Store, dataset: str, format: str) -> Iterator[Row]:
    """The rows that a format writes: the live ones; for kto the unwanted too; for preference those of pairs."""
    if format == "preference":
        yield from pairs(store, dataset)
        return
    for rows in store.shards(dataset, ["id", "messages", "drop_reason"]):
        unwanted = pl.col("drop_reason").is_in([REJECTED, UNWANTED]) if format == "kto" else pl.lit(False)
        kept = rows.filter(pl.col("drop_reason").is_null() | unwanted)
        for id, messages, reason in kept.select("id", "messages", "drop_reason").iter_rows():
            yield id, messages, None, reason is None


def pairs(store: Store, dataset: str) -> Iterator[Row]:
    """Live rows that were made of another with the same prompt, whose answer is the rejected one."""
    rows = store.read(dataset, ["id", "messages", "parent_id", "method", "drop_reason"])
    both = (
        rows.filter(pl.col("drop_reason").is_null() & pl.col("method").ne_missing(MASK))
        .join(rows.select(parent_id="id", parent="messages"), on="parent_id", how="inner", maintain_order="left")
        .select("id", "messages", "parent")
    )
    found = 0
    for id, messages, parent in both.iter_rows():
        if _asked(messages) == _asked(parent) and messages[-1] != parent[-1]:
            found += 1
            yield id, messages, parent, True
    if not found:
        raise StoreError(
            f"{dataset} holds no pair: no live row answers the prompt of the row that it was made of otherwise; "
            "import preferences, or correct some rows first"
        )


def _asked(messages: Messages) -> list[tuple[Any, Any]]:
    return [(m["role"], m["content"]) for m in messages[:-1]]


def origins(store: Store, dataset: str) -> dict[str, Origin]:
    """The other columns and the form of the record that a row was, by id; only where there is either.

    A row that was put in the place of another (corrected, masked) has what that one had. One that was grown from
    another is a new record, and has nothing.
    """
    found: dict[str, Origin] = {}
    todo, seen = [dataset], set()
    while todo:
        made = store.manifest(todo.pop())
        seen.add(made.id)
        todo += [i for i in made.inputs.values() if i not in seen and store.exists(i)]
        for part in made.side.get("origin", ()):
            said = store.read_shard((part,), ["id", "columns", "form"])
            said = said.with_columns(form=pl.lit(None, dtype=pl.String)) if "form" not in said.columns else said
            told = said.filter(pl.col("columns").is_not_null() | pl.col("form").is_not_null())
            found |= {id: (columns, form) for id, columns, form in told.select("id", "columns", "form").iter_rows()}
    for id, before, same_prompt in _in_place_of(store, dataset) if found else ():
        if before in found:
            columns, form = found[before]
            found[id] = columns, form if same_prompt else _form_of_another_prompt(form)
    return found


def _in_place_of(store: Store, dataset: str) -> Iterator[tuple[str, str, bool]]:
    """Of each row that was put in the place of another: its id, that of the first one, and whether both ask the same.

    The first one says so: it is marked by the step that made the other.
    """
    rows = store.read(dataset, ["id", "parent_id", "method", "drop_reason"])
    made = rows.filter(pl.col("method").is_not_null() & pl.col("parent_id").is_not_null())
    marked = rows.select(parent_id="id", step=pl.col("drop_reason").str.split(":").list.first())
    both = made.join(marked, on="parent_id", how="inner").filter(pl.col("step") == pl.col("method"))
    parents = dict(both.select("id", "parent_id").iter_rows())
    first: dict[str, str] = {}
    for id in parents:
        before = id
        while before in parents:
            before = parents[before]
        first[id] = before
    asked: dict[str, Any] = {}
    wanted = pl.Series([*first, *first.values()], dtype=pl.String).unique()
    for frame in store.shards(dataset, ["id", "messages"]) if first else ():
        here = frame.filter(pl.col("id").is_in(wanted.implode()))
        asked |= {id: _asked(messages) for id, messages in here.iter_rows()}
    for id, before in first.items():
        yield id, before, asked[id] == asked[before]


def _form_of_another_prompt(form: str | None) -> str | None:
    """Where the prompt was changed nobody knows any more where its `input` began: all of it is the instruction."""
    said = {name: value for name, value in json.loads(form or "{}").items() if name != "input"}
    return json.dumps(said) if said else None


def _trees(store: Store, dataset: str, origin: dict[str, Origin]) -> Iterator[list[Record]]:
    """Trees in the order of their first rows: threads with one prompt and, where they had one, one tree's id."""
    groups: dict[tuple[Any, ...], list[tuple[Messages, Record]]] = {}
    for id, messages, _, _ in selected(store, dataset, "oasst"):
        own = json.loads(origin.get(id, _NOTHING)[0] or "{}")
        tree_id = own.get("message_tree_id")
        groups.setdefault((tree_id, messages[0]["role"], messages[0]["content"]), []).append((messages, own))
    yield [tree(threads) for threads in groups.values()]
