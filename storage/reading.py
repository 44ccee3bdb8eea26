"""Raw files as rows, rejects and origins, a batch at a time: memory does not grow with the file.

Broken input is normal. Every line that is not blank (every element of a JSON array, every row of a table) becomes rows
or a reject that says why. What most rows are, one question and one answer, is made in columns (flat.py); the rest is
made record by record, to the same rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl
import pyarrow as pa

from storage.copies import Copies
from storage.flat import SCHEMAS, flat_ids, flat_rows
from storage.formats import FORMATS, own_columns, recognise, rows_of
from storage.records import Block, Records, open_records
from storage.schema import MESSAGE, ORIGIN, REJECT, ROW, Messages, row_id
from storage.store import StoreError
from storage.turns import Record, Said, Unusable, storable

LONGEST_RAW = 2000  # characters of a reject that are kept
LOOKED_AT = 100  # records from which the format of a file is told


@dataclass(frozen=True, slots=True)
class Raw:
    """A file to read: its name in the origin table, and how it is opened."""

    name: str
    open: Callable[[], BinaryIO]
    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    """Field of the format: the user's name for it."""
    ahead: bool = False
    """Read the next block in a thread meanwhile. Not over a network: Ctrl-C would wait for the answer."""

    def records(self, schema: pa.Schema | None = None) -> Records:
        """What is in it, as columns where the lines have this schema and are taken as they are; see open_records."""
        schema = None if self.columns else schema
        found = open_records(self.open(), self.name, as_text=self.format == "text", schema=schema)
        if self.columns:
            found.blocks = map(partial(_renamed, columns=self.columns), found.blocks)
        return found


def raw_file(path: Path, format: str = "auto") -> Raw:
    return Raw(storable(path.name.encode("utf-8", "replace").decode()), partial(path.open, "rb"), format, ahead=True)


@dataclass(frozen=True, slots=True)
class Batch:
    """What a block of records became; a batch of rejects alone has no rows."""

    rows: pa.Table
    origin: pa.Table
    rejects: pa.Table
    reached: int
    """Bytes of the file that are read."""


def read_batches(raw: Raw, source: str, format: str, max_chars: int, copies: Copies) -> Iterator[Batch]:
    """The file in batches of rows of `source`. `copies` counts equal rows over all files of an import."""
    found = raw.records(SCHEMAS.get(format))
    try:
        reading = ((block, found.reached()) for block in found.blocks)
        with closing(_ahead(reading) if raw.ahead else reading) as blocks:
            for block, reached in blocks:
                yield _batch(block, raw.name, source, format, max_chars, copies, reached)
    finally:
        found.close()


