"""Every format: imported and exported in the same one, a file has the same records, field by field."""

import csv
import json
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from storage.exporting import export_rows
from storage.importing import import_files
from storage.preferences import REJECTED, UNWANTED
from storage.store import Store, StoreError

FILES = Path(__file__).parent / "files"
EACH = [
    ("alpaca.jsonl", "alpaca"),
    ("alpaca.json", "alpaca"),
    ("alpaca.csv", "alpaca"),
    ("alpaca.jsonl.gz", "alpaca"),
    ("alpaca.jsonl.bz2", "alpaca"),
    ("alpaca.jsonl.xz", "alpaca"),
    ("alpaca.jsonl.zst", "alpaca"),
    ("sharegpt.jsonl", "sharegpt"),
    ("messages.jsonl", "messages"),
    ("messages.arrow", "messages"),
    ("prompt-completion.jsonl", "prompt-completion"),
    ("prompt-completion.parquet", "prompt-completion"),
    ("preference.jsonl", "preference"),
    ("kto.jsonl", "kto"),
    ("oasst.jsonl", "oasst"),
    ("text.jsonl", "text"),
]
KIND = {"json": "JSON array", "csv": "CSV", "arrow": "Arrow", "parquet": "Parquet"}
PACKED = {"gz": "gzip", "bz2": "bzip2", "xz": "xz", "zst": "zstd"}


def records(path: Path) -> list[dict]:
    """What a file holds, read by the libraries that made it."""
    if path.suffix == ".parquet":
        return pl.read_parquet(path).to_dicts()
    if path.suffix == ".arrow":
        return pa.ipc.open_file(path.read_bytes()).read_all().to_pylist()
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".json":
        return json.loads(path.read_text())
    content = path.read_bytes()
    if path.suffix == ".zst":
        content = pa.input_stream(path, compression="zstd").read()
    elif path.suffix in (".gz", ".bz2", ".xz"):
        import bz2
        import gzip
        import lzma

        content = {".gz": gzip, ".bz2": bz2, ".xz": lzma}[path.suffix].decompress(content)
    return [json.loads(line) for line in content.splitlines()]


def same_fields(record: dict, format: str) -> dict:
    """A record as its format means it: a field that is empty is as one that is not there."""
    if format == "sharegpt":
        return record
    return {name: value for name, value in record.items() if value not in ("", None)}


@pytest.mark.parametrize("name, format", EACH, ids=[name for name, _ in EACH])
def test_what_was_imported_is_exported_as_it_was(tmp_path, name, format):
    store = Store(tmp_path / "store")
    made = import_files(store, [FILES / name], "pool")
    assert (made.formats, made.rejected) == ({name: format}, 0)
    *_, last = name.split(".")
    kind = KIND.get(name.split(".")[1], "JSON lines")
    assert made.kinds == {name: f"{kind} in {PACKED[last]}" if last in PACKED else kind}
    written = export_rows(store, "pool", tmp_path / name, format)
    expected, found = records(FILES / name), records(tmp_path / name)
    assert [same_fields(r, format) for r in found] == [same_fields(r, format) for r in expected]
    assert written.lost == {}


@pytest.mark.parametrize("format", ["sharegpt", "messages", "prompt-completion"])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet", "arrow"])
def test_every_kind_of_file_holds_every_conversation(tmp_path, format, suffix):
    store = Store(tmp_path / "store")
    first = import_files(store, [FILES / "messages.jsonl"], "pool")
    written = export_rows(store, "pool", tmp_path / f"out.{suffix}", format)
    again = import_files(store, [tmp_path / f"out.{suffix}"], "again")
    assert (again.rows, again.rejected) == (first.rows, 0)
    said = [store.read(d)["messages"].to_list() for d in (first.dataset, again.dataset)]
    kept = (
        ("role", "content")
        if format == "sharegpt"
        else ("role", "content", "reasoning_content", "tool_call_id", "name")
    )
    if format == "sharegpt":  # what it cannot hold is named; a call of a tool is a turn of its own
        assert written.lost == {
            "reasoning_content is left out, which sharegpt cannot hold": 1,
            "tool_call_id is left out, which sharegpt cannot hold": 1,
            "name is left out, which sharegpt cannot hold": 1,
        }
    assert [[[m[k] for k in kept] for m in c] for c in said[1]] == [[[m[k] for k in kept] for m in c] for c in said[0]]
    calls = [[json.loads(m["tool_calls"]) for c in each for m in c if m["tool_calls"]] for each in said]
    assert calls[0] == calls[1] != []


def test_the_users_other_columns_come_back_and_can_be_left_out(tmp_path):
    store = Store(tmp_path / "store")
    import_files(store, [FILES / "alpaca.jsonl"], "pool")
    for own, there in ((True, 4), (False, 0)):
        export_rows(store, "pool", tmp_path / "out.jsonl", "alpaca", own=own)
        assert sum("subset" in r for r in records(tmp_path / "out.jsonl")) == there


