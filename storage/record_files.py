"""Records into a file: JSON lines, a JSON array, CSV, Parquet, Arrow or text; packed if its name says so."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from storage.store import StoreError
from storage.turns import Record

KINDS = {
    **dict.fromkeys(("jsonl", "ndjson"), "jsonl"),
    "json": "json",
    **dict.fromkeys(("csv", "tsv"), "csv"),
    "parquet": "parquet",
    **dict.fromkeys(("arrow", "feather"), "arrow"),
    **dict.fromkeys(("txt", "md", "markdown"), "text"),
}
Batch = list[Record] | pl.DataFrame  # columns for JSON alone
Batches = Callable[[], Iterator[Batch]]


def write_records(batches: Batches, path: Path, kind: str, name: str) -> int:
    """Write records and return how many. `batches` gives them anew each time: tables look at all of them first."""
    with path.open("wb") as file:
        packed = _packed(file, name)
        rows = _WRITERS[kind](batches, packed, name)
        if packed is not file:
            packed.close()
    with path.open("rb") as file:  # who packs zstd closes the file with its own
        os.fsync(file.fileno())
    return rows


def _packed(file: BinaryIO, name: str) -> Any:
    last = name.rsplit(".", 1)[-1].lower()
    if last == "gz":
        return gzip.GzipFile(fileobj=file, mode="wb", compresslevel=6, mtime=0)
    if last == "bz2":
        return bz2.BZ2File(file, "wb")
    if last == "xz":
        return lzma.LZMAFile(file, "wb", preset=1)
    if last in ("zst", "zstd"):
        return pa.CompressedOutputStream(pa.PythonFile(file, "w"), "zstd")
    return file


def _lines(batches: Batches, file: Any, name: str) -> int:
    rows = 0
    for batch in batches():
        file.write(_json_lines(batch))
        rows += len(batch)
    return rows


def _array(batches: Batches, file: Any, name: str) -> int:
    rows = 0
    file.write(b"[")
    for batch in batches():
        file.write((b",\n" if rows else b"\n") + _json_lines(batch)[:-1].replace(b"\n", b",\n"))
        rows += len(batch)
    file.write(b"\n]\n")
    return rows


def _json_lines(batch: Batch) -> bytes:
    if isinstance(batch, pl.DataFrame):
        return batch.write_ndjson().encode()
    return b"".join(_json(record) + b"\n" for record in batch)


def _json(record: Record) -> bytes:
    try:
        return orjson.dumps(record)
    except orjson.JSONEncodeError:  # a whole number of more than 64 bits
        return json.dumps(record, ensure_ascii=False).encode()


def _csv(batches: Batches, file: Any, name: str) -> int:
    columns: dict[str, None] = {}
    for batch in batches():
        for record in batch:
            columns |= dict.fromkeys(record)
    rows = 0
    apart = "\t" if ".tsv" in name.lower() else ","
    for batch in batches():
        text = io.StringIO(newline="")
        cells = [[_cell(record.get(column)) for column in columns] for record in batch]
        bare = any("\r" in cell for row in cells for cell in row)  # which it does not quote, and no reader takes
        quoting = csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL
        table = csv.writer(text, delimiter=apart, lineterminator="\n", quoting=quoting)
        if not rows:
            table.writerow(columns)
        table.writerows(cells)
        file.write(text.getvalue().encode())
        rows += len(batch)
    return rows


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(batches: Batches, file: Any, name: str) -> int:
    rows = 0
    for batch in batches():
        for record in batch:
            file.write((b"\n" if rows else b"") + record["text"].encode() + b"\n")
            rows += 1
    return rows


def _parquet(batches: Batches, file: Any, name: str) -> int:
    schema, told = _schema(batches)
    rows = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for table in _tables(batches, schema, told):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _arrow(batches: Batches, file: Any, name: str) -> int:
    schema, told = _schema(batches)
    rows = 0
    with pa.ipc.new_file(file, schema) as writer:
        for table in _tables(batches, schema, told):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _schema(batches: Batches) -> tuple[pa.Schema, set[str]]:
    """The type of each column over all records, and the columns of mixed types, which become JSON."""
    types: dict[str, pa.DataType] = {}
    as_json: set[str] = set()
    for batch in batches():
        for name in {name: None for record in batch for name in record}:
            try:
                found = pa.array([_held(record.get(name), name) for record in batch]).type
                fields = [pa.schema([(name, t)]) for t in (types.get(name, pa.null()), found)]
                types[name] = pa.unify_schemas(fields, promote_options="permissive").field(name).type
            except (pa.ArrowException, OverflowError):
                as_json.add(name)
    as_json |= {name for name, kind in types.items() if _hollow(kind)}
    kinds = {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in types.items()}
    kinds |= dict.fromkeys(as_json, pa.string())
    if not kinds:
        raise StoreError("there is no live row to write; a table needs one to have columns")
    return pa.schema(list(kinds.items())), as_json


def _held(value: Any, name: str) -> Any:
    """Turns with their calls as JSON: what tools are called with has no one type."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
        return [m | {"tool_calls": _cell(m["tool_calls"])} if "tool_calls" in m else m for m in value]
    return value


def _hollow(kind: pa.DataType) -> bool:
    """Whether there are objects without fields in it, which Parquet cannot hold."""
    if pa.types.is_list(kind):
        return _hollow(kind.value_type)
    return pa.types.is_struct(kind) and (not kind.num_fields or any(_hollow(f.type) for f in kind))


def _tables(batches: Batches, schema: pa.Schema, as_json: set[str]) -> Iterator[pa.Table]:
    for batch in batches():
        columns = []
        for field in schema:
            values = [_held(record.get(field.name), field.name) for record in batch]
            if field.name in as_json:
                values = [None if v is None else json.dumps(v, ensure_ascii=False) for v in values]
            columns.append(pa.array(values, field.type))
        yield pa.table(columns, schema=schema)


_WRITERS = {"jsonl": _lines, "json": _array, "csv": _csv, "text": _text, "parquet": _parquet, "arrow": _arrow}
