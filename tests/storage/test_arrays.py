"""Elements of a JSON array: giants, elements of very many lines, and how often each character is read."""

import json

import pytest

from storage import arrays, lines
from storage.arrays import Found, in_array
from storage.encodings import Guess
from storage.lines import array_pieces, text_lines

GOOD = {"instruction": "Add.", "output": "4"}


def found(text: str, size: int = 50, reader=array_pieces, **options) -> tuple[list, list[str]]:
    content = text.encode()
    pieces = (content[at : at + size] for at in range(0, len(content), size))
    made = list(in_array(reader(pieces, Guess()), **options))
    return [f.record for f in made if not f.reason], [f.reason for f in made if f.reason]


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("apart", [None, 0])
def test_a_giant_is_one_reject_wherever_it_stands(monkeypatch, where, apart):
    monkeypatch.setattr(lines, "LONGEST_LINE", 300)
    records = [GOOD | {"n": 1}, GOOD | {"n": 2}]
    records.insert(where, GOOD | {"input": "x" * 2000})
    rows, reasons = found(json.dumps(records, indent=apart))
    assert rows == [r for r in records if "n" in r]
    assert len(reasons) == 1 and reasons[0].startswith("element of ")


def test_what_waits_behind_a_long_element_is_not_lost_with_a_giant(monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 1000)
    long = GOOD | {"history": ["a turn of a long talk" for _ in range(500)]}
    records = [long, GOOD | {"n": 1}, GOOD | {"n": 2}, GOOD | {"input": "x" * 2000}, GOOD | {"n": 3}]
    rows, reasons = found(json.dumps(records, indent=1))
    assert rows == [long, *(r for r in records if "n" in r)]
    assert len(reasons) == 1 and reasons[0].startswith("element of ")


def test_two_giants_are_two_rejects(monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 300)
    giant = GOOD | {"input": "x" * 2000}
    rows, reasons = found(json.dumps([giant, giant, GOOD, giant]))
    assert (rows, len(reasons)) == ([GOOD], 3)


def test_an_element_is_not_taken_without_its_giant_line(monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 300)
    records = [GOOD, GOOD | {"input": "x" * 2000, "more": 1}, GOOD]
    text = "\n".join(json.dumps(r, indent=1) for r in records)
    rows, reasons = found(text, reader=text_lines, opened=True)
    assert rows == [GOOD, GOOD]
    assert len(reasons) == 1 and reasons[0].startswith("line of 2,0")


def test_an_element_of_many_lines_is_read_a_few_times_at_most(monkeypatch):
    read = []

    class Counting(json.JSONDecoder):
        def raw_decode(self, text, at=0):
            read.append(len(text) - at)
            return super().raw_decode(text, at)

    monkeypatch.setattr(arrays, "DECODER", Counting())
    records = [GOOD | {"history": [{"n": n} for n in range(20_000)]}, GOOD]
    text = json.dumps(records, indent=1)
    rows, reasons = found(text, size=1 << 16)
    assert (rows, reasons) == (records, [])
    assert sum(read) < 8 * len(text), "and once more for what each try leaves"


def test_an_element_without_an_end_is_told_where_it_is_too_long(monkeypatch):
    monkeypatch.setattr(arrays, "LONGEST_ELEMENT", 1000)
    text = '[\n{"a": [\n' + '{"n": 1},\n' * 500
    rows, reasons = found(text)
    assert rows == [{"n": 1}] * 400  # what starts a line as an element does is taken for one from there on
    assert reasons[0].startswith("element of more than 1,000 characters") and "has no end" in reasons[1]


def test_lines_that_are_too_long_stand_where_they_stood(monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 10)
    made = list(text_lines(iter([b"a\n" + b"x" * 20, b"\nb\n"]), Guess()))
    assert [(f.line, bool(f.reason)) for f in made] == [(1, False), (2, True), (3, False)]
    assert isinstance(made[0], Found)
