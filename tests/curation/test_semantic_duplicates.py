import numpy as np
import polars as pl

from curation import semantic_duplicates as sd
from tests.curation.test_diversity import embedded


def dropped(frame: pl.DataFrame, **options: object) -> dict[str, str]:
    out = sd.drop_semantic_duplicates(frame, sd.SemanticDuplicates(**options))
    return {i: why for i, why in out.select("id", "drop_reason").iter_rows() if why}


def at(*degrees: float) -> pl.DataFrame:
    return embedded([[np.cos(np.radians(d)), np.sin(np.radians(d))] for d in degrees])


def test_rows_that_point_the_same_way_name_the_row_that_is_kept():
    frame = at(0, 90, 10, 91)
    assert dropped(frame) == {
        "r2": "semantic-duplicates: says what r0 says (cosine 0.985)",
        "r3": "semantic-duplicates: says what r1 says (cosine 1.0)",
    }
    out = sd.drop_semantic_duplicates(frame, sd.SemanticDuplicates(cosine=0.99))
    assert out["semantic_duplicates_group"].to_list() == [None, "r1", None, "r1"]


def test_a_chain_keeps_what_is_near_only_to_a_dropped_row():
    assert set(dropped(at(0, 15, 30))) == {"r1"}  # cosine of 15 degrees is 0.966


def test_quality_says_which_is_kept_and_another_answer_can_be_no_copy():
    frame = at(0, 5).with_columns(good=pl.Series([0.1, 0.9]))
    assert set(dropped(frame, quality="good")) == {"r0"}
    messages = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": a}] for a in ("yes", "no")]
    other = frame.with_columns(
        pl.Series("messages", messages, dtype=pl.List(pl.Struct({"role": pl.String, "content": pl.String})))
    )
    other = other.with_columns(
        messages=pl.col("messages").list.eval(pl.element().struct.with_fields(tool_calls=pl.lit(None, dtype=pl.String)))
    )
    assert set(dropped(other)) == {"r1"}
    assert dropped(other, same_answer=True) == {}


def test_blocks_and_clusters_find_what_one_comparison_finds(monkeypatch):
    rng = np.random.default_rng(0)
    base = rng.normal(size=(60, 16))
    frame = embedded(np.concatenate([base, base + rng.normal(size=(60, 16)) * 0.05]))
    whole = dropped(frame)
    assert len(whole) == 60
    monkeypatch.setattr(sd, "TOGETHER", 100)  # blocks within one cluster
    assert dropped(frame) == whole
    monkeypatch.setattr(sd, "TOGETHER", 20)  # clusters too, whose borders lose few
    assert len(dropped(frame)) > 50


def test_rows_without_a_vector_stay_and_equal_rows_leave_one():
    vectors = np.ones((5, 3))
    vectors[1], vectors[3] = np.nan, 0
    assert set(dropped(embedded(vectors))) == {"r2", "r4"}
    assert dropped(embedded(vectors[:0])) == {}


def test_equal_rows_have_a_cosine_of_one_whatever_the_rounding():
    vectors = np.random.default_rng(2).normal(size=(200, 384))
    near = vectors[:5] + 0.02 * np.random.default_rng(3).normal(size=(5, 384))  # a cosine of 0.9998
    frame = embedded(np.concatenate([vectors, vectors, near]))
    found = dropped(frame.with_columns(id=pl.format("r{}", 1000 + pl.int_range(pl.len()))), cosine=1.0)
    assert set(found) == {f"r{n}" for n in range(1200, 1400)}
    assert all(why.endswith("(cosine 1.0)") for why in found.values())
