"""The records of a file, whatever it is: JSON lines, an array, objects after each other, CSV, Parquet, Arrow, text.

What a file is shows in how it begins; only CSV, text and Markdown are told by their names. Memory does not grow with
the file: records come in blocks.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.json as pj

from storage.arrays import DECODER, Found, in_array, why_not_json
from storage.encodings import Guess
from storage.lines import array_pieces, guess_from, line_groups, text_lines
from storage.passages import passages
from storage.streams import Damaged, Stream, open_stream
from storage.tables import in_csv, in_table
from storage.turns import Unusable

SMALL, LARGE = 2048, 16384  # records of a block: of the first few, so that a small pool is cut as ever, and later
_SMALL_ONES = 8
MOST = 1 << 25  # bytes of a block's lines
_ARRAY = re.compile(rb"\s*\[\s*([{\[]|$)")
_LONG_NUMBER = re.compile(rb"[0-9]{17}")
_SUFFIXES = {"csv": "CSV", "tsv": "CSV", "txt": "text", "md": "Markdown", "markdown": "Markdown"}
_TABLES = ("Parquet", "Arrow")
_PACKINGS = ("gz", "bz2", "xz", "zst", "zstd")


@dataclass(slots=True)
class Block:
    """Records that stand together in a file, each with its line; one that is broken has a reason instead."""

    lines: list[int] = field(default_factory=list)
    records: list[Any] = field(default_factory=list)
    raws: list[bytes | str | None] = field(default_factory=list)
    notes: dict[int, str] = field(default_factory=dict)  # by place in the block
    reasons: dict[int, str] = field(default_factory=dict)
    columns: pa.Table | None = None
    """The records as columns, where all of them could be read so; `records` is empty then."""

    def add(self, found: Found) -> None:
        place = len(self.lines)
        self.lines.append(found.line)
        self.records.append(found.record)
        self.raws.append(found.raw)
        if found.note:
            self.notes[place] = found.note
        if found.reason:
            self.reasons[place] = found.reason

    def exact(self, place: int) -> Any:
        """The record with numbers of any length as they are written; the quick parser makes floats of long ones."""
        raw = self.raws[place]
        if isinstance(raw, bytes) and _LONG_NUMBER.search(raw):
            try:
                return DECODER.decode(raw.decode())
            except (ValueError, RecursionError) as error:
                raise Unusable(why_not_json(error)) from None
        return orjson.loads(raw) if self.columns is not None else self.records[place]

    def raw(self, place: int) -> str:
        said = self.raws[place]
        if said is None:
            return json.dumps(self.records[place], ensure_ascii=False, default=str)
        return (said.decode("utf-8", "replace") if isinstance(said, bytes) else said).strip()


@dataclass(slots=True)
class Records:
    """The blocks of an open file; `kind` is what it is, and `reached()` how far it is read."""

    kind: str
    blocks: Iterator[Block]
    reached: Any
    close: Any


def open_records(file: BinaryIO, name: str, as_text: bool = False, schema: pa.Schema | None = None) -> Records:
    """`name` tells CSV and text; `as_text` takes a file that is nothing else for text.

    Blocks of JSON lines that have the fields of `schema` and no others come as columns.
    """
    try:
        stream = open_stream(file)
        first = next(stream.pieces, b"")
        kind = _kind(first, name, as_text)
        stream.pieces = chain([first], stream.pieces)
        if kind in _TABLES and stream.packed:
            file = _spooled(stream)
    except Damaged as why:
        return Records("damaged file", iter([_broken(1, str(why))]), lambda: 0, file.close)
    told = " in ".join(k for k in (kind, stream.encoding, stream.packed) if k)
    note = f"decoded from {stream.encoding}" if stream.encoding else None
    if kind in _TABLES:
        blocks = _grouped(in_table(file, kind, name))
    elif kind == "JSON lines":
        blocks = _json_lines(stream, schema)
    else:
        blocks = _grouped(_guarded(_found(stream, kind, name)))
    return Records(told, _noted(blocks, note) if note else blocks, stream.reached, stream.close)


def plain_suffix(name: str) -> str:
    """The suffix of a name, that of a packing left aside."""
    *_, last = parts = name.lower().split(".")
    return (parts[-2] if last in _PACKINGS and len(parts) > 2 else last) if len(parts) > 1 else ""


def _kind(start: bytes, name: str, as_text: bool) -> str:
    if start.startswith(b"PAR1"):
        return "Parquet"
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "Arrow"
    if told := _SUFFIXES.get(plain_suffix(name)):
        return told
    begins = start.lstrip()[:4096]
    if _ARRAY.match(begins.split(b"\n")[0]):
        return "JSON array"
    if begins.split(b"\n")[0].strip() == b"{":
        return "JSON objects"
    return "text" if as_text and begins[:1] not in (b"{", b"[") else "JSON lines"


def _found(stream: Stream, kind: str, name: str) -> Iterator[Found]:
    guess = Guess()
    if kind == "JSON array":
        return in_array(array_pieces(stream.pieces, guess))
    if kind == "JSON objects":
        return in_array(text_lines(stream.pieces, guess), opened=True)
    if kind == "CSV":
        return in_csv(text_lines(stream.pieces, guess, blank=True), name, tabs=plain_suffix(name) == "tsv")
    return passages(text_lines(stream.pieces, guess), markdown=kind == "Markdown")


def _guarded(found: Iterator[Found]) -> Iterator[Found]:
    """What is found, and a reject where the file can be read no further."""
    line = 0
    try:
        for one in found:
            line = one.line
            yield one
    except Damaged as why:
        yield Found(line + 1, "", reason=str(why))


def _grouped(found: Iterator[Found]) -> Iterator[Block]:
    for number in count():
        block, held = Block(), 0
        for one in islice(found, _size(number)):
            block.add(one)
            held += len(one.raw or "")
            if held > MOST:
                break
        if not block.lines:
            return
        yield block


def _noted(blocks: Iterator[Block], note: str) -> Iterator[Block]:
    for block in blocks:
        for place in range(len(block.lines)):
            block.notes[place] = "; ".join(filter(None, [note, block.notes.get(place)]))
        yield block


def _size(number: int) -> int:
    return SMALL if number < _SMALL_ONES else LARGE


def _broken(line: int, reason: str) -> Block:
    block = Block()
    block.add(Found(line, "", reason=reason))
    return block


def _spooled(stream: Stream) -> BinaryIO:
    """A table is read from its end, so one that is packed is unpacked to the disk first."""
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115  it is read after this returns
    for piece in stream.pieces:
        unpacked.write(piece)
    return unpacked


# ---- JSON lines


def _json_lines(stream: Stream, schema: pa.Schema | None) -> Iterator[Block]:
    """Blocks of lines, parsed all at once where they are sound and one by one where they are not."""
    guess, made = Guess(), 0
    numbers: list[int] = []
    lines: list[bytes] = []
    extra: list[Found] = []
    held, last = 0, 0

    def take(n: int) -> Block:
        nonlocal made
        made += 1
        block = _parsed(numbers[:n], lines[:n], extra, guess, schema)
        del numbers[:n], lines[:n], extra[:]
        return block

    try:
        for more_numbers, more, too_long in line_groups(stream.pieces):
            numbers += more_numbers
            lines += more
            extra += too_long
            held += sum(map(len, more))
            while len(lines) >= _size(made) or held > MOST:
                yield take(min(_size(made), len(lines)))
                held = sum(map(len, lines))
            last = numbers[-1] if numbers else last
    except Damaged as why:
        extra.append(Found((numbers[-1] if numbers else last) + 1, "", reason=str(why)))
    if lines or extra:
        yield take(len(lines))


def _parsed(
    numbers: list[int], lines: list[bytes], extra: list[Found], guess: Guess, schema: pa.Schema | None
) -> Block:
    block = Block(numbers, [], lines)
    if schema and not extra:
        block.columns = in_columns(lines, schema)
        if block.columns is not None:
            return block
    try:
        block.records = list(map(orjson.loads, lines))
    except orjson.JSONDecodeError:
        block.records = []
        guess_from(lines, guess)
        for place, line in enumerate(lines):
            block.records.append(_one(block, place, line, guess))
    if extra:  # lines that are not parsed stand where they stood
        both = sorted([*_as_found(block), *extra], key=lambda f: f.line)
        block = Block()
        for found in both:
            block.add(found)
    return block


def in_columns(lines: list[bytes], schema: pa.Schema) -> pa.Table | None:
    """Lines of JSON as columns; None unless each of them is one object with no other fields or types than these.

    A field that an object lacks is null.
    """
    text = b"\n".join(lines)
    # The parser takes two objects on a line, and one over two lines, too. If every line begins and ends with a brace
    # there is none of the second sort, so of the first there is none if there are as many objects as lines.
    ends = text.count(b"}\n{") + text.count(b"}\r\n{")
    if ends != len(lines) - 1 or not text.startswith(b"{") or not text.rstrip(b"\r").endswith(b"}"):
        return None
    try:
        table = pj.read_json(
            pa.BufferReader(text),
            pj.ReadOptions(use_threads=False, block_size=len(text) + 1),
            pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
        )
        table.validate(full=True)  # that it is UTF-8
    except pa.ArrowInvalid:
        return None
    return table.combine_chunks() if table.num_rows == len(lines) else None


def _one(block: Block, place: int, line: bytes, guess: Guess) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        text, note = guess.decode(line)
    block.raws[place] = text = text.rstrip()
    if note:
        block.notes[place] = note
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        block.reasons[place] = why_not_json(error)
        return None


def _as_found(block: Block) -> Iterator[Found]:
    for place, (line, record, raw) in enumerate(zip(block.lines, block.records, block.raws, strict=True)):
        yield Found(line, raw, record, block.reasons.get(place), block.notes.get(place))
