import polars as pl
import pytest

from flows.diff import diff
from storage.schema import CHOICE, ROW
from storage.store import Manifest, Store, StoreError
from tests.rows import rows


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def put(store: Store, id: str, frame: pl.DataFrame, kind: str = "rows", inputs=None) -> str:
    part = store.put_part(f"{id:a<20}", frame, CHOICE if kind == "choice" else ROW)
    return store.seal(Manifest(id, kind, id.partition("-")[0], 1, {}, {}, inputs or {}, ((part,),)))


def ids(found, kind):
    return found.rows[kind]["id"].to_list() if kind in found.rows else []


def test_every_row_is_of_one_kind(store):
    """r0 stays, r1 is dropped, r2 is corrected by n0, r3 comes back, r4 is gone, n1 grew from r0, n2 is new."""
    old = rows(*[(f"q{i}", f"a{i}") for i in range(5)], drop_reason=[None, None, None, "f: said so", None])
    marks = [None, "clear-filter: doubtful", "clear-correct: replaced by n0", None]
    new = pl.concat(
        [old.head(4).with_columns(drop_reason=pl.Series(marks)), rows(("q2", "b2"), ("x", "y"), ("z", "w"))]
    )
    ids_ = ["r0", "r1", "r2", "r3", "n0", "n1", "n2"]
    new = new.with_columns(id=pl.Series(ids_), parent_id=pl.Series([None] * 4 + ["r2", "r0", None], dtype=pl.String))
    found = diff(store, put(store, "a-1", old), put(store, "b-1", new))
    assert found.by == "id"
    assert found.counts == {
        "before": 4, "after": 5, "the same": 1, "added": 2, "dropped": 1, "gone": 1, "corrected": 1, "brought back": 1
    }  # fmt: skip
    assert ids(found, "added") == ["n1", "n2"] and ids(found, "dropped") == ["r1"] and ids(found, "gone") == ["r4"]
    assert found.rows["corrected"].rows() == [("n0", "q2", "a2", "b2", None)]
    assert found.rows["brought back"].rows() == [("r3", "q3", None, "a3", "f: said so")]
    assert found.reasons == {"clear-filter": 1}


def test_how_scores_moved(store):
    one = rows(("a", "1"), ("b", "2"), ("c", "3"), s_x=[1.0, 2.0, 3.0], s_gone=[1, 2, 3])
    two = rows(("a", "1"), ("b", "2"), ("c", "3"), s_x=[3.0, 2.0, None], s_new=["x", "y", "z"])
    found = diff(store, put(store, "a-1", one), put(store, "b-1", two))
    assert found.scores.rows() == [("s_x", 2, 1.5, 2.5, 1.0, -1.0)]
    assert (found.only_before, found.only_after) == (("s_gone",), ("s_new",))


def test_rows_that_were_imported_under_another_name_are_told_by_what_they_say(store):
    """Of two copies one stays; one answer changed; one row is new; two are gone."""
    old = rows(("q", "a"), ("q", "a"), ("r", "b"), ("s", "c"), source=["v1"] * 4)
    new = rows(("q", "a"), ("r", "better"), ("t", "d"), source=["v2"] * 3).with_columns(id=pl.Series(["x", "y", "z"]))
    found = diff(store, put(store, "a-1", old), put(store, "b-1", new))
    assert found.by == "content"
    counts = {k: n for k, n in found.counts.items() if n and k not in ("before", "after")}
    assert counts == {"the same": 1, "corrected": 1, "added": 1, "gone": 2}
    assert found.rows["corrected"].select("prompt", "before", "after").rows() == [("r", "b", "better")]


def test_two_choices_are_compared_by_what_they_took(store):
    put(store, "pool-1", rows(("a", "1"), ("b", "2"), ("c", "3")))

    def choice(id, *taken):
        frame = pl.DataFrame({"id": ["r0", "r1", "r2"], "taken": [i in taken for i in range(3)], "why": ["w"] * 3})
        whole = frame.with_columns(weight=pl.lit(0.5), round=pl.lit(1, pl.Int32))
        return put(store, id, whole, "choice", {"rows": "pool-1"})

    found = diff(store, choice("random-1", 0, 1), choice("longest-1", 1, 2))
    assert {k: n for k, n in found.counts.items() if n} == {
        "before": 2, "after": 2, "the same": 1, "dropped": 1, "brought back": 1
    }  # fmt: skip
    assert found.reasons == {"longest": 1}


def test_nothing_and_something(store):
    empty, some = put(store, "a-1", rows()), put(store, "b-1", rows(("q", "a")))
    assert diff(store, empty, some).counts["added"] == 1 and diff(store, some, empty).counts["gone"] == 1
    assert set(diff(store, empty, empty).counts.values()) == {0}


def test_what_cannot_be_compared_is_named(store):
    put(store, "b-1", rows(("q", "a")))
    store.seal(Manifest("train-1", "adapter", "train", 1, {}, {}, {}))
    with pytest.raises(StoreError, match="train-1 are not of one kind"):
        diff(store, "b-1", "train-1")
