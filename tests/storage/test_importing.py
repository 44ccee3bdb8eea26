import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.importing import import_files
from storage.store import Store, StoreError

GOOD = {"instruction": "Add.", "input": "2+2", "output": "4", "annotator": "Noor"}


def write(path: Path, *records: dict | str) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def parts(store: Store) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in store.root.glob("parts/*/*.parquet")}


def test_an_import_is_a_named_dataset_with_origins_and_rejects(tmp_path):
    store = Store(tmp_path / "store")
    made = import_files(store, [write(tmp_path / "raw.jsonl", GOOD, "bad", GOOD)], "pool")
    assert (made.rows, made.rejected, made.formats) == (2, 1, {"raw.jsonl": "alpaca"})
    assert store.resolve("pool") == made.dataset
    rows, origin, rejects = (
        store.read(made.dataset),
        *(store.read_side(made.dataset, t) for t in ("origin", "rejects")),
    )
    assert rows["source"].to_list() == ["pool", "pool"]
    assert rows["id"].to_list() == origin["id"].to_list()
    assert rows["id"].n_unique() == 2
    assert origin["line"].to_list() == [1, 3]
    assert origin["columns"].to_list() == ['{"annotator": "Noor"}'] * 2
    assert rejects.row(0) == ("raw.jsonl", 2, "not JSON: Expecting value at character 1", "bad")
    assert store.manifest(made.dataset).counts == {"rows": 2, "live": 2, "rejected": 1}


def test_an_import_without_rejects_has_an_empty_table_of_them(tmp_path):
    store = Store(tmp_path / "store")
    made = import_files(store, [write(tmp_path / "raw.jsonl", GOOD)], "pool")
    assert store.read_side(made.dataset, "rejects").columns == ["file", "line", "reason", "raw"]
    assert store.read_side(made.dataset, "rejects").height == 0


