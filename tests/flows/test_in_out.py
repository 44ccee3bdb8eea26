"""What the commands import and export say, and refuse."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.command import REJECTED

FILES = Path(__file__).parents[1] / "storage" / "files"


def run(folder: Path, *words: str | Path):
    found = CliRunner().invoke(app, [*map(str, words), "--store", str(folder / "store")])
    return found.exit_code, " ".join(found.output.split()), found.exception


def test_an_import_says_what_it_took_and_what_it_repaired(tmp_path):
    said = json.dumps({"question": "Olá?", "answer": "Sim."}, ensure_ascii=False)
    (tmp_path / "raw.jsonl").write_bytes(said.encode("latin-1") + b"\nbad\n")
    columns = ("--column", "instruction=question", "--column", "output=answer")
    code, told, _ = run(tmp_path, "import", tmp_path / "raw.jsonl", "--name", "pool", *columns)
    assert code == REJECTED
    assert "pool: 1 rows, 1 rejected; took raw.jsonl as alpaca (JSON lines)" in told
    assert "1 rows: decoded as Latin-1, since it was no UTF-8" in told


def test_how_long_a_row_may_be_can_be_said(tmp_path):
    from storage.importing import MAX_CHARS

    lines = [{"instruction": "Say it.", "output": "x" * n} for n in (5, 50, MAX_CHARS)]
    (tmp_path / "raw.jsonl").write_text("".join(json.dumps(said) + "\n" for said in lines))
    for words, rows in (((), 2), (("--max-chars", "20"), 1), (("--max-chars", "40000"), 3)):
        _, told, _ = run(tmp_path, "import", tmp_path / "raw.jsonl", "--name", "pool", *words)
        assert f"pool: {rows} rows, {3 - rows} rejected" in told


def test_pairs_that_were_imported_can_be_exported_and_are_told(tmp_path):
    code, told, _ = run(tmp_path, "import", FILES / "preference.jsonl", "--name", "pool")
    assert code == 0
    assert "3 rows are dropped from the start" in told
    code, told, _ = run(tmp_path, "export", "pool", tmp_path / "out", "--format", "trl")
    assert code == 0
    assert f"read it with: trl sft --config {tmp_path}/out/sft.yaml" in told
    assert (tmp_path / "out" / "preference.jsonl").exists()


def test_what_an_export_cannot_hold_is_told(tmp_path):
    run(tmp_path, "import", FILES / "messages.jsonl", "--name", "pool")
    code, told, _ = run(tmp_path, "export", "pool", tmp_path / "out.jsonl", "--format", "sharegpt")
    assert code == 0
    assert "1 rows: reasoning_content is left out, which sharegpt cannot hold" in told


@pytest.mark.parametrize(
    "words, message",
    [
        (("import", "raw.jsonl", "--name", "pool", "--column", "question"), "--column takes FIELD=YOURS"),
        (("export", "pool", "out.jsonl", "--push-to-hub", "me/mine"), "--push-to-hub takes --format hf"),
        (("export", "pool", "out", "--format", "hf", "--public"), "--public takes --push-to-hub USER/NAME"),
    ],
)
def test_wrong_usage_is_named(tmp_path, words, message):
    _, _, why = run(tmp_path, *words)
    assert message in str(why)


def test_what_was_imported_as_better_is_learnt_from(tmp_path):
    from flows.preference import pairs_of
    from storage.importing import import_files
    from storage.store import Store

    store = Store(tmp_path / "store")
    made = import_files(store, [FILES / "preference.jsonl"], "pool")
    pairs = store.read(pairs_of(store, made.dataset))
    assert pairs["why"].to_list() == ["import"] * 3
    ids = store.read(made.dataset)["id"].to_list()
    assert pairs.select("id", "rejected").rows() == list(zip(ids[1::2], ids[::2], strict=True))
