from pathlib import Path

import polars as pl
import pytest

from storage.manifest import Manifest
from storage.scan import AT, Scan
from storage.schema import ROW
from storage.store import Store, StoreError
from tests.rows import rows


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    """Three shards of four rows; the first two have scores beside them, the second of another type and a later word."""
    store = Store(tmp_path)
    said = rows(*[(f"q{i}", f"a{i}") for i in range(12)])
    parts = [(store.put_part(f"p{i}", said[i * 4 : i * 4 + 4], ROW),) for i in range(3)]
    scores = [
        pl.DataFrame({"id": said["id"][:4], "m_score": [1, 2, 3, 4]}),
        pl.DataFrame({"id": said["id"][4:8], "m_score": [0.5, 1.5, float("nan"), None]}),
    ]
    for i, frame in enumerate(scores):
        parts[i] = (*parts[i], store.put_part(f"s{i}", frame))
    mark = pl.DataFrame({"id": said["id"][:4], "drop_reason": ["x: y", None, None, None]})
    parts[0] = (*parts[0], store.put_part("m", mark))
    return Scan.of(tmp_path, Manifest("d", "rows", "s", 1, {}, {}, {}, tuple(parts)))


def test_columns_have_one_type_for_all_shards_and_the_ends_of_numbers(scan: Scan):
    kinds, ranges = scan.columns()
    assert kinds["m_score"] == pl.Float64 and kinds["id"] == pl.String and "messages" in kinds
    assert ranges["m_score"] == (0.5, 4)
    assert scan.rows == 12


def test_each_shard_is_asked_with_the_place_of_its_rows_and_later_parts_hide_earlier_ones(scan: Scan):
    kinds, _ = scan.columns()
    columns = ["m_score", "drop_reason"]
    found = pl.concat(scan.each(columns, lambda f: f.filter(pl.col("m_score") > 1), kinds))
    assert found[AT].to_list() == [1, 2, 3, 5, 6]
    assert found["m_score"].to_list()[:4] == [2.0, 3.0, 4.0, 1.5]
    dropped = pl.concat(scan.each(columns, lambda f: f.filter(pl.col("drop_reason").is_not_null()), kinds))
    assert dropped[AT].to_list() == [0]
    assert [f.height for f in scan.each(columns, lambda f: f, kinds)] == [4, 4, 4], "null in the shard that has none"


def test_rows_are_taken_in_the_order_asked_for(scan: Scan):
    found = scan.take([9, 2, 5], ["id", "m_score", "drop_reason"])
    assert found.to_dicts() == [
        {AT: 9, "id": "r9", "m_score": None, "drop_reason": None},
        {AT: 2, "id": "r2", "m_score": 3, "drop_reason": None},
        {AT: 5, "id": "r5", "m_score": 1.5, "drop_reason": None},
    ]
    assert scan.take([], ["id"]).height == 0


def test_only_the_shards_and_parts_that_are_asked_for_are_read(scan: Scan):
    for shard in scan.shards[1:]:
        (scan.root / shard[0].file).unlink()
    assert scan.take([1], ["id", "messages"]).height == 1
    assert scan.take([5], ["m_score"])["m_score"].to_list() == [1.5], "the scores lie in a part of their own"


@pytest.mark.parametrize("damage", ["gone", "cut", "turned"])
def test_a_part_that_cannot_be_read_is_named(scan: Scan, damage: str):
    path = scan.root / scan.shards[1][1].file
    if damage == "gone":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[:40] if damage == "cut" else content[:4] + b"\xff" * 60 + content[64:])
    with pytest.raises(StoreError, match=f"{scan.shards[1][1].file} is gone or damaged; `thresher verify`"):
        list(scan.each(["m_score", "id"], lambda f: f, scan.columns()[0] | {"m_score": pl.Float64()}))
