"""Whatever a file holds, every line of it is a row or a reject that says why, and nothing ends in a traceback."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import shutil
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from storage import streams
from storage.copies import Copies
from storage.flat import flat_ids, flat_rows
from storage.formats import FORMATS
from storage.reading import Raw, read_batches, tell_format
from storage.records import Block
from storage.schema import row_id
from storage.store import StoreError
from storage.streams import open_stream
from storage.tables import in_table

GOOD = {"instruction": "Add.", "input": "2+2", "output": "4"}
FILES = Path(__file__).parent / "files"
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))

text = st.text(st.characters(exclude_categories=()), max_size=20)  # with NUL and halves of surrogate pairs
atom = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), text, st.sampled_from(["4", "1e9", "[]", "[1]"]))
value = st.recursive(
    atom, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3))
)
role = st.sampled_from(
    ["user", "assistant", "system", "tool", "human", "gpt", "observation", "function_call", "narrator"]
)
turn = st.one_of(
    st.fixed_dictionaries(
        {"role": role, "content": st.one_of(text, value)}, optional={"tool_calls": value, "name": value}
    ),
    st.fixed_dictionaries({"from": role, "value": text}),
    value,
)
FIELDS = sorted({name for f in FORMATS.values() for name in f.fields})
record = st.dictionaries(
    st.one_of(st.sampled_from(FIELDS), text), st.one_of(st.lists(turn, max_size=5), value), max_size=6
)
any_line = st.one_of(
    st.binary(max_size=60),
    value.map(lambda v: json.dumps(v).encode()),
    record.map(lambda r: json.dumps(r).encode()),
    record.map(lambda r: json.dumps(r, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    record.map(lambda r: json.dumps(r).encode()[:-2]),
    st.sampled_from([b"[" * 1100, b"[" * 990 + b"]" * 990, b'{"a":' * 1100, b"\xef\xbb\xbf{}", b"\r", b"1" * 5000]),
    st.integers(900, 1100).map(lambda n: b'{"instruction": "A", "output": "4", "x": ' + b"[" * n + b"]" * n + b"}"),
    st.just(json.dumps(GOOD).encode()),
)
format_name = st.sampled_from(list(FORMATS))
one_row_each = st.sampled_from([f for f in FORMATS if f not in ("preference", "oasst")])
_number = count()


def lines_of(folder: Path, content: bytes, name: str, format: str) -> tuple[list[int], list[str]]:
    """The lines of what was made and of what was rejected, and the reasons; every row is sound and has its own id."""
    path = folder / f"{next(_number)}-{name}"
    path.write_bytes(content)
    raw = Raw(path.name, lambda: path.open("rb"), format)
    lines, reasons, ids = [], [], []
    for batch in read_batches(raw, "raw", format, 1000, Copies()):
        for table in (batch.rows, batch.origin, batch.rejects):
            table.validate(full=True)
        assert batch.rows["id"].equals(batch.origin["id"])
        lines += batch.origin["line"].to_pylist() + batch.rejects["line"].to_pylist()
        reasons += batch.rejects["reason"].to_pylist()
        ids += batch.rows["id"].to_pylist()
    path.unlink()
    assert len(set(ids)) == len(ids)
    assert all(reasons)
    return lines, reasons


def every_line_is_accounted_for(folder, lines, format):
    content = b"\n".join([json.dumps(GOOD).encode(), *lines])  # the first line says that it is no array
    found, _ = lines_of(folder, content, "raw.jsonl", format)
    filled = [n for n, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    assert set(found) == set(filled)
    if format not in ("preference", "oasst"):  # of these one line may be several rows
        assert sorted(found) == filled


def every_line_of_a_table_is_accounted_for(folder, lines, format):
    """Of lines without quotation marks each is a row of the table."""
    texts = [line.decode("utf-8", "replace").translate(dict.fromkeys(map(ord, '"\r\n\0'))) for line in lines]
    found, _ = lines_of(folder, "\n".join(["instruction,output", *texts]).encode(), "raw.csv", format)
    assert sorted(found) == [n for n, line in enumerate(texts, 2) if line.strip()]


def every_record_of_a_table_is_accounted_for(folder, records, end):
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([("prompt", "completion"), *records])
    content, at = out.getvalue().encode("utf-8", "replace"), 2
    expected = []
    for record in records:
        expected.append(at)
        at += 1 + sum(cell.count("\n") for cell in record)
    assert sorted(lines_of(folder, content, "raw.csv", "prompt-completion")[0]) == expected


def every_element_is_accounted_for(folder, elements, indent, format, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "PIECE", piece)
        content = json.dumps([GOOD, *elements], indent=indent).encode()
        found, _ = lines_of(folder, content, "raw.json", format)
    assert len(found) == 1 + len(elements)


def any_bytes_are_read_or_refused(folder, content, name, format):
    path = folder / f"{next(_number)}-{name}"
    path.write_bytes(content)
    try:
        told, _ = tell_format(Raw(path.name, lambda: path.open("rb")))
    except StoreError as why:
        assert str(why)
    else:
        assert told in FORMATS
    try:
        lines_of(folder, content, name, format)
    except StoreError as why:
        assert "cannot be read as" in str(why) or "no CSV" in str(why)
    path.unlink()


def damaged_files_are_read_or_refused(folder, name, cut, flips):
    content = bytearray((FILES / name).read_bytes()[: cut or None])
    for place, bits in flips:
        if content:
            content[place % len(content)] ^= bits
    any_bytes_are_read_or_refused(folder, bytes(content), name, "alpaca")


STARTS = st.sampled_from([b"", b"[", b"[\n", b"{\n", b"\x1f\x8b\x08", b"BZh9", b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff", b"PK\x03\x04", b"\xff\xfe", b"\xfd7zXZ\x00", b"(\xb5/\xfd"])  # fmt: skip  # noqa: E501
NAMES = st.sampled_from(["raw.jsonl", "raw.csv", "raw.tsv", "raw.md", "raw.txt", "raw.parquet"])
WHOLE = sorted(p.name for p in FILES.iterdir() if p.suffix not in ("", ".zip"))
CUT = st.one_of(st.just(0), st.integers(1, 4000))
FLIPS = st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), max_size=4)


@QUICK
@given(st.lists(any_line, max_size=8), format_name)
def test_every_line_is_a_row_or_a_reject(tmp_path_factory, lines, format):
    every_line_is_accounted_for(tmp_path_factory.getbasetemp(), lines, format)


@QUICK
@given(st.lists(any_line, max_size=8), one_row_each)
def test_every_line_of_a_table_is_a_row_or_a_reject(tmp_path_factory, lines, format):
    every_line_of_a_table_is_accounted_for(tmp_path_factory.getbasetemp(), lines, format)


@QUICK
@given(st.lists(st.tuples(text, text), max_size=6), st.sampled_from(["\n", "\r\n"]))
@example([("a\r\n\r\nb", "\r"), ("", '"')], "\r\n")
def test_every_record_of_a_table_is_a_row_or_a_reject(tmp_path_factory, records, end):
    every_record_of_a_table_is_accounted_for(tmp_path_factory.getbasetemp(), records, end)


@QUICK
@given(st.lists(st.one_of(record, value), max_size=6), st.sampled_from([None, 0, 2]), one_row_each, st.integers(1, 99))
def test_every_element_of_an_array_is_a_row_or_a_reject(tmp_path_factory, elements, indent, format, piece):
    every_element_is_accounted_for(tmp_path_factory.getbasetemp(), elements, indent, format, piece)


@QUICK
@given(STARTS, st.binary(max_size=200), NAMES, format_name)
def test_every_byte_string_is_read_or_refused(tmp_path_factory, start, content, name, format):
    any_bytes_are_read_or_refused(tmp_path_factory.getbasetemp(), start + content, name, format)


@QUICK
@given(st.sampled_from(WHOLE), CUT, FLIPS)
def test_every_damaged_file_is_read_or_refused(tmp_path_factory, name, cut, flips):
    damaged_files_are_read_or_refused(tmp_path_factory.getbasetemp(), name, cut, flips)


@pytest.mark.real
@pytest.mark.timeout(1800)
@settings(MANY, max_examples=4000)
@given(st.lists(any_line, max_size=8), format_name)
def test_thousands_of_files_of_lines(tmp_path_factory, lines, format):
    every_line_is_accounted_for(tmp_path_factory.getbasetemp(), lines, format)


@pytest.mark.real
@pytest.mark.timeout(1800)
@settings(MANY, max_examples=3500)
@given(STARTS, st.binary(max_size=400), NAMES, format_name)
def test_thousands_of_byte_strings(tmp_path_factory, start, content, name, format):
    any_bytes_are_read_or_refused(tmp_path_factory.getbasetemp(), start + content, name, format)


@pytest.mark.real
@pytest.mark.timeout(1800)
@settings(MANY, max_examples=2500)
@given(st.sampled_from(WHOLE), CUT, FLIPS)
def test_thousands_of_damaged_files(tmp_path_factory, name, cut, flips):
    damaged_files_are_read_or_refused(tmp_path_factory.getbasetemp(), name, cut, flips)


@QUICK
@given(st.lists(st.dictionaries(st.sampled_from(["instruction", "input", "output", "system", "history", "other"]), st.one_of(text, atom)), max_size=6))  # fmt: skip  # noqa: E501
@example([{"instruction": 'a"\\\n\t\x01\x7f\u2028', "input": "\x1c", "output": "é"}])
@example([{"instruction": "a", "output": "b", "system": False}, {"instruction": "a", "output": "b", "history": 0}])
@example([{"instruction": "a", "input": 7, "output": "b"}, {"instruction": "\x1d", "input": None, "output": "b"}])
def test_what_is_made_in_columns_is_what_is_made_record_by_record(records):
    """The ids of columns are row_id's, and what columns take record by record would be taken to the same messages."""
    from storage.reading import _usable

    block = Block(list(range(len(records))), records, [None] * len(records))
    flat = flat_rows(block, "alpaca", 1000) if records else None
    if flat is None:
        return
    for id, (place, asked, answer, form, columns) in zip(flat_ids(flat, 'a "source"'), flat.iter_rows(), strict=True):
        [said] = _usable(records[place], "alpaca", 1000)
        assert [(m["role"], m["content"]) for m in said.messages] == [("user", asked), ("assistant", answer)]
        assert (said.form, said.own) == (form, columns)
        assert id == row_id(said.messages, 'a "source"')
    plain = [n for n, r in enumerate(records) if r.get("output") == "é" and r.get("instruction", "").isprintable()]
    assert set(plain) <= set(flat["place"]) | {n for n in plain if set(records[n]) & {"system", "history"}}


