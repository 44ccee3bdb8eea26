"""What is read and written in columns is what is read and written record by record."""

import io
import json

import orjson
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from storage.copies import Copies
from storage.flat import FLAT, SCHEMAS, flat_records
from storage.reading import Raw, read_batches
from storage.records import in_columns, open_records
from storage.schema import MESSAGE, message
from storage.shapes import Shape

ALPACA = SCHEMAS["alpaca"]
GOOD = b'{"instruction": "Add.", "input": "2+2", "output": "4"}'
FEW = settings(max_examples=40, deadline=None)
PIECES = [
    *(b"{", b"}", b'"', b"\\", b",", b":", b"[", b"]", b" ", b"\t", b"\r", b"}{", b"{}", b"[]", b"1", b"null", b"NaN"),
    *(b"\0", b"\x01", b"\x7f", b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xef\xbb\xbf", b"\\u0000", b"\\udc00", b"\\x"),
    *(b'"input":"z",', b'"\\u0069nput":"z",', b"/**/", b"//", b"'", GOOD),
]


def test_lines_of_a_format_come_as_columns():
    lines = [GOOD, b'{"output": "\\u00e9\\n", "input": null, "history": [["a", "b"]]}\r', b"{}"]
    [block] = open_records(io.BytesIO(b"\n".join(lines)), "raw.jsonl", schema=ALPACA).blocks
    empty = dict.fromkeys(ALPACA.names)
    assert block.columns.to_pylist() == [empty | json.loads(line) for line in lines]
    assert (block.records, [block.exact(n) for n in range(3)]) == ([], [json.loads(line) for line in lines])


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([b'{"instruction": "a", "output": "b", "tag": 1}'], id="a column of the user's own"),
        pytest.param([b'{"instruction": "a", "output": 4}'], id="a number"),
        pytest.param([b'{"instruction": "a", "output": "b", "output": "c"}'], id="a field twice"),
        pytest.param([GOOD + GOOD, GOOD], id="two records on a line"),
        pytest.param([b'{"instruction": "a",', b'"output": "b"}' + GOOD], id="a record over two lines"),
        pytest.param([b'{"instruction": {}', b"{}}"], id="braces over two lines"),
        pytest.param([GOOD, b"\0" + GOOD], id="NUL between lines"),
        pytest.param([b'{"instruction": "\xff", "output": "b"}'], id="no UTF-8"),
        pytest.param([b'{"instruction": "\\ud800", "output": "b"}'], id="half a surrogate pair"),
        pytest.param([b'{"instruction": "\\udc00", "output": "b"}'], id="its other half"),
    ],
)
def test_other_lines_are_read_record_by_record(lines):
    assert in_columns(lines, ALPACA) is None


@FEW
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 60), st.integers(0, 3), st.sampled_from(PIECES))), min_size=1, max_size=3
    )
)
@example([[(30, 0, b"\\u0000"), (0, 0, b"")], []])
def test_columns_hold_what_a_parser_of_json_reads(edits):
    lines = []
    for changes in edits:
        line = bytearray(GOOD)
        for at, length, piece in changes:
            line[at : at + length] = piece
        lines.append(bytes(line))
    columns = in_columns(lines, ALPACA)
    if columns is not None:
        assert columns.to_pylist() == [dict.fromkeys(ALPACA.names) | orjson.loads(line) for line in lines]


def test_a_block_in_columns_gives_the_rows_that_its_records_give():
    more = [{"input": None}, {"instruction": None}, {"output": None}, {"output": " \n"}, {"instruction": "\x1c"}, {}]
    more += [{"instruction": "a\0b"}, {"system": "Be brief."}, {"system": ""}, {"history": [["a", "b"]]}, {"input": ""}]
    more += [{"history": []}, {"input": "é\u2028"}, {"output": "long" * 300}, {}]
    lines = [json.dumps(json.loads(GOOD) | one).encode() for one in more] + [b'{"input": "a", "output": "b"}']
    both = [b"\n".join(lines), b"\n".join([*lines, b"no JSON"])]
    first, second = (
        next(read_batches(Raw("raw.jsonl", lambda text=text: io.BytesIO(text)), "raw", "alpaca", 1000, Copies()))
        for text in both
    )
    assert first.rows.num_rows == 12
    assert (first.rows, first.origin) == (second.rows, second.origin)
    assert first.rejects.to_pylist() == second.rejects.to_pylist()[:-1]


said = st.text(st.one_of(st.sampled_from('\n\r\t"\\\x00\x1f\x7f\x85\u2028é🎉a '), st.characters(codec="utf-8")))


@FEW
@given(st.lists(st.tuples(said, said, st.none() | st.integers(0, 9)), min_size=1, max_size=5), st.sampled_from([*FLAT]))
@example([("Add.\n2+2", "4", 3), ("2+2", "4", 3), ("\n", "4", 1), ("Add.", "4", 9), ("", "", None)], "alpaca")
def test_rows_as_columns_are_written_as_their_records_are(rows, format):
    messages = [[message("user", asked), message("assistant", answer)] for asked, answer, _ in rows]
    forms = [None if n is None else f'{{"input": {n}}}' for *_, n in rows]
    flat = flat_records(pl.from_arrow(pa.array(messages, pa.list_(MESSAGE))), forms, format)
    shape = Shape(format)
    both = zip(messages, forms, strict=True)
    records = [shape.record("id", said, json.loads(form or "{}"), None, True) for said, form in both]
    assert flat.write_ndjson().encode() == b"".join(orjson.dumps(record) + b"\n" for record in records)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param([message("assistant", "4")], id="no question"),
        pytest.param([message("system", "Be brief."), message("assistant", "4")], id="no user"),
        pytest.param([message("user", "2+2?"), message("assistant", "4", "[]")], id="calls"),
        pytest.param([message("user", "2+2?"), message("assistant", "4", reasoning_content="Hm.")], id="reasoning"),
        pytest.param([message(role, "a") for role in ("user", "assistant", "user", "assistant")], id="four turns"),
    ],
)
def test_rows_that_are_more_are_written_record_by_record(other):
    plain = [message("user", "2+2?"), message("assistant", "4")]
    rows = pl.from_arrow(pa.array([plain, other], pa.list_(MESSAGE)))
    assert flat_records(rows, [None, None], "messages") is None
    assert flat_records(rows[:1], [None], "messages") is not None
