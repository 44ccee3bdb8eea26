import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from storage.copies import Copies
from storage.formats import FORMATS, recognise
from storage.reading import raw_file, read_batches, tell_format
from storage.store import StoreError

GOOD = {"instruction": "Add.", "input": "2+2", "output": "4"}


def read(path: Path, content: bytes | str | list, format: str = "alpaca", max_chars: int = 1000):
    """Rows as (role, content) pairs, rejects as (line, reason), and origins as (line, columns, note)."""
    if isinstance(content, list):
        content = "".join(json.dumps(record) + "\n" for record in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    batches = list(read_batches(raw_file(path), "raw", format, max_chars, Copies()))
    rows = [[(m["role"], m["content"]) for m in row] for b in batches for row in b.rows["messages"].to_pylist()]
    rejects = [(r["line"], r["reason"]) for b in batches for r in b.rejects.to_pylist()]
    origins = [(o["line"], o["columns"], o["note"]) for b in batches for o in b.origin.to_pylist()]
    return rows, rejects, origins


@pytest.fixture
def path(tmp_path):
    return tmp_path / "raw.jsonl"


@pytest.mark.parametrize(
    "format, record, expected",
    [
        pytest.param("alpaca", GOOD, [("user", "Add.\n2+2"), ("assistant", "4")], id="alpaca"),
        pytest.param("alpaca", GOOD | {"input": ""}, [("user", "Add."), ("assistant", "4")], id="alpaca, no input"),
        pytest.param(
            "alpaca",
            {"instruction": "Add.", "output": "4"},
            [("user", "Add."), ("assistant", "4")],
            id="no input field",
        ),
        pytest.param(
            "alpaca",
            GOOD | {"system": "Be brief.", "history": [["Hi", "Hello"]]},
            [
                ("system", "Be brief."),
                ("user", "Hi"),
                ("assistant", "Hello"),
                ("user", "Add.\n2+2"),
                ("assistant", "4"),
            ],
            id="alpaca with system and history",
        ),
        pytest.param(
            "sharegpt",
            {"system": "S", "conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
            [("system", "S"), ("user", "2+2?"), ("assistant", "4")],
            id="sharegpt",
        ),
        pytest.param(
            "messages",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "2+2?"}]},
                    {"role": "assistant", "content": "4"},
                ]
            },
            [("user", "2+2?"), ("assistant", "4")],
            id="messages, content in parts",
        ),
        pytest.param(
            "prompt-completion",
            {"prompt": "2+2?", "completion": "4"},
            [("user", "2+2?"), ("assistant", "4")],
            id="prompt-completion",
        ),
        pytest.param(
            "prompt-completion",
            {"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "2+2?"}], "completion": "4"},
            [("system", "S"), ("user", "2+2?"), ("assistant", "4")],
            id="prompt of messages",
        ),
    ],
)
def test_a_record_becomes_messages(path, format, record, expected):
    rows, rejects, _ = read(path, [record], format)
    assert rows == [expected]
    assert rejects == []
    assert tell_format(raw_file(path)) == (format, "JSON lines")


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"instruction": "Ad', "not JSON: Unterminated string starting at character 17"),
        ("hello", "not JSON: Expecting value at character 1"),
        ("[1, 2]", "not an object but a list"),
        ('"text"', "not an object but text"),
        ("null", "not an object but null"),
        ('{"instruction": "Add."}', "no field 'output'"),
        ('{"output": "4"}', "no field 'instruction'"),
        ('{"instruction": "Add.", "output": ""}', "no answer: 'output' is empty"),
        ('{"instruction": "Add.", "output": " \\n"}', "no answer: 'output' is empty"),
        ('{"instruction": "Add.", "output": "\\u0000"}', "no answer: 'output' is empty"),
        ('{"instruction": "Add.", "output": null}', "no answer: 'output' is null"),
        ('{"instruction": "Add.", "output": 4}', "'output' is a number, not text"),
        ('{"instruction": ["Add."], "output": "4"}', "'instruction' is a list, not text"),
        ('{"instruction": " ", "input": "", "output": "4"}', "no prompt: 'instruction' and 'input' are empty"),
        ('{"instruction": "A", "output": "4", "history": ["Hi"]}', "'history' is not a list of pairs of texts"),
        ('{"instruction": "A", "output": "4", "history": 1}', "'history' is a number, not a list of pairs of texts"),
        ('{"instruction": "Add.", "output": "%s"}' % ("4" * 997), "row of 1,001 characters is over the limit of 1,000"),
        ('{"instruction": %s, "output": "4"}' % ("1" * 5000), "not JSON: Exceeds the limit (4300 digits)"),
        ("[" * 100_000, "not JSON: nested too deeply"),
    ],
)
def test_a_line_that_is_no_row_says_why(path, line, reason):
    rows, rejects, _ = read(path, json.dumps(GOOD) + "\n" + line + "\n")
    assert len(rows) == 1
    assert [(n, why[: len(reason)]) for n, why in rejects] == [(2, reason)]


