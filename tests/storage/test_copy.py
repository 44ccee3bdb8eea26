import dataclasses
import os
import shutil
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import polars as pl
import pytest

from storage.copy import copy_store
from storage.place import Place
from storage.responses import Answer, Responses
from storage.store import Manifest, Store, StoreError
from storage.verify import verify
from tests.flows.stores import small_store

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def s3():
    """A server on this machine that speaks S3."""
    from moto.server import ThreadedMotoServer

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    said = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    before = {name: os.environ.get(name) for name in (*said, "AWS_DEFAULT_REGION", "NO_PROXY")}
    os.environ.update(said | {"AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1"})
    Place("s3://bucket").files.mkdir("bucket")
    yield "s3://bucket"
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(params=["folder", "s3"])
def elsewhere(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "elsewhere")
    return f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}"


@pytest.fixture
def store(tmp_path):
    store = small_store(tmp_path / "ours")
    store.note_run("train-000000000005", started=1.7e9, seconds=50.0)
    Responses(store.root / "responses.sqlite").put([Answer("ours", "1")])
    (store.root / "reports").mkdir()
    (store.root / "reports" / "mine.md").write_text("# what it was worth")
    return store


def back(address, tmp_path) -> Store:
    """The store that an address holds, on this machine."""
    folder = tmp_path / f"back-{uuid.uuid4().hex[:6]}"
    copy_store(address, str(folder))
    return Store(folder)


def add(store: Store, id: str, parent: str, key: str, score: float) -> None:
    first = store.manifest(parent).shards[0][0]
    part = store.put_part(key, pl.DataFrame({"id": store.read_shard((first,), ["id"])["id"], "a_b": [score] * 30}))
    store.seal(Manifest(id, "rows", "score", 1, {}, {}, {"rows": parent}, ((first, part),)))


def test_a_copy_has_everything_and_goes_on(store, elsewhere, tmp_path):
    found = copy_store(str(store.root), elsewhere)
    assert (found.datasets, found.new, found.kept) == (6, 6, {})
    there = back(elsewhere, tmp_path)
    assert there.names() == store.names() and set(there.ids()) == set(store.ids())
    assert verify(there).broken == ()
    for dataset in store.ids():
        assert there.manifest(dataset) == store.manifest(dataset)
        assert there.read(dataset).equals(store.read(dataset), null_equal=True)
    assert there.run_facts("train-000000000005") == {"started": 1.7e9, "seconds": 50.0}
    assert Responses(there.root / "responses.sqlite").find(["ours"]) == {"ours": "1"}
    assert (there.root / "reports" / "mine.md").read_text() == "# what it was worth"
    add(there, "score-1", "import-000000000001", "f" * 20, 0.5)
    there.name("more", "score-1")
    assert copy_store(str(there.root), elsewhere).new == 1
    assert copy_store(elsewhere, str(store.root)).new == 1
    assert store.read(store.resolve("more"))["a_b"].to_list() == [0.5] * 30


def test_a_second_copy_copies_nothing(store, elsewhere):
    copy_store(str(store.root), elsewhere)
    again = copy_store(str(store.root), elsewhere)
    assert (again.new, again.files, again.bytes) == (0, 0, 0)


def test_what_some_names_reach_is_copied_and_nothing_else(store, elsewhere, tmp_path):
    copy_store(str(store.root), elsewhere, ["Best.of_all"])
    there = back(elsewhere, tmp_path)
    assert there.names() == {"Best.of_all": "clear-filter-000000000003"}
    assert set(there.ids()) == {"import-000000000001", "clear-score-000000000002", "clear-filter-000000000003"}
    assert verify(there).broken == () and not (there.root / "responses.sqlite").exists()
    with pytest.raises(StoreError, match="there is no name 'nobody'"):
        copy_store(str(store.root), elsewhere, ["nobody"])


def test_a_copy_that_is_cut_short_is_a_store_without_what_has_not_come(store, tmp_path):
    place, there = str(store.root), tmp_path / "there"
    done = []

    def stop(now, total):
        done.append(now)
        if now > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_store(place, str(there), progress=stop)
    came = set(Store(there).ids())
    assert came < set(store.ids()) and verify(Store(there)).broken == ()
    assert all(set(store.manifest(i).inputs.values()) <= came for i in came) and not Store(there).names()
    assert len(list(there.glob("parts/*/*.parquet"))) > 0
    found = copy_store(place, str(there))
    assert found.new == 6 - len(came) and found.bytes < done[-1] * 2
    assert verify(Store(there)).broken == ()


