import numpy as np
import polars as pl
import pytest

from curation import diversity as dv
from curation.draw import largest_remainder, uniform
from curation.step import STEPS, StepError
from tests.rows import rows


def pool(sizes, quality=1.0):
    """Clusters of the given sizes; ids as hex hashes, as imported rows have."""
    n = sum(sizes)
    ids = [f"{(i * 2654435761) % 2**64:016x}0000" for i in range(1, n + 1)]
    clusters = [c for c, size in enumerate(sizes) for _ in range(size)]
    shares = [size / n for size in sizes for _ in range(size)]
    out = rows(*[("q", "a")] * n, diversity_cluster=clusters, clear_confidence=[quality] * n, base_nll=[2.0] * n)
    out = out.with_columns(diversity_share=pl.Series(shares))
    return out.with_columns(id=pl.Series(ids), diversity_cluster=pl.col("diversity_cluster").cast(pl.Int32))


@pytest.mark.parametrize(
    ("weights", "capacity", "total", "expected"),
    [
        pytest.param([500, 300, 200], [500, 300, 200], 100, [50, 30, 20], id="by-size"),
        pytest.param([1, 1, 1], [9, 9, 9], 10, [4, 3, 3], id="remainder-goes-to-the-first"),
        pytest.param([5, 3, 2], [10, 300, 200], 100, [10, 54, 36], id="what-does-not-fit-goes-to-the-others"),
        pytest.param([0, 0, 1], [1, 1, 1], 2, [1, 0, 1], id="zero-weight-only-when-nothing-else-has-room"),
        pytest.param([1, 1], [1, 1], 5, [1, 1], id="no-more-than-there-is"),
    ],
)
def test_budgets_split_by_largest_remainder(weights, capacity, total, expected):
    assert largest_remainder(np.array(weights, float), np.array(capacity), total).tolist() == expected


def test_draws_depend_on_the_id_and_the_seed_alone():
    ids = pool([50])["id"]
    again = dict(zip(ids.reverse(), uniform(ids.reverse(), 3), strict=True))
    assert [again[i] for i in ids] == uniform(ids, 3).tolist()
    assert not np.array_equal(uniform(ids, 3), uniform(ids, 4))
    assert 0.4 < uniform(pool([2000])["id"], 1).mean() < 0.6


def test_the_draw_fills_the_budget_and_says_why():
    out = dv.draw(pool([50, 30, 20]), dv.QualityDraw(rows=10))
    taken = out.filter("taken")
    assert taken.height == 10
    assert taken["why"].str.extract(r"cluster (\d)").value_counts().sort("why")["count"].to_list() == [5, 3, 2]


def test_better_rows_are_drawn_more_often():
    rows_ = pool([300]).with_columns(clear_confidence=pl.when(pl.int_range(pl.len()) < 150).then(0.9).otherwise(0.1))
    taken = dv.draw(rows_, dv.QualityDraw(rows=60)).filter("taken").join(rows_, on="id")
    assert (taken["clear_confidence"] > 0.5).sum() > 40


def test_validation_rows_and_rows_without_quality_are_never_taken():
    rows_ = pool([10]).with_columns(
        split=pl.when(pl.int_range(pl.len()) < 3).then(pl.lit("validation")).otherwise(pl.lit("train")),
        clear_confidence=pl.when(pl.int_range(pl.len()) == 9).then(None).otherwise(0.5),
    )
    out = dv.draw(rows_, dv.QualityDraw(rows=7))
    assert out.filter("taken").height == 6
    assert not set(out.filter("taken")["id"]) & {*rows_["id"][:3], rows_["id"][9]}


def test_a_missing_quality_is_named():
    with pytest.raises(StepError, match="nobody"):
        dv.draw(pool([3]), dv.QualityDraw(quality="nobody"))


def test_weights_follow_gains_and_unseen_clusters_keep_theirs():
    config = dv.Reweight(floor=0.0)
    third = np.full(3, 1 / 3)
    assert dv.updated_weights(third, np.array([-0.5, 0.0, 1.0]), config) == pytest.approx(
        [0.140, 0.231, 0.629], abs=1e-3
    )
    kept = dv.updated_weights(third, np.array([0.0, 1.0, np.nan]), config)
    assert kept[2] == pytest.approx(1 / 3)
    assert kept.sum() == pytest.approx(1)


@pytest.mark.parametrize("gains", [[-5.0, -5.0], [0.0, 0.0], [-1.0, 1.0], [np.nan, np.nan], [1e6, -1e6]])
def test_weights_are_never_negative_or_undefined(gains):
    new = dv.updated_weights(np.array([0.5, 0.5]), np.array(gains), dv.Reweight())
    assert np.isfinite(new).all() and (new > 0).all() and new.sum() == pytest.approx(1)


def test_clusters_of_grown_rows_do_not_move_those_of_imported_ones():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 4)).tolist()
    base = rows(*[("q", "a")] * 60, embedding=vectors).with_columns(pl.col("embedding").list.to_array(4))
    grown = base.head(10).with_columns(id=pl.format("g{}", "id"), round=pl.lit(1, pl.Int32))
    alone = dv.cluster(base, dv.Cluster(clusters=5))["diversity_cluster"]
    both = dv.cluster(pl.concat([base, grown]), dv.Cluster(clusters=5))["diversity_cluster"]
    assert both.head(60).equals(alone)
    assert both.tail(10).to_list() == alone.head(10).to_list()


def test_a_cluster_that_a_filter_thinned_keeps_its_share_of_the_budget():
    thinned = pool([50, 50]).filter(pl.int_range(pl.len()) < 70)  # 50 rows of one cluster, 20 of the other
    taken = dv.draw(thinned, dv.QualityDraw(rows=30)).filter("taken").join(thinned, on="id")
    assert taken["diversity_cluster"].value_counts().sort("diversity_cluster")["count"].to_list() == [15, 15]


def test_shares_are_of_the_imported_rows_that_were_clustered():
    vectors = [[0.0, 1.0]] * 3 + [[1.0, 0.0]]
    base = rows(*[("q", "a")] * 4, embedding=vectors).with_columns(pl.col("embedding").list.to_array(2))
    grown = base.tail(1).with_columns(id=pl.lit("grown"), round=pl.lit(1, pl.Int32))
    out = dv.cluster(pl.concat([base, grown]), dv.Cluster(clusters=2))
    assert out["diversity_share"].to_list() == [0.75, 0.75, 0.75, 0.25, 0.25]


def results(rows_, gain_of_cluster):
    gain = rows_["diversity_cluster"].replace_strict(gain_of_cluster, return_dtype=pl.Float64)
    return rows_.select("id", student_nll=pl.col("base_nll") - gain, student_correct=pl.lit(True))


def test_swapped_results_of_two_clusters_change_the_next_choice():
    rows_ = pool([40, 40])
    chosen = {}
    for order in ((0, 1), (1, 0)):
        table = results(rows_, {order[0]: 1.5, order[1]: 0.0})
        weights = STEPS["reweight-clusters"](rows_, dv.Reweight(), tables={"results": table})
        choice = STEPS["kmeans-quality"](rows_, dv.QualityDraw(rows=20), tables={"weights": weights})
        counts = choice.filter("taken").join(rows_, on="id")["diversity_cluster"].value_counts()
        chosen[order] = dict(counts.iter_rows())
    assert chosen[0, 1][0] == chosen[1, 0][1] > chosen[0, 1][1]
