import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from storage.collect import collect, garbage, own_bytes
from storage.schema import ROW
from storage.store import Manifest, Store, StoreError, key_of
from storage.using import looking
from tests.rows import rows

ROOT = Path(__file__).parents[2]


def sealed(store: Store, id: str, shards=(), inputs=None, **more) -> str:
    return store.seal(Manifest(id, "rows", id.partition("-")[0], 1, {}, {}, inputs or {}, shards, **more))


@pytest.fixture
def store(tmp_path):
    """pool -> scored -> kept, of which the middle one has no name; another scored one that nothing needs."""
    store = Store(tmp_path)
    part = store.put_part(key_of("pool"), rows(("1+1?", "2"), ("2+2?", "4")), ROW)
    sealed(store, "import-1", ((part,),))
    score = store.put_part(key_of("score"), pl.DataFrame({"id": ["r0", "r1"], "a_b": [0.1, 0.2]}))
    store.note_part(key_of("other"), seconds=1)
    other = store.put_part(key_of("other"), pl.DataFrame({"id": ["r0", "r1"], "a_b": [0.3, 0.4]}))
    sealed(store, "score-1", ((part, score),), {"rows": "import-1"})
    sealed(store, "score-2", ((part, other),), {"rows": "import-1"})
    sealed(store, "filter-2", ((part, other),), {"rows": "score-2"})
    sealed(store, "filter-1", ((part, score),), {"rows": "score-1"})
    store.name("kept", "filter-1")
    return store


def other_process(store: Store, does: str) -> subprocess.Popen:
    """A process that does something with the store, says that it has, and lives until its input ends."""
    code = f"""if True:
        import sys
        from pathlib import Path
        from storage.store import Store
        store = Store(Path({str(store.root)!r}))
        {does}
        print("ready", flush=True)
        sys.stdin.read()"""
    ran = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert ran.stdout.readline() == "ready\n"
    return ran


def left(store: Store) -> set[str]:
    return set(store.ids())


def test_what_no_name_reaches_goes_and_the_whole_history_of_what_has_a_name_stays(store):
    found = garbage(store)
    assert [made.id for made in found.datasets] == ["filter-2", "score-2"]
    assert left(store) == {"import-1", "score-1", "score-2", "filter-1", "filter-2"}, "a preview removes nothing"
    before = sum(p.stat().st_size for p in store.root.rglob("*.*") if p.is_file())
    assert collect(store).bytes == found.bytes
    assert left(store) == {"import-1", "score-1", "filter-1"}
    assert store.read("filter-1")["a_b"].to_list() == [0.1, 0.2]
    assert store.part(key_of("other")) is None and not list(store.root.glob("parts/*/*.json"))
    assert before - sum(p.stat().st_size for p in store.root.rglob("*.*") if p.is_file()) == found.bytes
    assert not garbage(store).datasets


def test_a_name_that_is_forgotten_reaches_nothing(store):
    store.forget(["kept"])
    collect(store)
    assert left(store) == set() and not list(store.root.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("does", "kept"),
    [
        pytest.param("store.exists('filter-2')", {"score-2", "filter-2"}, id="found-by-its-key"),
        pytest.param("store.manifest('score-2')", {"score-2"}, id="reads-it"),
        pytest.param("store.resolve('score-2')", {"score-2"}, id="was-given-it"),
        pytest.param(
            "from storage.copy import copy_store; copy_store(str(store.root), str(store.root) + '-copy')",
            {"score-2", "filter-2"},
            id="copies-it",
        ),
        pytest.param("pass", set(), id="does-not-use-it"),
    ],
)
def test_what_another_running_process_uses_stays_until_it_ends(store, does, kept):
    ran = other_process(store, does)
    assert garbage(store).held == len(kept)
    collect(store)
    assert left(store) == {"import-1", "score-1", "filter-1"} | kept
    for dataset in kept:
        assert store.read(dataset)["a_b"].to_list() == [0.3, 0.4]
    ran.kill()  # as bad an end as there is
    ran.wait()
    collect(store)
    assert left(store) == {"import-1", "score-1", "filter-1"}


