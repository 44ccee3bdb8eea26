import numpy as np
import polars as pl
import pytest

from curation import choose, random_choice  # noqa: F401  registers the steps
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


def test_the_papers_update_gives_its_worked_values():
    config, third = dv.Reweight(update="ratio", floor=0.0), np.full(3, 1 / 3)
    gains = np.array([0.2, 0.3, 0.5])
    once = dv.updated_weights(third, gains, config)
    assert once == pytest.approx([0.2, 0.3, 0.5])
    assert dv.updated_weights(once, gains, config) == pytest.approx([0.105, 0.237, 0.658], abs=1e-3)
    assert dv.updated_weights(third, np.array([-0.5, 0.0, 1.0]), config) == pytest.approx([0.0, 0.25, 0.75])


def test_the_repositorys_update_forgets_the_weights_before():
    config = dv.Reweight(update="softmax", floor=0.0)
    for before in ([1 / 3] * 3, [0.8, 0.1, 0.1]):
        new = dv.updated_weights(np.array(before), np.array([-0.5, 0.0, 1.0]), config)
        assert new == pytest.approx([0.140, 0.231, 0.629], abs=1e-3)


@pytest.mark.parametrize("update", ["exponential", "ratio", "softmax"])
@pytest.mark.parametrize("gains", [[-5.0, -5.0], [0.0, 0.0], [-1.0, 1.0], [np.nan, np.nan], [1e6, -1e6]])
def test_weights_are_never_negative_or_undefined(gains, update):
    new = dv.updated_weights(np.array([0.5, 0.5]), np.array(gains), dv.Reweight(update=update))
    assert np.isfinite(new).all() and (new > 0).all() and new.sum() == pytest.approx(1)


def test_a_cluster_that_a_filter_thinned_keeps_its_share_of_the_budget():
    thinned = pool([50, 50]).filter(pl.int_range(pl.len()) < 70)  # 50 rows of one cluster, 20 of the other
    taken = dv.draw(thinned, dv.QualityDraw(rows=30)).filter("taken").join(thinned, on="id")
    assert taken["diversity_cluster"].value_counts().sort("diversity_cluster")["count"].to_list() == [15, 15]


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


def test_quality_is_drawn_in_proportion_or_by_its_exponential():
    n, q = 1500, {"a": 2.0, "b": 4.0, "c": 6.0}
    for mode, expected in (("proportional", [1 / 6, 1 / 3, 1 / 2]), ("softmax", [0.016, 0.117, 0.867])):
        rows_ = pool([3] * n).with_columns(clear_confidence=pl.Series([*q.values()] * n))
        choice = dv.draw(rows_, dv.QualityDraw(rows=n, mode=mode)).filter("taken").join(rows_, on="id")
        firsts = choice["clear_confidence"].value_counts().sort("clear_confidence")["count"] / n
        assert choice.height == n
        assert firsts.to_list() == pytest.approx(expected, abs=0.04)


def embedded(vectors):
    vectors = np.asarray(vectors, np.float16)
    column = pl.Series("embedding", vectors, dtype=pl.Array(pl.Float16, vectors.shape[1]))
    return rows(*[("q", "a")] * len(vectors)).with_columns(column)


def test_a_budget_over_rounds_is_filled_by_new_rows_alone():
    rows_, choice, taken, sizes = pool([30, 20, 10]), None, set(), []
    for number in (1, 2, 3):
        tables = {"earlier": choice} if choice is not None else {}
        choice = STEPS["kmeans-quality"](rows_, dv.QualityDraw(rows=20, rounds=3, round=number), tables=tables)
        now = set(choice.filter("taken")["id"])
        assert taken <= now and choice["id"].n_unique() == choice.height
        sizes.append(len(now) - len(taken))
        taken = now
    assert sum(sizes) == 20
    assert max(sizes) - min(sizes) <= 1


def test_a_cluster_of_noise_loses_its_weight_round_by_round():
    rows_, weights, noise = pool([20] * 10), None, []
    for _ in range(3):
        table = results(rows_, {c: 0.0 if c == 4 else 1.0 for c in range(10)})
        given = {"results": table} | ({"weights": weights} if weights is not None else {})
        weights = STEPS["reweight-clusters"](rows_, dv.Reweight(), tables=given)
        noise.append(weights.filter(pl.col("cluster") == 4)["weight"].item())
    assert 0.1 > noise[0] > noise[1] > noise[2] > 0


def test_gains_of_validation_rows_alone_can_be_asked_for():
    rows_ = pool([4, 4]).with_columns(split=pl.Series(["train", "validation"] * 4))
    nll = pl.when(pl.col("split") == "validation").then(1.0).otherwise(9.0)
    first = pl.col("diversity_cluster") == 0  # there the rows that were trained on gained, and the others lost
    table = rows_.select("id", student_nll=pl.when(first).then(4.0 - nll / 3).otherwise(nll))
    weigh = STEPS["reweight-clusters"]
    by_all, by_unseen = (
        weigh(rows_, dv.Reweight(judged_by=who), tables={"results": table})["weight"].to_list()
        for who in ("all", "validation")
    )
    assert by_all[0] > by_all[1] and by_unseen[0] < by_unseen[1]
    with pytest.raises(StepError, match="run `split` first"):
        weigh(rows_.drop("split"), dv.Reweight(judged_by="validation"), tables={"results": table})


def test_draws_of_different_steps_have_nothing_to_do_with_each_other():
    rows_ = pool([1000])
    chosen = [
        set(STEPS[name](rows_, STEPS[name].config(rows=300, seed=seed)).filter("taken")["id"])
        for name in ("random", "kmeans-quality", "choose")
        for seed in (0, 1)
    ]
    shared = [len(a & b) for i, a in enumerate(chosen) for b in chosen[i + 1 :]]
    assert all(50 < n < 130 for n in shared), shared  # 90 by chance, with a deviation of 6.6
    draws = [uniform(rows_["id"], 0, step, turn) for step in ("", "k-center", "choose") for turn in (0, 1)]
    assert np.array_equal(draws[0], draws[1])  # the baseline has no rounds
    assert np.abs(np.corrcoef(draws[1:]) - np.eye(5)).max() < 0.15


def test_a_cluster_that_is_away_for_a_round_keeps_its_weight():
    rows_ = pool([40, 40, 20])
    before = pl.DataFrame({"cluster": [0, 1, 2], "weight": [0.5, 0.2, 0.3]})
    there = rows_.filter(pl.col("diversity_cluster") != 2)  # a filter dropped the others
    tables = {"results": results(there, {0: 1.0, 1: 0.0, 2: 0.0}), "weights": before}
    after = STEPS["reweight-clusters"](there, dv.Reweight(floor=0.0), tables=tables)
    assert after["cluster"].to_list() == [0, 1, 2] and after["weight"][2] == pytest.approx(0.3)
    assert after["weight"][0] > 0.5 and after["rows"].to_list() == [40, 40, 0]


@pytest.mark.parametrize("mode", ["proportional", "softmax"])
def test_a_quality_that_is_no_number_is_not_drawn_by(mode):
    values = [0.5, float("nan"), float("inf"), None, -1.0, 0.0]
    rows_ = pool([6]).with_columns(clear_confidence=pl.Series(values))
    taken = dv.draw(rows_, dv.QualityDraw(rows=9, mode=mode)).filter("taken")["id"]
    assert set(taken) == {rows_["id"][n] for n in (0, 4, 5)}