def _ahead(blocks: Iterator[tuple[Block, int]]) -> Iterator[tuple[Block, int]]:
    """The same blocks, each read in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, blocks, None)
        while found := coming.result():
            coming = reader.submit(next, blocks, None)
            yield found


def tell_format(raw: Raw) -> tuple[str, str]:
    """The format of a file by its first records that can be parsed, and what kind of file it is."""
    found = raw.records()
    records: list[Record] = []
    any_line = False
    try:
        for block in found.blocks:
            any_line = any_line or bool(block.lines)
            records += [r for r in block.records if isinstance(r, dict)]
            if len(records) >= LOOKED_AT:
                break
    finally:
        found.close()
    if raw.format != "auto":
        return raw.format, found.kind
    if told := recognise(records[:LOOKED_AT]):
        return told, found.kind
    if not any_line:
        raise StoreError(f"{raw.name} has no usable row: it is empty; export it again")
    raise StoreError(f"{raw.name} has no usable row: {_unknown(records)}")


def _unknown(records: list[Record]) -> str:
    known = "; ".join(f"{name}: {', '.join(f.needs)}" for name, f in FORMATS.items())
    if not records:
        return f"no line is a JSON object; the formats are ({known})"
    names = list(records[0])
    if {"message_id", "parent_id", "text", "role"} <= set(names):
        return "its lines are single messages of OpenAssistant; take the file of trees instead"
    asked, answer = (names[0], names[-1]) if len(names) > 1 else ("question", "answer")
    example = f"--column instruction={asked} --column output={answer}"
    has = ", ".join(repr(str(n)[:40]) for n in names[:20])
    return storable(f"its lines have {has}; say which field is which, such as {example} ({known})")


def _renamed(block: Block, columns: Mapping[str, str]) -> Block:
    theirs = {theirs: ours for ours, theirs in columns.items()}
    for place, record in enumerate(block.records):
        if isinstance(record, dict) and not theirs.keys().isdisjoint(record):
            try:
                exact = block.exact(place)
            except Unusable as why:
                block.reasons[place] = str(why)
                continue
            kept = {name: value for name, value in exact.items() if name not in columns or name in theirs}
            block.records[place] = {theirs.get(name, name): value for name, value in kept.items()}
            block.raws[place] = None if isinstance(block.raws[place], bytes) else block.raws[place]
    return block


# ---- a block of records as tables


def _batch(block: Block, name: str, source: str, format: str, longest: int, copies: Copies, reached: int) -> Batch:
    flat = flat_rows(block, format, longest)
    left = range(len(block.lines))
    if flat is not None:
        done = set(flat["place"]) if flat.height < len(left) else left
        left = [place for place in left if place not in done]
    made: list[tuple[int, Said]] = []
    rejects: list[tuple] = []
    for place in left:
        try:
            if reason := block.reasons.get(place):
                raise Unusable(reason)
            found = _usable(block.exact(place), format, longest)
        except Unusable as why:
            found = [why]
        for said in found:
            if isinstance(said, Unusable):
                raw = storable(block.raw(place)[:LONGEST_RAW])
                rejects.append((name, block.lines[place], storable(str(said)), raw))
            else:
                made.append((place, said))
    rows, origin = _tables(block, flat, made, name, source, format, copies)
    return Batch(rows, origin, _table(rejects, REJECT), reached)


def _usable(record: object, format: str, longest: int) -> list[Said | Unusable]:
    try:
        found = rows_of(record, format)
        found = [_short(said, longest) if isinstance(said, Said) else said for said in found]
        if format == "preference" and (why := next((f for f in found if isinstance(f, Unusable)), None)):
            raise why  # half a pair says nothing
        for said in found:
            if isinstance(said, Said):
                said.own = own_columns(record, format, said.own)
    except RecursionError:
        raise Unusable("not JSON: nested too deeply") from None
    return found


def _short(said: Said, longest: int) -> Said | Unusable:
    length = sum(len(m[k]) for m in said.messages for k in _COUNTED if m[k])
    if length > longest:
        return Unusable(f"row of {length:,} characters is over the limit of {longest:,}")
    return said


_COUNTED = ("content", "tool_calls", "reasoning_content")


def _tables(
    block: Block,
    flat: pl.DataFrame | None,
    made: list[tuple[int, Said]],
    name: str,
    source: str,
    format: str,
    copies: Copies,
) -> tuple[pa.Table, pa.Table]:
    """Rows and their origins in the order of the file, whichever way they were made."""
    n_flat = 0 if flat is None else flat.height
    places = ([] if flat is None else flat["place"].to_list()) + [place for place, _ in made]
    order: Sequence[int] = range(len(places))
    if made:
        order = sorted(order, key=places.__getitem__)  # stable, so rows of one record stay as they are
    ids = [] if flat is None else flat_ids(flat, source)
    ids += [row_id(said.messages, source) for _, said in made]
    base = [i for i in order if i < n_flat or made[i - n_flat][1].preferred_to is None] if made else order
    counted = copies.count([ids[i] for i in base])
    for at in np.flatnonzero(counted):
        i, copy = base[at], int(counted[at])
        said = _flat_messages(flat, i) if i < n_flat else made[i - n_flat][1].messages
        ids[i] = row_id(said, source, copy=copy)
    parents: list[str | None] = [None] * len(ids)
    for i, (place, said) in enumerate(made):
        if said.preferred_to is not None:
            first = next(j for j in range(i, -1, -1) if j == 0 or made[j - 1][0] != place)
            parents[n_flat + i] = parent = ids[n_flat + first + said.preferred_to]
            ids[n_flat + i] = row_id(said.messages, source, parent)
    n = len(ids)
    messages = pa.array([said.messages for _, said in made], pa.list_(MESSAGE))
    own = ([] if flat is None else flat["columns"].to_list()) + [said.own for _, said in made]
    form = ([] if flat is None else flat["form"].to_list()) + [said.form for _, said in made]
    notes = [_note(block, place, None) for place in places[:n_flat]] if block.notes else [None] * n_flat
    notes += [_note(block, place, said.note) for place, said in made]
    dropped = [None] * n_flat + [said.drop_reason for _, said in made]
    rows = pa.table(
        [
            pa.array(ids, pa.string()),
            messages if flat is None else pa.concat_arrays([_flat_conversations(flat), messages]),
            pa.repeat(source, n).cast(pa.string()),
            pa.nulls(n, pa.string()),
            pa.array(parents, pa.string()),
            pa.repeat(pa.scalar(0, pa.int32()), n),
            pa.array(dropped, pa.string()),
        ],
        schema=ROW,
    )
    lines = pa.array(block.lines, pa.int64()).take(pa.array(places, pa.int64()))
    told = [pa.array(column, pa.string()) for column in (own, notes, form)]
    origin = pa.table([rows["id"], pa.repeat(name, n).cast(pa.string()), lines, *told], schema=ORIGIN)
    if made and n_flat:
        rows, origin = rows.take(order), origin.take(order)
    return rows, origin


def _note(block: Block, place: int, note: str | None) -> str | None:
    return "; ".join(n for n in (block.notes.get(place), note) if n) or None


def _flat_messages(flat: pl.DataFrame, place: int) -> Messages:
    asked, answer = flat["asked"][place], flat["answer"][place]
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _flat_conversations(flat: pl.DataFrame) -> pa.Array:
    n = flat.height
    both = pa.concat_arrays([flat["asked"].to_arrow(), flat["answer"].to_arrow()]).cast(pa.string())
    contents = both.take(pa.array(np.arange(2 * n).reshape(2, n).T.ravel()))  # question, answer, question, …
    roles = pa.array(["user", "assistant"], pa.string()).take(pa.array(np.tile([0, 1], n)))
    fields = [roles, contents, *[pa.nulls(2 * n, f.type) for f in list(MESSAGE)[2:]]]
    offsets = pa.array(np.arange(0, 2 * n + 1, 2, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(fields, fields=list(MESSAGE)))


def _table(rows: list[tuple], schema: pa.Schema) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