def test_what_another_process_is_making_stays(store):
    does = "import polars as pl; store.put_part('e' * 20, pl.DataFrame({'id': ['a']})); "
    does += "folder = store.scratch(); (folder / 'x').write_text('x'); store.put_folder('train-9', folder); "
    does += "place = store.workplace('train-8'); (place.__enter__() / 'step').write_text('1'); "
    does += "store.note_run('score-7', started=1); store.note_part('d' * 20, seconds=1)"
    ran = other_process(store, does)
    collect(store)
    making = [store.root / "parts/ee" / f"{'e' * 20}.parquet", store.files("train-9") / "x"]
    making.append(store.root / "checkpoints/train-8/step")
    making += [store.folder("score-7") / "run.json", store.root / "parts/dd" / f"{'d' * 20}.json"]
    assert all(path.exists() for path in making)
    ran.communicate("")
    found = collect(store)
    assert found.unsealed == 1 and {p.name for p in found.unfinished} == {"train-8", "train-9", "score-7"}
    assert not any(path.exists() for path in making)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as two users")
def test_what_another_user_uses_stays(store):
    for folder in (store.root, *store.root.parents):
        if folder.owner() == "root" and folder != Path("/") and folder.stat().st_mode & 0o001 == 0:
            folder.chmod(0o755)
    becomes = "import os, polars, storage.collect; os.setgid(65534); os.setuid(65534)"
    ran = other_process(store, f"{becomes}; store.manifest('score-2')")  # he may read, but not write
    with pytest.raises(StoreError, match=r"a command of somebody who may not write .* is running"):
        collect(store)
    ran.communicate("")
    assert "score-2" in left(store)
    for folder in [store.root, *store.root.rglob("*")]:
        folder.chmod(0o777 if folder.is_dir() else 0o644)
    ran = other_process(store, f"{becomes}; store.manifest('score-2')")  # in a shared folder he writes his journal
    collect(store)
    assert left(store) == {"import-1", "score-1", "filter-1", "score-2"}
    mine = other_process(store, "store.manifest('score-2')")
    ran.communicate("")
    said = "from storage.collect import garbage; assert garbage(store).held == 1"
    other_process(store, f"{becomes}; {said}").communicate("")  # and reads ours
    mine.communicate("")


def test_what_is_only_looked_at_goes(store):
    does = "from storage.using import looking\n        with looking(): store.manifest('filter-2')"
    ran = other_process(store, does)
    with looking():
        store.manifest("filter-2")
    collect(store)
    assert "filter-2" not in left(store)
    ran.communicate("")


def test_where_a_manifest_cannot_be_read_nothing_goes(store):
    (store.folder("score-1") / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"score-1.*broken"):
        collect(store)
    assert store.exists("filter-2")


def test_where_a_name_has_lost_its_dataset_nothing_goes(store):
    (store.folder("filter-1") / "manifest.json").unlink()
    with pytest.raises(StoreError, match="kept names a dataset that is not there"):
        collect(store)
    assert store.exists("score-2") and len(list(store.root.glob("parts/*/*.parquet"))) == 3


def test_journals_of_processes_that_are_gone_are_removed(store):
    ran = other_process(store, "store.exists('filter-2')")
    ran.kill()
    ran.wait()
    collect(store)
    mine = f":{os.getpid()}:"
    assert [p.name for p in (store.root / "using").glob("*:*") if mine not in p.name] == []


def test_the_sizes_of_datasets_make_the_whole(store):
    manifests = {i: store.manifest(i) for i in store.ids()}
    sizes = {i: own_bytes(store, made, manifests) for i, made in manifests.items()}
    assert sizes["filter-1"] == sizes["filter-2"] == 0
    assert sum(sizes.values()) == sum(p.stat().st_size for p in store.root.glob("parts/*/*.parquet"))