def test_the_manifest_is_the_same_on_every_machine(tmp_path):
    manifests = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        store = Store(tmp_path / folder / "store")
        made = import_files(store, [write(tmp_path / folder / "raw.jsonl", GOOD, "bad")], "pool")
        manifests.append((store.folder(made.dataset) / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]


def test_the_same_import_is_found_and_not_read_again(tmp_path):
    store, file = Store(tmp_path / "store"), write(tmp_path / "raw.jsonl", *[GOOD] * 10)
    first = import_files(store, [file], "pool")
    for part in store.root.glob("parts/*/*.parquet"):
        part.unlink()
    seen = []
    assert import_files(store, [file], "pool", progress=lambda done, total: seen.append(done)) == first
    assert (seen, parts(store)) == ([], {})


@pytest.mark.parametrize("other", [{"name": "b"}, {"format": "alpaca"}, {"max_chars": 9}], ids=lambda o: next(iter(o)))
def test_another_option_is_another_dataset(tmp_path, other):
    store, file = Store(tmp_path / "store"), write(tmp_path / "raw.jsonl", GOOD, GOOD | {"input": "1"})
    options = {"name": "a"}
    assert import_files(store, [file], **options).dataset != import_files(store, [file], **options | other).dataset


def test_equal_rows_of_two_files_stay_two_rows(tmp_path):
    store = Store(tmp_path / "store")
    files = [write(tmp_path / name, GOOD) for name in ("a.jsonl", "b.jsonl")]
    made = import_files(store, files, "pool")
    assert store.read(made.dataset)["id"].n_unique() == 2
    assert store.read_side(made.dataset, "origin")["file"].to_list() == ["a.jsonl", "b.jsonl"]


def test_files_of_two_formats_are_one_import(tmp_path):
    files = [write(tmp_path / "a.jsonl", GOOD), write(tmp_path / "b.jsonl", {"prompt": "2+2?", "completion": "4"})]
    made = import_files(Store(tmp_path / "store"), files, "pool")
    assert made.formats == {"a.jsonl": "alpaca", "b.jsonl": "prompt-completion"}
    assert made.format == "alpaca, prompt-completion"


def test_progress_is_of_bytes_and_ends_at_the_whole(tmp_path):
    files = [write(tmp_path / name, *[GOOD] * 3000) for name in ("a.jsonl", "b.jsonl")]
    seen = []
    import_files(Store(tmp_path / "store"), files, "pool", progress=lambda done, total: seen.append((done, total)))
    size = files[0].stat().st_size
    assert {total for _, total in seen} == {2 * size}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert (size, 2 * size) in seen
    assert seen[-1] == (2 * size, 2 * size)


@pytest.mark.parametrize(
    "records, options, message",
    [
        pytest.param([], {}, "raw.jsonl has no usable row", id="empty"),
        pytest.param(["bad", "worse"], {}, "raw.jsonl has no usable row", id="no JSON"),
        pytest.param([{"question": "2+2?"}], {}, "its lines have 'question'; say which", id="unknown fields"),
        pytest.param([GOOD | {"output": ""}], {}, "such as line 1: no answer: 'output' is empty", id="no answers"),
        pytest.param([GOOD], {"format": "messages"}, "such as line 1: no field 'messages'", id="another format"),
        pytest.param([GOOD], {"format": "csv"}, "there are auto, preference", id="no such format"),
        pytest.param([GOOD], {"name": "../pool"}, "is no dataset name", id="no such name"),
    ],
)
def test_what_cannot_be_imported_is_named_and_leaves_nothing_to_see(tmp_path, records, options, message):
    store = Store(tmp_path / "store")
    good = write(tmp_path / "good.jsonl", GOOD)
    with pytest.raises(StoreError, match=message):
        import_files(store, [good, write(tmp_path / "raw.jsonl", *records)], **{"name": "pool"} | options)
    assert (store.ids(), store.names()) == ([], {})


def test_files_that_are_not_there_are_named(tmp_path):
    store = Store(tmp_path / "store")
    (tmp_path / "a").mkdir()
    (tmp_path / "empty").mkdir()
    twin = write(tmp_path / "a" / "raw.jsonl", GOOD)
    for files, message in (
        ([], "no file to import"),
        ([tmp_path / "gone.jsonl"], "there is no file .*gone.jsonl"),
        ([tmp_path / "empty"], "is a folder without a file of data"),
        ([twin, write(tmp_path / "raw.jsonl", GOOD)], "two files are named 'raw.jsonl'"),
    ):
        with pytest.raises(StoreError, match=message):
            import_files(store, files, "pool")
    assert not store.root.exists()


def test_an_import_that_was_killed_goes_on_to_the_same_bytes(tmp_path):
    lines = [GOOD | {"input": str(n % 9000)} if n % 50 else "bad" for n in range(20_000)]
    file = write(tmp_path / "raw.jsonl", *lines)
    whole, cut = Store(tmp_path / "whole"), Store(tmp_path / "cut")
    expected = import_files(whole, [file], "pool")

    code = (
        "import sys, time; from pathlib import Path; from storage.store import Store;"
        "from storage.importing import import_files; store, file = map(Path, sys.argv[1:]);"
        "import_files(Store(store), [file], 'pool', progress=lambda done, total: time.sleep(0.1))"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(cut.root), str(file)])
    while len(parts(cut)) < 4 and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert (cut.ids(), cut.names()) == ([], {})
    before = parts(cut)
    assert 4 <= len(before) < len(parts(whole))
    stamps = {p: p.stat().st_mtime_ns for p in cut.root.glob("parts/*/*.parquet")}

    assert import_files(cut, [file], "pool") == expected
    assert parts(cut) == parts(whole)
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


record = st.fixed_dictionaries(
    {},
    optional={
        name: st.one_of(st.text(st.characters(exclude_categories=())), st.none(), st.integers(), st.lists(st.text()))
        for name in ("instruction", "input", "output", "system", "history", "other")
    },
)
line = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40).map(lambda text: text.encode("latin-1", "replace")),
    record.map(lambda r: json.dumps(r).encode()),
    record.map(lambda r: json.dumps(r, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    record.map(lambda r: json.dumps(r).encode()[:-3]),
    st.just(json.dumps(GOOD).encode()),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(line, max_size=8))
def test_every_line_that_is_not_blank_is_a_row_or_a_reject(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("fuzz")
    content = b"\n".join([json.dumps(GOOD).encode(), *lines])  # the first line says that it is no array
    (folder / "raw.jsonl").write_bytes(content)
    store = Store(folder / "store")
    made = import_files(store, [folder / "raw.jsonl"], "pool")
    filled = [n for n, text in enumerate(content.split(b"\n"), 1) if text.strip()]
    tables = [store.read_side(made.dataset, table) for table in ("origin", "rejects")]
    assert sorted(pl.concat([t["line"] for t in tables]).to_list()) == filled
    rows = store.read(made.dataset)
    assert rows["id"].n_unique() == rows.height == made.rows
    assert all(messages[-1]["content"].strip() for messages in rows["messages"].to_list())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_no_content_breaks_more_than_its_own_import(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "raw.jsonl").write_bytes(b"[\n" + json.dumps(GOOD).encode() + b",\n" + content)
    made = import_files(Store(folder / "store"), [folder / "raw.jsonl"], "pool")
    assert made.rows >= 1
