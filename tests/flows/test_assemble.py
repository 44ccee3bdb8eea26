import polars as pl
import pytest

from flows import assemble
from storage.schema import CHOICE, ROW
from storage.store import Manifest, Store, StoreError
from tests.rows import rows


def sealed(store, name, frame, schema=ROW, kind="rows", **counts):
    part = store.put_part(name, frame, schema)
    return store.seal(Manifest(name, kind, name, 1, {}, {}, {}, ((part,),), counts=counts))


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def test_together_lists_the_shards_of_both_and_copies_nothing(store):
    one = sealed(store, "one", rows(("q", "a"), score=[0.5]))
    two = sealed(store, "two", rows(("q", "b")).with_columns(id=pl.lit("other")))
    parts = set(store.root.glob("parts/*/*"))
    both = assemble.together(store, [one, two])
    assert store.read(both).select("id", "score").rows() == [("r0", 0.5), ("other", None)]
    assert set(store.root.glob("parts/*/*")) == parts
    assert assemble.together(store, [one]) == one


def choice(store, **taken):
    frame = pl.DataFrame({"id": list(taken), "taken": list(taken.values()), "why": "x", "weight": 1.0, "round": 1})
    return sealed(store, "choice", frame, CHOICE, "choice")


def test_taken_gives_the_chosen_rows_in_their_order(store):
    pool = sealed(store, "pool", rows(("q", "a"), ("q", "b"), ("q", "c")))
    assert store.read(assemble.taken(store, pool, choice(store, r2=True, r0=True, r1=False)))["id"].to_list() == [
        "r0",
        "r2",
    ]


def test_a_choice_of_a_dropped_row_is_refused(store):
    marked = rows(("q", "a"), ("q", "b")).with_columns(drop_reason=pl.Series([None, "clear-filter: low"]))
    pool = sealed(store, "pool", marked)
    with pytest.raises(StoreError, match="choose again"):
        assemble.taken(store, pool, choice(store, r0=True, r1=True))


def test_live_leaves_out_what_a_maker_refused_and_copies_nothing_where_all_is_kept(store):
    made = sealed(
        store,
        "made",
        rows(("q", "a"), ("q", "b"), drop_reason=[None, "llm2llm: empty"], score=[0.5, 0.1]),
        rows=2,
        live=1,
    )
    assert store.read(assemble.live(store, made)).select("id", "score", "drop_reason").rows() == [("r0", 0.5, None)]
    whole = sealed(store, "whole", rows(("q", "c")), rows=1, live=1)
    assert assemble.live(store, whole) == whole


def test_where_gives_live_rows_with_the_value(store):
    frame = rows(("q", "a"), ("q", "b"), ("q", "c"), split=["validation", "train", "validation"])
    frame = frame.with_columns(drop_reason=pl.Series([None, None, "x: y"]))
    found = store.read(assemble.where(store, sealed(store, "pool", frame), "split", "validation"))
    assert found["id"].to_list() == ["r0"] and found.columns == ROW.names
