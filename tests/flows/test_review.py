import polars as pl
import pytest

from curation.privacy import PrivacyFind, PrivacyMask
from curation.step import find_step
from flows import steps  # noqa: F401  registers every step
from flows.review import reasons, reviewed
from flows.run import run_step
from storage.schema import ROW
from storage.store import Manifest, Store, StoreError
from tests.flows.stores import small_store
from tests.rows import rows


def test_reasons_are_counted_as_one_where_they_differ_in_numbers_alone(tmp_path):
    store = small_store(tmp_path)
    found = reviewed(store, "clear-filter-000000000003")
    assert found.height == 21 and found["now"].null_count() == 21
    (reason,) = reasons(found)
    assert reason["why"] == "clear-filter: confidence # is not over #" and reason["count"] == 21
    assert reason["rows"][0]["why"] == "confidence 0.000 is not over 0.35" and reason["rows"][0]["prompt"]
    assert reviewed(store, "clear-filter-000000000003", "gopher-quality").is_empty()
    assert reasons(reviewed(store, "import-000000000001")) == []
    with pytest.raises(StoreError, match="is of kind adapter"):
        reviewed(store, "train-000000000005")


def test_a_masked_row_is_shown_as_it_was_and_as_it_is_now(tmp_path):
    store = Store(tmp_path)
    said = rows(("q", "jane@example.com"), ("q jane@example.com", "a"), ("q", "b"))
    store.seal(Manifest("import-1", "rows", "import", 1, {}, {}, {}, ((store.put_part("a" * 20, said, ROW),),)))
    found = run_step(store, find_step("privacy-find"), PrivacyFind(look_for="people"), "import-1")
    made = run_step(store, find_step("privacy-mask"), PrivacyMask(), found)
    shown = reviewed(store, made, "privacy-mask")
    assert shown.select("id", "response", "now").rows() == [
        ("r0", "jane@example.com", "<EMAIL_ADDRESS>"),
        ("r1", "a", "q <EMAIL_ADDRESS>"),
    ]
    assert store.manifest(made).counts == {"rows": 5, "live": 3, "dropped by privacy-mask": 2}
    live = store.read(made).filter(pl.col("drop_reason").is_null())
    assert not live["messages"].list.eval(pl.element().struct.field("content")).list.join(" ").str.contains("@").any()
