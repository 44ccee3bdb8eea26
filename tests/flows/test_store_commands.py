import json

import pytest
from typer.testing import CliRunner

from flows.browse import browse
from flows.store_commands import age, keeping, size
from storage.store import StoreError
from tests.flows.stores import small_store


@pytest.fixture
def store(tmp_path):
    return small_store(tmp_path / "store")


def run(store, *words, app=keeping, code=0):
    place = [] if words[0] == "copy" else ["--store", str(store.root)]
    ran = CliRunner().invoke(app, [*map(str, words), *place])
    if ran.exception and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    assert ran.exit_code == code, ran.output
    return ran.stdout


def test_datasets_says_names_rows_size_age_and_parents(store):
    said = {d["id"]: d for d in json.loads(run(store, "datasets", "--json"))}
    kept = said["clear-filter-000000000003"]
    assert kept["names"] == ["Best.of_all"] and kept["inputs"] == {"rows": "clear-score-000000000002"}
    assert kept["counts"]["live"] == 39 and kept["made"] > 1.7e9
    parts = sum(p.stat().st_size for p in store.root.glob("parts/*/*.parquet"))
    files = sum(p.stat().st_size for p in store.root.glob("datasets/*/files/*"))
    assert sum(d["bytes"] for d in said.values()) == parts + files
    (line,) = (line for line in run(store, "datasets").splitlines() if "clear-filter-" in line and "Best" in line[:12])
    for what in ("rows", "39 live", "kB", " s", "clear-score-000000000002"):
        assert what in line


def test_gc_says_what_would_go_and_removes_it_only_when_told(store):
    run(store, "forget", "Best.*", "student")
    said = run(store, "gc")
    assert "     1 datasets of clear-filter" in said and "would go: `thresher gc --yes` removes it" in said
    assert len(store.ids()) == 6
    told = json.loads(run(store, "gc", "--json"))
    assert told["bytes"] > 0 and not told["removed"]
    assert "removed" in run(store, "gc", "--yes")
    assert store.ids() == ["import-000000000001", "import-000000000006"]
    assert "names reach everything" in run(store, "gc")


def test_a_name_that_is_not_there_cannot_be_forgotten(store):
    with pytest.raises(StoreError, match="there is no name like 'nobody"):
        run(store, "forget", "seed", "nobody*")
    assert "seed" in store.names()


def test_verify_fails_where_something_is_broken_and_says_what_needs_it(store):
    assert "0 broken" in run(store, "verify")
    path = store.root / store.manifest("clear-filter-000000000003").shards[0][2].file
    path.write_bytes(b"PAR1")
    said = run(store, "verify", code=1)
    assert f"BROKEN {path.relative_to(store.root)}" in said and "needed by Best.of_all" in said
    told = json.loads(run(store, "verify", "--json", code=1))
    assert [b["datasets"] for b in told["broken"]] == [["clear-filter-000000000003"]]
    run(store, "verify", "--set-aside", code=1)
    assert not path.exists() and "seed" in store.names()


def test_copy_names_what_stays(store, tmp_path):
    there = tmp_path / "there"
    told = json.loads(run(store, "copy", store.root, there, "--json"))
    assert (told["new"], told["kept"]) == (6, {})
    (there / "refs" / "seed").write_text("somebody-1\n")
    assert json.loads(run(store, "copy", store.root, there, "--json", code=1))["kept"] == {"seed": "somebody-1"}
    assert json.loads(run(store, "copy", store.root, there, "--name", "seed", "--move-names", "--json"))["kept"] == {}


def test_diff_says_what_became_of_rows_and_scores(store):
    said = run(store, "diff", "seed", "Best.of_all", "--rows", "1")
    assert "60 live rows -> 39: 39 the same, 0 added, 21 dropped" in said
    assert "21 dropped by clear-filter" in said and "only after: clear_confidence" in said
    told = json.loads(run(store, "diff", "clear-score-000000000002", "Best.of_all", "--json"))
    assert told["counts"]["dropped"] == 21 and len(told["rows"]["dropped"]) == 21
    assert {s["column"]: s["moved"] for s in told["scores"]} == {"clear_confidence": 0, "clear_consistency": 0}


def test_review_shows_reasons_with_rows_and_writes_all_of_them(store, tmp_path):
    said = run(store, "review", "Best.of_all", "--rows", "2", "--write", tmp_path / "r.csv", app=browse)
    assert "21 rows (100.0% of those dropped): clear-filter: confidence # is not over #" in said
    assert len((tmp_path / "r.csv").read_text().splitlines()) >= 22
    (reason,) = json.loads(run(store, "review", "Best.of_all", "--rows", "2", "--json", app=browse))
    assert reason["count"] == 21 and len(reason["rows"]) == 2
    assert "nothing was dropped" in run(store, "review", "seed", app=browse)


def test_sizes_and_ages_as_people_say_them():
    assert [size(n) for n in (0, 999, 1500, 250_000, 3.2e9, 5e13)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "250 kB",
        "3.2 GB",
        "50.0 TB",
    ]
    assert [age(s) for s in (-1, 59, 90, 7200, 3 * 86400)] == ["0 s", "59 s", "2 min", "2 h", "3 days"]
