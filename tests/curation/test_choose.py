import numpy as np
import polars as pl
import pytest

from curation.choose import Choose, choose
from curation.diversity import QualityDraw
from curation.step import STEPS, StepError
from tests.curation.test_diversity import pool


def scored(n: int, **columns: list) -> pl.DataFrame:
    return pool([n]).with_columns(**{name: pl.Series(values) for name, values in columns.items()})


def taken(frame: pl.DataFrame, **options: object) -> list[int]:
    """The numbers of the rows that are taken."""
    choice = choose(frame, Choose(**options))
    able = frame.filter(pl.col("split") == "train") if "split" in frame.columns else frame
    assert sorted(choice["id"]) == sorted(able["id"])
    ids = set(choice.filter("taken")["id"])
    return [n for n, i in enumerate(frame["id"]) if i in ids]


def test_the_best_rows_by_all_scores_together_are_taken():
    rows = scored(4, good=[0.1, 0.9, 0.8, 0.2], loss=[5.0, 9.0, 1.0, 7.0])
    assert taken(rows, rows=2, scores=["good"]) == [1, 2]
    assert taken(rows, rows=2, scores=["loss=-1"]) == [0, 2]
    # ranks (less a half, over 4): good .125 .875 .625 .375; loss turned .625 .125 .875 .375; sums .75 1 1.5 .75
    assert taken(rows, rows=2, scores={"good": 1, "loss": -1}) == [1, 2]
    assert taken(rows, rows=1, scores=["good=1", "loss=-3"]) == [2]


def test_z_scores_see_how_far_and_ranks_only_the_order():
    rows = scored(4, a=[0.0, 0.1, 0.2, 100.0], b=[0.0, 0.8, 0.9, 0.7])
    assert taken(rows, rows=1, scores=["a", "b"], combine="zscore") == [3]
    assert taken(rows, rows=1, scores=["a", "b"]) == [2]
    assert len(taken(rows.with_columns(a=pl.lit(1.0)), rows=1, scores=["a"], combine="zscore")) == 1


def test_every_row_says_why_it_was_taken_or_left():
    rows = scored(4, good=[0.9, None, float("nan"), 0.1])
    why = dict(choose(rows, Choose(rows=1, scores=["good"])).select("id", "why").iter_rows())
    assert [why[i] for i in rows["id"]] == [
        "taken: score 0.75, number 1 of 1",
        "left: no value in good",
        "left: no value in good",
        "left: score 0.25, number 2 of 1",
    ]


def test_a_source_gets_no_more_than_its_quota_and_others_get_what_it_loses():
    rows = scored(10, good=[1 - n / 10 for n in range(10)], source=["big"] * 6 + ["small"] * 4)
    assert taken(rows, rows=5, scores=["good"]) == [0, 1, 2, 3, 4]
    assert taken(rows, rows=5, scores=["good"], quotas={"big": 0.4}) == [0, 1, 6, 7, 8]
    assert taken(rows, rows=8, scores=["good"], quotas=["big=0.25"]) == [0, 1, 6, 7, 8, 9]  # the others have no more
    choice = choose(rows, Choose(rows=5, scores=["good"], quotas=["big=0.4"]))
    assert choice.filter(pl.col("why") == "left: source big has its quota").height == 4


def test_a_row_over_its_sources_quota_of_tokens_keeps_no_other_out():
    sizes = [1200, 100, 100, 100, 100, 100, 500, 500]
    rows = scored(8, good=[1 - n / 10 for n in range(8)], source=["a"] * 6 + ["b"] * 2, tokens=sizes)
    assert taken(rows, tokens=2000, scores=["good"], quotas={"a": 0.5}) == [1, 2, 3, 4, 5, 6, 7]


def test_a_cluster_without_a_weight_has_its_share_of_the_pool():
    rows = pool([40, 40, 20])
    weights = pl.DataFrame({"cluster": [0, 1], "weight": [0.4, 0.4]})
    for step, config in (("choose", Choose(rows=10, clusters=True)), ("kmeans-quality", QualityDraw(rows=10))):
        choice = STEPS[step](rows, config, tables={"weights": weights}).filter("taken").join(rows, on="id")
        assert (choice["diversity_cluster"] == 2).sum() == 2


