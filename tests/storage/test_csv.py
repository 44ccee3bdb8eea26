"""Tables of text: what a cell may hold, and what becomes of lines that cannot be read."""

import csv

from storage import lines, streams
from storage.exporting import export_rows
from storage.importing import import_files
from storage.store import Store


def imported(folder, content: str, name="raw.csv"):
    (folder / name).write_bytes(content.encode())
    store = Store(folder / "store")
    made = import_files(store, [folder / name], "pool").dataset
    said = [[m["content"] for m in row] for row in store.read(made)["messages"].to_list()]
    origin, rejects = (store.read_side(made, table) for table in ("origin", "rejects"))
    return store, list(zip(origin["line"], said, strict=True)), rejects.select("line", "reason").rows()


def test_a_line_that_is_too_long_is_a_reject_in_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 100)
    monkeypatch.setattr(streams, "PIECE", 50)
    _, rows, rejects = imported(tmp_path, f"instruction,output\na,1\n{'x' * 90},{'y' * 90}\nb,2\n")
    assert rows == [(2, ["a", "1"]), (4, ["b", "2"])]
    assert rejects == [(3, "line of 181 bytes is over the limit of 100")]


def test_a_row_with_such_a_line_in_a_cell_is_one_reject(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 100)
    monkeypatch.setattr(streams, "PIECE", 50)
    _, rows, rejects = imported(tmp_path, f'instruction,output\na,"1\n{"x" * 190}\n2"\nb,2\n')
    assert rows == [(5, ["b", "2"])]
    assert rejects == [(2, "line of 190 bytes is over the limit of 100")]


def test_the_ends_of_lines_in_a_cell_stay_as_they_are(tmp_path):
    text = 'instruction,output\r\n"a\r\nb\nc\rd","1\r\n"\r\ne,2\r\n'
    store, rows, rejects = imported(tmp_path, text)
    assert rows == [(2, ["a\r\nb\nc\rd", "1\r\n"]), (6, ["e", "2"])]
    assert rejects == []
    export_rows(store, "pool", tmp_path / "out.csv", "alpaca")
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [r["instruction"] for r in csv.DictReader(file)] == ["a\r\nb\nc\rd", "e"]
    assert imported(tmp_path, (tmp_path / "out.csv").read_bytes().decode())[1:] == (
        [(2, ["a\r\nb\nc\rd", "1\r\n"]), (6, ["e", "2"])],
        [],
    )


def test_lines_in_a_cell_that_are_blank_stay_too_and_others_are_no_rows(tmp_path):
    _, rows, rejects = imported(tmp_path, 'instruction,output\r\n  \r\n\r\n"a\r\n\r\n \t\nb",1\n \n"  "\n')
    assert rows == [(4, ["a\r\n\r\n \t\nb", "1"])]
    assert rejects == [(9, "1 cells, but the header has 2")]


def test_a_lone_carriage_return_is_written_so_that_it_can_be_read(tmp_path):
    store, rows, _ = imported(tmp_path, 'instruction,output\n"a\rb",1\n')
    export_rows(store, "pool", tmp_path / "out.csv", "alpaca")
    assert imported(tmp_path, (tmp_path / "out.csv").read_bytes().decode())[1:] == (rows, [])
