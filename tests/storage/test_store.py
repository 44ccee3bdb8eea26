import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import polars as pl
import pytest

from storage.schema import ROW
from storage.store import Manifest, Store, StoreError, key_of
from tests.rows import rows


def manifest(id: str, *shards: tuple, **more) -> Manifest:
    return Manifest(
        id=id, kind="rows", step="import", version=1, config={}, engines={}, inputs={}, shards=shards, **more
    )


def test_a_dataset_without_a_manifest_does_not_exist(tmp_path):
    store = Store(tmp_path)
    part = store.put_part("a" * 20, rows(("2+2?", "4")), ROW)
    store.note_run("d-1", seconds=1)
    assert store.ids() == []
    with pytest.raises(StoreError, match="no dataset 'd-1'"):
        store.manifest("d-1")
    store.seal(manifest("d-1", (part,)))
    assert store.ids() == ["d-1"]
    assert store.read("d-1")["id"].to_list() == ["r0"]


def test_a_manifest_comes_back_as_it_was_sealed(tmp_path):
    store = Store(tmp_path)
    part = store.put_part("a" * 20, rows(("2+2?", "4")), ROW)
    made = manifest("d-1", (part,), side={"origin": (part,)}, counts={"rows": 1})
    store.seal(made)
    assert store.manifest("d-1") == made


def test_who_seals_first_is_believed(tmp_path):
    store = Store(tmp_path)
    store.seal(manifest("d-1", counts={"rows": 1}))
    store.seal(manifest("d-1", counts={"rows": 2}))
    assert store.manifest("d-1").counts == {"rows": 1}


def test_of_two_writers_of_one_part_the_first_stays_and_both_are_told_of_it(tmp_path):
    store = Store(tmp_path)
    frames = [rows(("2+2?", str(n))) for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda frame: store.put_part("b" * 20, frame, ROW), frames))
    assert len(set(parts)) == 1
    answer = store.read_shard((parts[0],), ["messages"])["messages"][0][1]["content"]
    assert store.put_part("b" * 20, rows(("2+2?", "late")), ROW) == parts[0]
    assert store.read_shard((parts[0],), ["messages"])["messages"][0][1]["content"] == answer != "late"
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/passwd", "..", "a..b", "", ".hidden", "a\n", "x" * 101])
def test_a_name_cannot_leave_the_root(tmp_path, name):
    store = Store(tmp_path / "store")
    for use in (lambda: store.name(name, "d-1"), lambda: store.resolve(name)):
        with pytest.raises(StoreError, match="is no dataset name"):
            use()
    assert not (tmp_path / "store").exists()


def test_a_name_moves_only_from_where_it_is_expected_to_point(tmp_path):
    store = Store(tmp_path)
    store.name("pool", "d-1")
    store.name("pool", "d-2", expect="d-1")
    with pytest.raises(StoreError, match="'pool' was moved to d-2"):
        store.name("pool", "d-3", expect="d-1")
    assert store.resolve("pool") == "d-2"
    assert store.names() == {"pool": "d-2"}


def test_an_unknown_name_is_answered_with_those_like_it(tmp_path):
    store = Store(tmp_path)
    store.name("snips-raw", "d-1")
    with pytest.raises(StoreError, match="did you mean snips-raw"):
        store.resolve("snips-rw")


def test_sweep_removes_what_dead_processes_left_and_nothing_of_the_living(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = tmp_path / "tmp"
    folder.mkdir()
    host = socket.gethostname()
    (folder / f"{host}:{dead.pid}:file").write_text("half")
    (folder / f"{host}:{dead.pid}:folder").mkdir()
    (folder / f"{host}:{os.getpid()}:mine").write_text("half")
    (folder / f"elsewhere:{dead.pid}:theirs").write_text("half")
    Store(tmp_path).sweep()
    assert sorted(p.name for p in folder.iterdir()) == [f"elsewhere:{dead.pid}:theirs", f"{host}:{os.getpid()}:mine"]


def test_a_shard_is_its_parts_side_by_side_and_a_later_part_hides_an_earlier_one(tmp_path):
    store = Store(tmp_path)
    first = store.put_part(key_of(1), rows(("1+1?", "2"), ("2+2?", "5")), ROW)
    second = store.put_part(key_of(2), pl.DataFrame({"id": ["r0", "r1"], "clear_confidence": [0.9, 0.1]}))
    third = store.put_part(key_of(3), pl.DataFrame({"id": ["r0", "r1"], "drop_reason": [None, "clear-filter: low"]}))
    store.seal(manifest("d-1", (first, second, third)))
    read = store.read("d-1")
    assert read["drop_reason"].to_list() == [None, "clear-filter: low"]
    assert read["clear_confidence"].to_list() == [0.9, 0.1]
    assert read["messages"][1][1]["content"] == "5"
    assert store.read("d-1", ["clear_confidence", "id"]).columns == ["clear_confidence", "id"]


def test_what_is_not_asked_for_stays_on_disk(tmp_path):
    store = Store(tmp_path)
    first = store.put_part(key_of(1), rows(("1+1?", "2")), ROW)
    second = store.put_part(key_of(2), pl.DataFrame({"clear_confidence": [0.9]}))
    (tmp_path / first.file).unlink()
    assert store.read_shard((first, second), ["clear_confidence"])["clear_confidence"].to_list() == [0.9]


def test_a_column_of_some_shards_is_null_in_the_others(tmp_path):
    store = Store(tmp_path)
    first = store.put_part(key_of(1), rows(("1+1?", "2")), ROW)
    other = store.put_part(key_of(2), rows(("2+2?", "4"), clear_confidence=[0.5]), ROW)
    store.seal(manifest("d-1", (first,), (other,)))
    assert store.read("d-1")["clear_confidence"].to_list() == [None, 0.5]


def test_a_digest_is_of_the_content_whoever_made_it(tmp_path):
    store = Store(tmp_path)
    same = [store.put_part(key_of(n), rows(("1+1?", "2")), ROW) for n in range(2)]
    other = store.put_part(key_of(2), rows(("1+1?", "3")), ROW)
    one, two, three = (manifest("d", (part,)).digest for part in (*same, other))
    assert one == two != three
