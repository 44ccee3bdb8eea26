import sqlite3

import pytest

from storage.responses import Answer, Responses
from storage.verify import set_aside, verify
from tests.flows.stores import small_store

SEED = "import-000000000001"


@pytest.fixture
def store(tmp_path):
    store = small_store(tmp_path)
    Responses(tmp_path / "responses.sqlite").put(Answer(str(n), "{}" * 500) for n in range(100))
    return store


def flip(path):
    """One bit that rotted."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_whole_store_is_whole(store):
    seen = []
    found = verify(store, lambda done, total: seen.append((done, total)))
    assert found.broken == () and found.datasets == 6 and found.files == 9
    assert seen[-1] == (found.bytes, found.bytes)


def test_one_bit_of_a_part_is_seen_and_all_that_needs_it_is_named(store):
    file = store.manifest(SEED).shards[1][0].file
    flip(store.root / file)
    (broken,) = verify(store).broken
    assert broken.file == file and "its content has the digest" in broken.why
    assert broken.datasets == (SEED, "clear-score-000000000002", "clear-filter-000000000003")


@pytest.mark.parametrize(
    ("spoil", "file", "told"),
    [
        pytest.param(lambda p: p.unlink(), "datasets/train-000000000005/files/adapter_config.json", "gone", id="gone"),
        pytest.param(lambda p: p.write_text("{"), f"datasets/{SEED}/manifest.json", "is broken", id="manifest"),
        pytest.param(
            lambda p: p.write_text(p.read_text().replace(SEED, "import-9")),
            f"datasets/{SEED}/manifest.json",
            "import-9",
            id="another-manifest",
        ),
        pytest.param(lambda p: p.write_text("nothing\n"), "refs/seed", "'nothing', which is not there", id="name"),
        pytest.param(lambda p: p.write_bytes(b"x" * 5000), "responses.sqlite", "not a database", id="answers"),
    ],
)
def test_what_is_broken_is_named(store, spoil, file, told):
    spoil(store.root / file)
    broken = {b.file: b.why for b in verify(store).broken}
    assert told in broken[file]


def test_a_part_of_a_run_that_never_ended_is_looked_at_too(store):
    (store.root / "parts/aa").mkdir()
    (store.root / "parts/aa" / f"{'a' * 20}.parquet").write_bytes(b"PAR1")
    (broken,) = verify(store).broken
    assert broken.file.startswith("parts/aa") and "cannot be read" in broken.why and broken.datasets == ()


def test_what_is_set_aside_is_made_again_as_it_was_and_nothing_else_is_touched(store):
    file = store.manifest("clear-score-000000000002").shards[0][1].file
    whole, part = store.root / file, (store.root / file).read_bytes()
    flip(whole)
    aside = set_aside(store, verify(store))
    assert set(store.ids()).isdisjoint({"clear-score-000000000002", "clear-filter-000000000003"})
    assert store.read(SEED).height == 60 and (aside / file).exists()
    assert {b.file for b in verify(store).broken} == {"refs/Best.of_all"}, "its name waits for it"
    again = small_store(store.root)
    assert verify(again).broken == () and whole.read_bytes() == part


def test_an_adapter_of_which_one_file_is_broken_is_made_again_whole(store):
    (store.files("train-000000000005") / "adapter_config.json").write_text("{}")
    set_aside(store, verify(store))
    assert not store.exists("train-000000000005") and not store.files("train-000000000005").exists()
    assert verify(small_store(store.root)).broken == ()


def test_answers_that_rotted_are_seen(store):
    path = store.root / "responses.sqlite"
    content = bytearray(path.read_bytes())
    content[4096:4196] = b"\xff" * 100
    path.write_bytes(content)
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(path).execute("select sum(length(response)), max(key) from responses").fetchone()
    assert [b.file for b in verify(store).broken] == ["responses.sqlite"]