def test_a_name_that_somebody_moved_on_there_stays_unless_it_is_asked_for(store, elsewhere, tmp_path):
    copy_store(str(store.root), elsewhere)
    there = back(elsewhere, tmp_path)
    add(there, "score-1", "import-000000000001", "f" * 20, 0.5)
    there.name("seed", "score-1")
    copy_store(str(there.root), elsewhere)
    assert copy_store(str(store.root), elsewhere).kept == {"seed": "score-1"}
    assert back(elsewhere, tmp_path).names()["seed"] == "score-1"
    assert copy_store(str(store.root), elsewhere, move_names=True).kept == {}
    assert back(elsewhere, tmp_path).names()["seed"] == "import-000000000001"
    store.name("seed", "clear-filter-000000000003")  # what they have over there is known here: it moves on
    assert copy_store(str(store.root), elsewhere).kept == {}
    assert back(elsewhere, tmp_path).names()["seed"] == "clear-filter-000000000003"


def test_answers_of_both_are_put_together_and_one_that_is_there_stays(store, elsewhere, tmp_path):
    copy_store(str(store.root), elsewhere)
    there = back(elsewhere, tmp_path)
    Responses(there.root / "responses.sqlite").put([Answer("theirs", "2"), Answer("both", "theirs")])
    Responses(store.root / "responses.sqlite").put([Answer("both", "ours")])
    copy_store(str(there.root), elsewhere)
    copy_store(str(store.root), elsewhere)
    answers = Responses(back(elsewhere, tmp_path).root / "responses.sqlite")
    assert answers.find(["ours", "theirs", "both"]) == {"ours": "1", "theirs": "2", "both": "theirs"}


def test_what_came_out_otherwise_on_either_side_is_never_mixed(store, elsewhere, tmp_path):
    copy_store(str(store.root), elsewhere)
    there = back(elsewhere, tmp_path)
    add(there, "score-1", "import-000000000001", "f" * 20, 0.25)
    copy_store(str(there.root), elsewhere)
    add(store, "score-1", "import-000000000001", "f" * 20, 0.75)
    add(store, "score-2", "score-1", "e" * 20, 0.5)
    found = copy_store(str(store.root), elsewhere)
    assert found.differ == ("score-1", "score-2") and found.new == 0, "what is made of ours is not of theirs"
    again = back(elsewhere, tmp_path)
    assert again.read("score-1")["a_b"][0] == 0.25 and verify(again).broken == ()


def test_a_file_that_is_cut_there_is_sent_again(store, elsewhere, tmp_path):
    copy_store(str(store.root), elsewhere)
    there = Place(elsewhere)
    adapter = "datasets/train-000000000005/files/adapter_config.json"
    part = store.manifest("clear-score-000000000002").shards[0][1].file
    for file in (adapter, part):
        there.files.pipe_file(f"{there.root}/{file}", b"PAR1")
    found = copy_store(str(store.root), elsewhere)
    assert (found.new, found.files, found.differ) == (0, 2, ())
    assert verify(back(elsewhere, tmp_path)).broken == ()


def test_a_file_there_that_no_manifest_there_speaks_of_is_not_taken_for_ours(store, elsewhere, tmp_path):
    copy_store(str(store.root), elsewhere, ["seed"])
    there = Place(elsewhere)
    part = store.manifest("clear-score-000000000002").shards[0][1].file
    there.files.makedirs(f"{there.root}/{part}".rpartition("/")[0], exist_ok=True)
    there.files.pipe_file(f"{there.root}/{part}", (store.root / part).read_bytes()[:-1] + b"x")
    found = copy_store(str(store.root), elsewhere)
    assert found.differ[0] == "clear-score-000000000002" and set(found.differ) == {
        "clear-score-000000000002",
        "clear-filter-000000000003",
        "kmeans-quality-000000000004",
        "train-000000000005",
    }
    again = back(elsewhere, tmp_path)
    assert "Best.of_all" not in again.names() and not again.exists("clear-score-000000000002")