@pytest.mark.parametrize("name", ["preference.jsonl", "kto.jsonl", "alpaca.jsonl"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_hold_preferences_and_labels(tmp_path, name, suffix):
    store, format = Store(tmp_path / "store"), name.split(".")[0]
    first = import_files(store, [FILES / name], "pool")
    export_rows(store, "pool", tmp_path / f"out.{suffix}", format)
    again = import_files(store, [tmp_path / f"out.{suffix}"], "again")
    assert again.formats == {f"out.{suffix}": format}
    said = [store.read(d).select("messages", "drop_reason") for d in (first.dataset, again.dataset)]
    assert said[0].equals(said[1])


def test_a_pair_is_a_row_and_the_one_it_is_better_than(tmp_path):
    store = Store(tmp_path / "store")
    made = import_files(store, [FILES / "preference.jsonl"], "pool")
    rows = store.read(made.dataset)
    assert (made.rows, made.dropped) == (6, 3)
    rejected, chosen = rows[::2], rows[1::2]
    assert rejected["drop_reason"].to_list() == [REJECTED] * 3
    assert chosen["parent_id"].to_list() == rejected["id"].to_list()
    assert [m[-1]["content"] for m in chosen["messages"]] == ["4", "Santiago.", "Hello! How can I help?"]
    assert [m[-1]["content"] for m in rejected["messages"]] == ["5", "Lima.", "What."]
    assert store.manifest(made.dataset).counts == {"rows": 6, "live": 3, "rejected": 0, "dropped by import": 3}


def test_an_unwanted_answer_is_dropped_from_the_start(tmp_path):
    store = Store(tmp_path / "store")
    made = import_files(store, [FILES / "kto.jsonl"], "pool")
    assert store.read(made.dataset)["drop_reason"].to_list() == [None, UNWANTED]


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "2+2", "input": "", "chosen": "4", "rejected": "5"},
        {"conversations": [{"from": "human", "value": "2+2"}], "chosen": {"from": "gpt", "value": "4"},
         "rejected": {"from": "gpt", "value": "5"}},
        {"messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}],
         "rejected_response": "5"},
        {"chosen": "\n\nHuman: 2+2\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2\n\nAssistant: 5"},
        {"prompt": "2+2", "messages": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}],
         "chosen": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}],
         "rejected": [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "5"}]},
    ],
    ids=["alpaca", "LLaMA-Factory's ShareGPT", "ms-swift's", "Anthropic's", "UltraFeedback's"],
)  # fmt: skip
def test_pairs_have_many_forms(tmp_path, record):
    (tmp_path / "raw.jsonl").write_text(json.dumps(record))
    store = Store(tmp_path / "store")
    made = import_files(store, [tmp_path / "raw.jsonl"], "pool")
    said = [[(m["role"], m["content"]) for m in c] for c in store.read(made.dataset)["messages"].to_list()]
    assert said == [[("user", "2+2"), ("assistant", "5")], [("user", "2+2"), ("assistant", "4")]]
    assert made.formats == {"raw.jsonl": "preference"}


def test_a_tree_is_a_row_for_each_thread_and_a_thread_without_an_answer_says_so(tmp_path):
    leaf = {"message_id": "b", "text": "4", "role": "assistant", "rank": 0, "replies": []}
    asked = {"message_id": "c", "text": "Sure?", "role": "prompter", "replies": []}
    other = {"message_id": "d", "text": "Four", "role": "assistant", "rank": 1, "replies": [asked]}
    record = {"message_tree_id": "a", "prompt": {"message_id": "a", "text": "2+2?", "role": "prompter"}}
    record["prompt"]["replies"] = [leaf, other]
    (tmp_path / "raw.jsonl").write_text(json.dumps(record))
    store = Store(tmp_path / "store")
    made = import_files(store, [tmp_path / "raw.jsonl"], "pool")
    assert (made.rows, made.rejected) == (1, 1)
    reasons = store.read_side(made.dataset, "rejects")["reason"].to_list()
    assert reasons == ["no answer: a thread of 3 messages ends with the prompter"]


def test_text_is_cut_into_passages_with_the_lines_they_begin_on(tmp_path):
    store = Store(tmp_path / "store")
    made = import_files(store, [FILES / "guide.md", FILES / "text.txt"], "pool")
    assert made.kinds == {"guide.md": "Markdown", "text.txt": "text"}
    texts = [m[0]["content"] for m in store.read(made.dataset)["messages"].to_list()]
    assert texts == [
        "# Guide\n\nWhat it is.",
        "## Install\n\n```\n# no heading\nmake\n```",
        "## Use\n\nType it.",
        "The first paragraph\nhas two lines.\n\nThe second has one.",
    ]
    origin = store.read_side(made.dataset, "origin")
    assert origin["line"].to_list() == [1, 5, 12, 1]
    headings = [json.loads(c)["heading"] for c in origin["columns"].drop_nulls()]
    assert headings == ["Guide", "Guide > Install", "Guide > Use"]
    export_rows(store, "pool", tmp_path / "out.md", "text")
    assert (tmp_path / "out.md").read_text() == (FILES / "guide.md").read_text() + "\n" + (
        FILES / "text.txt"
    ).read_text()


@pytest.mark.parametrize("format", ["alpaca", "text"])
def test_what_a_format_cannot_hold_at_all_is_refused_by_row(tmp_path, format):
    store = Store(tmp_path / "store")
    made = import_files(store, [FILES / "messages.jsonl"], "pool")
    tools = store.read(made.dataset)["id"][4]
    named = tools if format == "alpaca" else "row "
    with pytest.raises(StoreError, match=f"{named}.*cannot hold; use messages"):
        export_rows(store, "pool", tmp_path / "out.jsonl", format)