@pytest.mark.parametrize(
    "turns, reason",
    [
        ("hello", "'messages' is text, not a list"),
        ([], "no messages"),
        (["hello"], "message 1 is text, not an object"),
        ([{"role": "narrator", "content": "Hi"}], 'message 1 has the unknown role "narrator"'),
        ([{"role": "user", "content": "Hi"}], "no answer: the last message is by the user"),
        ([{"role": "user", "content": 1}], "the content of message 1 is a number, not text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "message 1 holds something that is not text"),
        ([{"role": "assistant", "content": "Hi"}], "no prompt: nothing is said before the answer"),
        (
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": None}],
            "no answer: the last message is empty",
        ),
    ],
)
def test_a_conversation_that_is_no_row_says_why(path, turns, reason):
    assert read(path, [{"messages": turns}], "messages")[1] == [(1, reason)]


def test_tool_calls_are_kept_as_json_and_what_has_no_place_is_noted(path):
    call = {"id": "c1", "function": {"name": "add", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
        {"role": "assistant", "content": "4", "tool_calls": [], "weight": 0},
    ]
    path.write_text(json.dumps({"messages": turns}))
    [batch] = read_batches(raw_file(path), "raw", "messages", 1000, Copies())
    [messages] = batch.rows["messages"].to_pylist()
    assert [json.loads(m["tool_calls"]) if m["tool_calls"] else None for m in messages] == [None, [call], None, None]
    assert [m["tool_call_id"] for m in messages] == [None, None, "c1", None]
    assert batch.origin["note"].to_pylist() == ["left out of the messages: weight"]


def test_the_users_other_columns_go_to_the_origin(path):
    _, _, origins = read(path, [GOOD, GOOD | {"annotator": "Lucía", "seen": {"n": 1}, "score": float("nan")}])
    assert [columns and json.loads(columns) for _, columns, _ in origins] == [
        None,
        {"annotator": "Lucía", "seen": {"n": 1}, "score": "NaN"},
    ]


def test_a_line_in_latin_1_is_repaired_and_its_neighbours_are_not_touched(path):
    said = [json.dumps(GOOD | {"output": word}, ensure_ascii=False) for word in ("Ñandú", "café")]
    rows, rejects, origins = read(path, said[0].encode() + b"\n" + said[1].encode("latin-1") + b"\n")
    assert [row[1][1] for row in rows] == ["Ñandú", "café"]
    assert [note for *_, note in origins] == [None, "decoded as Latin-1, since it was no UTF-8"]
    assert rejects == []


def test_lines_are_counted_with_the_blank_ones_which_are_no_rejects(path):
    line = json.dumps(GOOD)
    rows, rejects, origins = read(path, f"\ufeff{line}\r\n\r\n  \t\n{line}\nbad")
    assert len(rows) == 2
    assert [n for n, *_ in origins] == [1, 4]
    assert [n for n, _ in rejects] == [5]


def test_what_parquet_cannot_hold_is_taken_out(path):
    line = r'{"instruction": "a\u0000b", "output": "c\ud800d", "\udfff": "\ud800"}'
    rows, _, origins = read(path, line)
    assert rows == [[("user", "ab"), ("assistant", "c\ufffdd")]]
    assert json.loads(origins[0][1]) == {"\ufffd": "\ufffd"}


def test_a_compressed_file_is_read_and_its_end_missed(path):
    whole = gzip.compress((json.dumps(GOOD) + "\n").encode() * 20_000)
    assert len(read(path, whole)[0]) == 20_000
    rows, rejects, _ = read(path, whole[: len(whole) // 2])
    assert 0 < len(rows) < 20_000
    assert rejects[-1][1].startswith("the compressed file is cut off or damaged")


@pytest.mark.parametrize("indent", [None, 2], ids=["on one line", "over many lines"])
def test_an_array_gives_its_elements(path, indent):
    elements = [GOOD, GOOD | {"output": ""}, GOOD | {"history": [["Hi", "Hello"]]}, 7]
    rows, rejects, origins = read(path, json.dumps(elements, indent=indent))
    assert [len(row) for row in rows] == [2, 4]
    assert [why for _, why in rejects] == ["no answer: 'output' is empty", "not an object but a number"]
    assert [n for n, *_ in origins] == ([1, 1] if indent is None else [2, 12])


@pytest.mark.parametrize("shape", ["[\n%s,\n%s,\n%s\n]", "[%s,\n%s,\n%s]"])
def test_a_broken_element_of_an_array_loses_none_of_its_neighbours(path, shape):
    line = json.dumps(GOOD)
    rows, rejects, _ = read(path, shape % (line, '{"instruction": tru, "output": "4"}', line))
    assert len(rows) == 2
    assert [why for _, why in rejects] == ["not JSON: Expecting value at character 17"]


def test_an_element_that_lacks_its_end_loses_none_of_its_neighbours(path):
    line = json.dumps(GOOD)
    _, rejects, origins = read(path, f'[\n{line},\n{{"instruction": "Ad\n{line},\n{line}\n]')
    assert [n for n, *_ in origins] == [2, 4, 5]
    assert rejects == [(3, "not JSON: Invalid control character at character 20")]


def test_a_broken_element_over_many_lines_loses_none_of_its_neighbours(path):
    text = json.dumps([GOOD] * 4, indent=2).replace('"output": "4"', '"output": four', 2).replace("four", '"4"', 1)
    rows, rejects, origins = read(path, text)
    assert (len(rows), len(rejects)) == (3, 1)
    assert [n for n, *_ in origins] == [2, 12, 17]


def test_an_array_that_is_cut_off_says_so(path):
    text = json.dumps([GOOD] * 3, indent=2)
    rows, rejects, _ = read(path, text[:-20])
    assert len(rows) == 2
    assert rejects == [(12, "not JSON: the file ends in the middle of an element")]
    rows, rejects, _ = read(path, text.rstrip("] \n"))
    assert len(rows) == 3
    assert rejects[0][1] == "not JSON: the array has no end, so the file may be cut off"


def test_parquet_is_read_by_its_columns(path):
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    pl.DataFrame({"messages": [turns, turns[:1]], "score": [1, 2]}).write_parquet(path)
    content = path.read_bytes()
    rows, rejects, origins = read(path, content, "messages")
    assert rows == [[("user", "2+2?"), ("assistant", "4")]]
    assert rejects == [(2, "no answer: the last message is by the user")]
    assert origins == [(1, '{"score": 1}', None)]
    with pytest.raises(StoreError, match="cannot be read as Parquet"):
        read(path, content[:-40], "messages")


def test_a_file_is_read_in_batches(path):
    path.write_text((json.dumps(GOOD) + "\nbad\n") * 3000)
    batches = list(read_batches(raw_file(path), "raw", "alpaca", 1000, Copies()))
    assert [b.rows.num_rows + b.rejects.num_rows for b in batches] == [2048, 2048, 1904]


def test_equal_rows_get_ids_of_their_own_which_repeat(path):
    path.write_text((json.dumps(GOOD) + "\n") * 3)
    read = [read_batches(raw_file(path), "raw", "alpaca", 1000, Copies()) for _ in "ab"]
    ids = [[id for b in batches for id in b.rows["id"].to_pylist()] for batches in read]
    assert len(set(ids[0])) == 3
    assert ids[0] == ids[1]


def test_the_format_is_what_most_records_have_the_fields_of():
    assert recognise([{"output": "4"}, GOOD, {"prompt": "a", "completion": "b"}, GOOD]) == "alpaca"
    assert recognise([{"question": "2+2?", "answer": "4"}]) is None
    assert {name: recognise([dict.fromkeys(f.needs)]) for name, f in FORMATS.items()} == {n: n for n in FORMATS}