def test_an_adapter_that_came_out_otherwise_there_stays_and_nothing_of_ours_gets_into_it(store, elsewhere, tmp_path):
    other = small_store(tmp_path / "other")
    shutil.rmtree(other.folder("train-000000000005"))
    (folder := other.scratch()).joinpath("adapter_config.json").write_text('{"r": 9}')
    made = store.manifest("train-000000000005")
    other.seal(dataclasses.replace(made, files=other.put_folder("train-000000000005", folder)))
    copy_store(str(other.root), elsewhere)
    store.seal(Manifest("answers-1", "table", "answer", 1, {}, {}, {"adapter": "train-000000000005"}))
    store.name("mine", "answers-1")
    found = copy_store(str(store.root), elsewhere)
    assert found.differ == ("train-000000000005", "answers-1")
    again = back(elsewhere, tmp_path)
    assert (again.files("train-000000000005") / "adapter_config.json").read_text() == '{"r": 9}'
    assert "mine" not in again.names() and not again.exists("answers-1")


def test_what_was_spent_comes_along_and_is_counted_once(store, elsewhere, tmp_path):
    answers = Responses(store.root / "responses.sqlite")
    answers.add("run mine", {"requests": 5, "cost": 0.5})
    copy_store(str(store.root), elsewhere)
    copy_store(str(store.root), elsewhere)
    there = Responses(back(elsewhere, tmp_path).root / "responses.sqlite")
    assert there.sums("run mine") == {"requests": 5, "cost": 0.5}
    answers.add("run mine", {"requests": 2})
    copy_store(str(store.root), elsewhere)
    there = back(elsewhere, tmp_path)
    assert Responses(there.root / "responses.sqlite").sums("run mine") == {"requests": 7, "cost": 0.5}
    copy_store(str(there.root), str(store.root))
    assert answers.sums("run mine") == {"requests": 7, "cost": 0.5}


def test_the_parts_of_a_file_go_one_by_one(s3):
    assert Place(f"{s3}/x").files.max_concurrency == 1


def test_gc_there_leaves_what_was_there_for_the_copy_to_rely_on(store, tmp_path):
    there = tmp_path / "there"
    part = store.manifest("import-000000000001").shards[0][0].file
    (there / part).parent.mkdir(parents=True)
    shutil.copy(store.root / part, there / part)
    removed = []

    def collecting(now, total):
        if not removed:
            code = "from pathlib import Path; from storage.collect import collect; from storage.store import Store; "
            code += f"collect(Store(Path({str(there)!r})))"
            removed.append(subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True))

    copy_store(str(store.root), str(there), progress=collecting)
    assert removed and verify(Store(there)).broken == ()


def test_a_part_that_rotted_is_not_spread(store, elsewhere, tmp_path):
    path = store.root / store.manifest("clear-score-000000000002").shards[0][1].file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="are not what they were"):
        copy_store(str(store.root), elsewhere)
    there = back(elsewhere, tmp_path)
    assert set(there.ids()) == {"import-000000000001", "import-000000000006"}, "nor what was made of it"
    assert {b.file for b in verify(there).broken} == set()


def test_datasets_of_a_copy_come_in_the_order_in_which_they_were_made(store, elsewhere, tmp_path):
    order = store.ids()
    for n, dataset in enumerate(order):
        store.note_run(dataset, started=1000.0 * n, seconds=1.0)
    (store.folder("train-000000000005") / "run.json").unlink()
    store.note_run("train-000000000005", started=1000.0 * 4, seconds=1.0)
    copy_store(str(store.root), elsewhere)
    assert back(elsewhere, tmp_path).ids() == order


@pytest.mark.parametrize(
    ("there", "told"),
    [
        pytest.param("nowhere://x", "nowhere://x.*behind an address of fsspec's", id="no-such-protocol"),
        pytest.param("s3://no-such-bucket-here/x", "s3://no-such-bucket-here/x could not be reached", id="no-bucket"),
    ],
)
def test_an_address_that_cannot_be_had_is_named(store, s3, there, told):
    with pytest.raises(StoreError, match=told):
        copy_store(str(store.root), there)


def test_a_store_is_copied_neither_onto_itself_nor_from_nowhere_nor_into_a_newer_one(store, tmp_path):
    with pytest.raises(StoreError, match="are the same store"):
        copy_store(str(store.root), str(store.root) + "/")
    with pytest.raises(StoreError, match="there is no store in"):
        copy_store(str(tmp_path / "nothing"), str(tmp_path / "x"))
    newer = shutil.copytree(store.root, tmp_path / "newer")
    (newer / "store.json").write_text('{"layout": 99}')
    for way in ((str(store.root), str(newer)), (str(newer), str(store.root))):
        with pytest.raises(StoreError, match="has layout 99"):
            copy_store(*way)
