"""Files that are tables: CSV, Parquet and Arrow."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from storage.arrays import Found
from storage.store import StoreError
from storage.streams import of_decoder

_AT_ONCE = 2048  # rows of a table that are Python objects at once
csv.field_size_limit(1 << 24)


def in_csv(lines: Iterator[Found], name: str, tabs: bool) -> Iterator[Found]:
    """Rows of a table with a header; an empty cell is an empty text. Lines have their \\r, which a quoted cell keeps.

    A row with a line in it that could not be read is a reject.
    """
    notes: dict[int, str] = {}
    unread: list[Found] = []
    current, blank = [0], [0]

    def texts() -> Iterator[str]:
        for line in lines:
            current[0] = line.line
            if line.reason:
                unread.append(line)
                yield "\n"
                continue
            if not line.raw.strip():
                blank[0] = line.line
            if line.note:
                notes[line.line] = line.note
            yield line.raw.replace("\x00", "") + "\n"

    rows = texts()
    header = next((text for text in rows if text.strip()), "")
    apart = "\t" if tabs else max(",;\t|", key=header.count)
    table = csv.reader(chain([header], rows), delimiter=apart)
    try:
        names = next(table, [])
    except csv.Error as error:
        raise StoreError(f"{name} has a header that is no CSV: {error}; mend its first line") from error
    if unread:
        raise StoreError(f"{name} has a header that cannot be read: {unread[0].reason}; mend its first line")
    at = current[0]
    while True:
        try:
            cells = next(table, None)
        except csv.Error as error:
            yield Found(at + 1, "", reason=f"no CSV: {error}; a quotation mark may lack its end")
            at = current[0]
            unread.clear()
            continue
        start, at = at + 1, current[0]
        if unread:
            yield replace(unread[0], line=start)
            unread.clear()
            continue
        if cells is None:
            return
        if not cells or start == blank[0]:
            continue
        raw = apart.join(cells)
        note = next((notes.pop(n) for n in list(notes) if n <= at), None)
        if len(cells) != len(names):
            yield Found(start, raw, reason=f"{len(cells)} cells, but the header has {len(names)}", note=note)
        else:
            yield Found(start, raw, dict(zip(names, map(_turns, cells), strict=True)), note=note)


def _turns(cell: str) -> Any:
    """A cell that holds turns as JSON, as an export writes them, is a list; all else is text."""
    if cell.startswith(('[{"role":', '[{"from":')):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def in_table(file: BinaryIO, kind: str, name: str) -> Iterator[Found]:
    line = 0
    try:
        for batch in _batches(file, kind):
            batch.validate(full=True)  # a damaged offset would be followed out of the memory
            for record in batch.to_pylist():
                line += 1
                yield Found(line, None, record)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and not of_decoder(error):
            raise
        if not line:
            raise StoreError(f"{name} cannot be read as {kind}: {error}; write it again") from error
        yield Found(line + 1, "", reason=f"the file is damaged and read no further: {str(error)[:200]}")


def _batches(file: BinaryIO, kind: str) -> Iterator[pa.RecordBatch]:
    file.seek(0)
    if kind == "Parquet":
        yield from pq.ParquetFile(file).iter_batches(_AT_ONCE)
        return
    start = file.read(6)
    file.seek(0)
    if start == b"ARROW1":
        reader = pa.ipc.open_file(file)
        batches: Iterator[pa.RecordBatch] = (reader.get_batch(n) for n in range(reader.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(file))
    for batch in batches:
        for start in range(0, batch.num_rows, _AT_ONCE):
            yield batch.slice(start, _AT_ONCE)
