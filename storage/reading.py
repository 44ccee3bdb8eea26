"""Raw files as rows, rejects and origins, a batch at a time: memory does not grow with the file.

Broken input is normal. Every line that is not blank (every element of a JSON array, every row of a Parquet file)
becomes either a row or a reject that says why. Only an array that stands on one line is held in memory whole.
"""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from storage.arrays import DECODER, Found, in_array, why_not_json
from storage.formats import FORMATS, Unusable, as_messages, own_columns, recognise, storable
from storage.schema import ORIGIN, REJECT, ROW, Messages, row_id
from storage.store import StoreError

BATCH = 2048  # rows and rejects
LONGEST_LINE = 1 << 24  # bytes; a longer one is not parsed
LONGEST_RAW = 2000  # characters of a reject that are kept
_LOOKED_AT = 100  # records from which the format of a file is told
_ARRAY = re.compile(r"\s*\[\s*(\{|$)")


@dataclass(slots=True)
class Batch:
    rows: list[tuple] = field(default_factory=list)
    origins: list[tuple] = field(default_factory=list)
    rejects: list[tuple] = field(default_factory=list)

    def tables(self) -> dict[str, pa.Table]:
        """What there is of each: a batch of rejects alone has no rows."""
        made = {"rows": (self.rows, ROW), "origin": (self.origins, ORIGIN), "rejects": (self.rejects, REJECT)}
        return {name: _table(lines, schema) for name, (lines, schema) in made.items() if lines}


def read_batches(
    path: Path, source: str, format: str, max_chars: int, copies: Counter[str], at: list[int]
) -> Iterator[Batch]:
    """The file in batches. `copies` counts equal rows over all files of an import; at[0] is the byte reached."""
    batch, name = Batch(), storable(path.name.encode("utf-8", "replace").decode())
    for found in find_records(path, at):
        try:
            messages, note = _usable(found, format, max_chars)
        except Unusable as why:
            batch.rejects.append((name, found.line, storable(str(why)), storable(found.raw[:LONGEST_RAW])))
        else:
            id = _next_id(messages, source, copies)
            notes = "; ".join(n for n in (found.note, note) if n) or None
            batch.rows.append((id, messages, source, None, None, 0, None))
            batch.origins.append((id, name, found.line, own_columns(found.record, format), notes))
        if len(batch.rows) + len(batch.rejects) >= BATCH:
            yield batch
            batch = Batch()
    yield batch


def tell_format(path: Path) -> str:
    """The format of a file by its first records that can be parsed."""
    found = (f.record for f in find_records(path, [0]) if isinstance(f.record, dict))
    records = list(islice(found, _LOOKED_AT))
    if told := recognise(records):
        return told
    if next(find_records(path, [0]), None) is None:
        raise StoreError(f"{path} has no usable row: it is empty; export it again")
    has = f"its lines have {', '.join(map(repr, records[0]))}" if records else "no line is a JSON object"
    known = "; ".join(f"{name}: {', '.join(f.needs)}" for name, f in FORMATS.items())
    raise StoreError(f"{path} has no usable row: {storable(has)}; rename the fields to those of a format ({known})")


def find_records(path: Path, at: list[int]) -> Iterator[Found]:
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start == b"PAR1":
            yield from _in_parquet(path, at)
            return
        lines = _lines(gzip.GzipFile(fileobj=file) if start[:2] == b"\x1f\x8b" else file, file, at)
        if first := next(lines, None):
            lines = chain([first], lines)
            yield from in_array(lines) if _ARRAY.match(first.raw) else map(_parsed, lines)


def _usable(found: Found, format: str, max_chars: int) -> tuple[Messages, str | None]:
    if found.reason:
        raise Unusable(found.reason)
    try:
        messages, note = as_messages(found.record, format)
    except RecursionError:
        raise Unusable("not JSON: nested too deeply") from None
    length = sum(len(m["content"]) + len(m["tool_calls"] or "") for m in messages)
    if length > max_chars:
        raise Unusable(f"row of {length:,} characters is over the limit of {max_chars:,}")
    return messages, note


def _next_id(messages: Messages, source: str, copies: Counter[str]) -> str:
    id = row_id(messages, source)
    copies[id] += 1
    return id if copies[id] == 1 else row_id(messages, source, copy=copies[id] - 1)


def _table(rows: list[tuple], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


# ---- Parquet


def _in_parquet(path: Path, at: list[int]) -> Iterator[Found]:
    try:
        table, line = pq.ParquetFile(path), 0
        for batch in table.iter_batches(BATCH):
            for record in batch.to_pylist():
                line += 1
                yield Found(line, json.dumps(record, ensure_ascii=False, default=str), record)
            at[0] = path.stat().st_size * line // table.metadata.num_rows
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise StoreError(f"{path.name} cannot be read as Parquet: {error}; write it again") from error


# ---- lines


def _lines(stream: BinaryIO, file: BinaryIO, at: list[int]) -> Iterator[Found]:
    """Every line that is not blank as text, each in its own encoding: files that were put together mix them."""
    number = 0
    try:
        while line := stream.readline(LONGEST_LINE):
            number += 1
            line, length = _to_its_end(line, stream)
            at[0] = file.tell()
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if length > len(line) + 3:
                start = line[: 4 * LONGEST_RAW].decode("utf-8", "replace")
                yield Found(number, start, reason=f"line of {length:,} bytes is over the limit of {LONGEST_LINE:,}")
            elif line.strip():
                yield _decoded(number, line)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield Found(number + 1, "", reason=f"the compressed file is cut off or damaged: {error}")


def _to_its_end(line: bytes, stream: BinaryIO) -> tuple[bytes, int]:
    """Read on to the end of a long line; only an array is kept whole. Returns what is kept and the true length."""
    length, pieces = len(line), [line]
    while not pieces[-1].endswith(b"\n") and (more := stream.readline(LONGEST_LINE)):
        length += len(more)
        pieces = [*pieces, more] if line.lstrip()[:1] == b"[" else [line, more[-1:]]
    return (b"".join(pieces) if line.lstrip()[:1] == b"[" else line), length


def _decoded(number: int, line: bytes) -> Found:
    try:
        return Found(number, line.decode())
    except UnicodeDecodeError:
        return Found(number, line.decode("latin-1"), note="decoded as Latin-1, since it was no UTF-8")


def _parsed(line: Found) -> Found:
    if line.reason:
        return line
    raw = line.raw.rstrip()
    try:
        return replace(line, raw=raw, record=DECODER.decode(raw))
    except (ValueError, RecursionError) as error:
        return replace(line, raw=raw, reason=why_not_json(error))