def test_the_budget_is_split_over_clusters_with_quotas_and_weights():
    rows = pool([50, 30, 20]).with_columns(source=pl.Series(["a", "b"] * 50), good=pl.Series(range(100)).cast(float))
    counts = lambda choice: choice.filter("taken").join(rows, on="id")  # noqa: E731
    plain = counts(choose(rows, Choose(rows=10, scores=["good"], clusters=True)))
    assert plain["diversity_cluster"].value_counts().sort("diversity_cluster")["count"].to_list() == [5, 3, 2]
    capped = counts(choose(rows, Choose(rows=10, scores=["good"], clusters=True, quotas=["a=0.2"])))
    assert capped["diversity_cluster"].value_counts().sort("diversity_cluster")["count"].to_list() == [5, 3, 2]
    assert (capped["source"] == "a").sum() == 2
    weights = pl.DataFrame({"cluster": [0, 1, 2], "weight": [0.0, 0.5, 0.5]})
    weighed = counts(choose(rows, Choose(rows=10, clusters=True), tables={"weights": weights}))
    assert set(weighed["diversity_cluster"]) == {1, 2}


def test_a_budget_of_tokens_is_kept_and_used():
    rows = scored(6, good=[6.0, 5.0, 4.0, 3.0, 2.0, 1.0], tokens=[10, 20, 30, 40, 50, 60])
    assert taken(rows, scores=["good"], tokens=60) == [0, 1, 2]
    assert taken(rows, scores=["good"], tokens=99) == [0, 1, 2]
    assert taken(rows, scores=["good"], tokens=9) == []
    assert taken(rows, scores=["good"], tokens=10**6) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("combine", ["rank", "zscore"])
def test_better_rows_are_drawn_more_often(combine):
    rows = scored(1000, good=np.arange(1000) / 1000)
    drawn = taken(rows, rows=300, scores=["good"], draw="proportional", combine=combine)
    assert len(drawn) == 300 and 550 < np.mean(drawn) < 950
    assert 420 < np.mean(taken(rows, rows=300)) < 580  # no score: at random


def test_validation_rows_and_empty_pools_are_left_alone():
    rows = scored(4, split=["train", "validation", "train", "train"])
    assert taken(rows, rows=9) == [0, 2, 3]
    for options in ({}, {"scores": ["clear_confidence"]}, {"clusters": True}, {"tokens": 5}):
        empty = pool([1]).with_columns(tokens=pl.lit(1)).clear()
        assert choose(empty, Choose(**options)).is_empty()


def test_what_cannot_be_used_is_named():
    with pytest.raises(StepError, match="nobody"):
        choose(scored(2), Choose(scores=["nobody=2"]))
    with pytest.raises(StepError, match="tokens"):
        choose(scored(2), Choose(tokens=5))
    for wrong in ({"scores": ["a=b"]}, {"scores": ["a", "a=2"]}, {"quotas": ["a=2"]}, {"quotas": ["=1"]}):
        with pytest.raises(ValueError, match=r"not name=number|twice|share"):
            Choose(**wrong)


def test_a_quota_is_the_share_that_was_written_and_not_a_row_less():
    rows = scored(200, source=["a"] * 100 + ["b"] * 100, good=[1.0 - n / 200 for n in range(200)])
    for share in (0.07, 0.14, 0.28, 0.29, 0.55, 0.57, 0.58):  # of these int(share * 100) is one less for some
        mine = [n for n in taken(rows, rows=100, scores=["good"], quotas={"a": share}) if n < 100]
        assert len(mine) == round(share * 100)


def test_a_quota_of_a_budget_in_tokens_is_of_tokens():
    rows = scored(20, source=["long"] * 10 + ["short"] * 10, good=[1.0 - n / 20 for n in range(20)])
    rows = rows.with_columns(tokens=pl.when(pl.col("source") == "long").then(100).otherwise(10))
    found = taken(rows, scores=["good"], tokens=300, quotas=["long=0.7"])
    assert found == [0, 1, *range(10, 20)]  # 200 of 210 tokens, and all the short ones
    held = lambda n: rows["tokens"].gather(n).sum()  # noqa: E731
    assert held(found) == 300 and held(taken(rows, scores=["good"], tokens=300)) == 300
    assert taken(rows, scores=["good"], tokens=300, quotas=["long=0.3"]) == list(range(10, 20))