@pytest.mark.parametrize("where", [0.3, 0.6, 0.9])
def test_a_table_whose_middle_is_damaged_keeps_what_stands_before(tmp_path, where):
    path = tmp_path / "raw.parquet"
    rows = [GOOD | {"input": f"{n} " * 50} for n in range(20_000)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000, compression="none")
    content = bytearray(path.read_bytes())
    at = int(len(content) * where)
    content[at : at + 40_000] = b"\xff" * 40_000
    found, reasons = lines_of(tmp_path, bytes(content), "raw.parquet", "alpaca")
    assert len(found) >= 2048
    assert reasons[-1].startswith(("the file is damaged and read no further", "row of", "no answer", "'"))


@pytest.fixture(autouse=True, scope="module")
def swept(tmp_path_factory):
    yield
    shutil.rmtree(tmp_path_factory.getbasetemp() / "fuzz", ignore_errors=True)


class Faltering(io.BytesIO):
    """A file behind a network that fails after the first bytes."""

    def read(self, size=-1):
        if self.tell() >= 1 << 12:
            raise TimeoutError("no answer")
        return super().read(min(size, 1 << 12) if size >= 0 else 1 << 12)

    read1 = read


@pytest.mark.parametrize("packed", [lambda raw: raw, gzip.compress, bz2.compress, lzma.compress])
def test_a_network_that_fails_in_the_middle_is_no_end_of_the_file(packed):
    raw = packed(os.urandom(1 << 16))
    with pytest.raises(TimeoutError):
        list(open_stream(Faltering(raw)).pieces)


def test_nor_is_it_the_end_of_a_table():
    out = io.BytesIO()
    pq.write_table(pa.table({"a": os.urandom(1 << 16).hex().encode().split(b"0")}), out)
    with pytest.raises(TimeoutError):
        list(in_table(Faltering(out.getvalue()), "Parquet", "rows.parquet"))
