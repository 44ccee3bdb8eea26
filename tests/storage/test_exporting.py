import json
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from storage.exporting import export_rows
from storage.importing import import_files
from storage.schema import ROW, message
from storage.store import Manifest, Store, StoreError, key_of
from tests.rows import rows

SINGLE = [message("user", "Add.\n2+2"), message("assistant", "4")]
LONG = [message("system", "Be brief."), message("user", "Hi"), message("assistant", "Hello"), *SINGLE]
TOOLS = [
    message("user", "2+2?"),
    message("assistant", "", '[{"id": "c1"}]'),
    message("tool", "4"),
    message("assistant", "Ñ 4"),
]


def stored(folder: Path, *conversations: list, kind: str = "rows", **columns: list) -> Store:
    frame = rows(*[("", "")] * len(conversations), **columns)
    frame = frame.with_columns(pl.Series("messages", list(conversations), dtype=frame.schema["messages"]))
    store = Store(folder / "store")
    parts = [store.put_part(key_of(n), frame[n], ROW) for n in range(frame.height)]
    store.seal(Manifest("d-1", kind, "import", 1, {}, {}, {}, tuple((p,) for p in parts)))
    store.name("pool", "d-1")
    return store


def exported(store: Store, format: str) -> list[dict]:
    path = store.root.parent / "out.jsonl"
    export_rows(store, "pool", path, format)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_alpaca_holds_a_turn_whole_in_its_instruction(tmp_path):
    assert exported(stored(tmp_path, SINGLE, LONG), "alpaca") == [
        {"instruction": "Add.\n2+2", "input": "", "output": "4"},
        {
            "instruction": "Add.\n2+2",
            "input": "",
            "output": "4",
            "system": "Be brief.",
            "history": [["Hi", "Hello"]],
        },
    ]


def test_sharegpt_names_its_roles(tmp_path):
    said = [
        [(t["from"], t["value"]) for t in r["conversations"]]
        for r in exported(stored(tmp_path, LONG, TOOLS), "sharegpt")
    ]
    assert said[0] == [("system", "Be brief."), ("human", "Hi"), ("gpt", "Hello"), ("human", "Add.\n2+2"), ("gpt", "4")]
    assert said[1] == [("human", "2+2?"), ("function_call", '[{"id": "c1"}]'), ("tool", "4"), ("gpt", "Ñ 4")]


def test_messages_have_tool_calls_only_where_there_are_any(tmp_path):
    said = exported(stored(tmp_path, SINGLE, TOOLS), "messages")
    assert said[0] == {"messages": [{"role": "user", "content": "Add.\n2+2"}, {"role": "assistant", "content": "4"}]}
    assert said[1]["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [{"id": "c1"}]}


def test_prompt_completion_is_text_if_it_can_be(tmp_path):
    said = exported(stored(tmp_path, SINGLE, LONG), "prompt-completion")
    assert said[0] == {"prompt": "Add.\n2+2", "completion": "4"}
    assert [m["role"] for m in said[1]["prompt"]] == ["system", "user", "assistant", "user"]
    assert said[1]["completion"] == [{"role": "assistant", "content": "4"}]


@pytest.mark.parametrize("conversations, keys", [([SINGLE, LONG], ["role", "content"]), ([SINGLE, TOOLS], None)])
def test_parquet_has_a_column_messages(tmp_path, conversations, keys):
    store = stored(tmp_path, *conversations)
    assert export_rows(store, "pool", tmp_path / "out.parquet", "parquet").rows == 2
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["messages"]
    keys = keys or ["role", "content", "tool_calls"]
    assert table["messages"].to_pylist() == [[{k: m[k] for k in keys} for m in c] for c in conversations]


def test_dropped_rows_are_left_out(tmp_path):
    store = stored(tmp_path, SINGLE, LONG, drop_reason=["duplicates: exact copy of r1", None])
    assert [r["output"] for r in exported(store, "alpaca")] == ["4"]
    assert export_rows(store, "pool", tmp_path / "out.parquet", "parquet").rows == 1


@pytest.mark.parametrize("format", ["sharegpt", "messages", "prompt-completion", "parquet"])
def test_what_was_exported_is_imported_as_it_was(tmp_path, format):
    store = stored(tmp_path, SINGLE, LONG, TOOLS)
    export_rows(store, "pool", tmp_path / "out", format)
    again = import_files(store, [tmp_path / "out"], "again")
    said = [store.read(d)["messages"].to_list() for d in ("d-1", again.dataset)]
    assert [[(m["role"], m["content"]) for m in c] for c in said[0]] == [
        [(m["role"], m["content"]) for m in c] for c in said[1]
    ]


def test_an_export_that_fails_leaves_the_old_file(tmp_path):
    store = stored(tmp_path, SINGLE, TOOLS)
    (tmp_path / "out.jsonl").write_text("old")
    with pytest.raises(StoreError, match=r"row r1 .*; use messages"):
        export_rows(store, "pool", tmp_path / "out.jsonl", "alpaca")
    assert (tmp_path / "out.jsonl").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "store"]


@pytest.mark.parametrize(
    "kind, dataset, file, format, message",
    [
        ("rows", "pol", "out", "alpaca", "did you mean pool"),
        ("rows", "pool", "gone/out", "alpaca", "there is no folder"),
        ("rows", "pool", "out", "xml", "there are alpaca, "),
        ("rows", "pool", "out.csv", "oasst", "holds no trees"),
        ("rows", "pool", "out.txt", "alpaca", "would be text"),
        ("rows", "pool", "out", "preference", "holds no pair"),
        ("choice", "pool", "out", "alpaca", "is a choice, not rows"),
    ],
)
def test_what_cannot_be_exported_is_named(tmp_path, kind, dataset, file, format, message):
    with pytest.raises(StoreError, match=message):
        export_rows(stored(tmp_path, SINGLE, kind=kind), dataset, tmp_path / file, format)
