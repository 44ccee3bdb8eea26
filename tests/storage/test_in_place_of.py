"""Rows that were put in the place of others: what an export writes beside them."""

import json
from pathlib import Path

import polars as pl
import pytest

from curation.privacy import PrivacyFind, PrivacyMask
from curation.step import find_step
from flows import steps  # noqa: F401  registers ours
from flows.preference import pairs_of
from flows.run import run_step
from storage.exporting import export_folder, export_rows
from storage.importing import import_files
from storage.schema import message, row_id
from storage.store import Manifest, Store, StoreError, key_of

TOOLS = [{"type": "function", "function": {"name": "mail", "parameters": {"type": "object"}}}]


def masked(folder: Path, *records: dict) -> tuple[Store, str]:
    store = Store(folder / "store")
    (folder / "raw.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    made = import_files(store, [folder / "raw.jsonl"], "pool").dataset
    for name, config in (("privacy-find", PrivacyFind()), ("privacy-mask", PrivacyMask())):
        made = run_step(store, find_step(name), config, made)
    return store, made


def exported(store: Store, dataset: str, format: str) -> list[dict]:
    path = store.root.parent / "out.jsonl"
    export_rows(store, dataset, path, format)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_masked_row_keeps_its_tools_and_the_users_columns(tmp_path):
    said = [message("user", "Write to jane@example.com"), message("assistant", "Done.")]
    spoken = [{k: m[k] for k in ("role", "content")} for m in said]
    store, made = masked(tmp_path, {"messages": spoken, "tools": TOOLS, "topic": "post"})
    (record,) = exported(store, made, "messages")
    assert record["messages"][0]["content"] == "Write to <EMAIL_ADDRESS>"
    assert (record["tools"], record["topic"]) == (TOOLS, "post")
    export_folder(store, made, tmp_path / "trl", "trl")
    assert json.loads((tmp_path / "trl" / "train.jsonl").read_text())["tools"] == TOOLS


def test_the_input_of_alpaca_is_told_apart_only_where_the_prompt_is_as_it_was(tmp_path):
    both = ({"instruction": "Who is", "input": "jane@example.com", "output": "Me."},)
    both += ({"instruction": "Add.", "input": "2+2", "output": "4, says jane@example.com"},)
    store, made = masked(tmp_path, *both)
    assert exported(store, made, "alpaca") == [
        {"instruction": "Who is\n<EMAIL_ADDRESS>", "input": "", "output": "Me."},
        {"instruction": "Add.", "input": "2+2", "output": "4, says <EMAIL_ADDRESS>"},
    ]


def test_what_was_masked_is_written_nowhere_as_the_worse_answer(tmp_path):
    record = {"instruction": "Who?", "output": "jane@example.com"}
    store, made = masked(tmp_path, record)
    with pytest.raises(StoreError, match="holds no pair"):
        exported(store, made, "preference")
    assert store.read(pairs_of(store, made)).height == 0


def test_a_correction_of_a_correction_is_followed_to_the_first_and_a_grown_row_is_new(tmp_path):
    store = Store(tmp_path / "store")
    (tmp_path / "raw.jsonl").write_text(json.dumps({"instruction": "2+2?", "output": "5", "topic": "sums"}) + "\n")
    made = import_files(store, [tmp_path / "raw.jsonl"], "pool")
    (row,) = store.read(made.dataset).to_dicts()

    def child(parent: dict, answer: str, method: str, reason: str | None = None) -> dict:
        said = [*parent["messages"][:-1], message("assistant", answer)]
        id = row_id(said, "pool", parent["id"])
        return parent | {"id": id, "messages": said, "method": method, "parent_id": parent["id"], "drop_reason": reason}

    second = child(row, "3", "clear-correct", "clear-correct: replaced by x")
    rows = [row | {"drop_reason": "clear-correct: replaced by y"}, second, child(second, "4", "clear-correct")]
    rows.append(child(rows[2], "8", "grow"))
    frame = pl.DataFrame(rows, schema=store.read(made.dataset).schema)
    part = store.put_part(key_of("rows"), frame)
    store.seal(Manifest("correct-1", "rows", "correct", 1, {}, {}, {"rows": made.dataset}, ((part,),)))
    assert [(r["output"], r.get("topic")) for r in exported(store, "correct-1", "alpaca")] == [
        ("4", "sums"),
        ("8", None),
    ]
