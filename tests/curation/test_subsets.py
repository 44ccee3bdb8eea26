import numpy as np
import polars as pl
import pytest

from curation.step import StepError, find_step
from curation.subsets import Subset
from tests.rows import rows

STEP = find_step("instructmining-subset")


def pool(n=400, **columns):
    rng = np.random.default_rng(0)
    frame = rows(*[("q", "a")] * n, instructmining_mtld=rng.random(n), instructmining_knn6=rng.random(n), **columns)
    return frame.with_columns(split=pl.Series(["validation" if i % 10 == 0 else "train" for i in range(n)]))


def drawn(frame, **settings):
    choice = STEP(frame, Subset(**{"rows": 50, "indicators": ["mtld", "knn6"], **settings}))
    assert choice["taken"].sum() == min(settings.get("rows", 50), choice.height)
    return choice.filter("taken").join(frame, on="id")


def test_means_differ_far_more_than_those_of_even_draws():
    frame = pool()
    means = [
        drawn(frame, number=n).select("instructmining_mtld", "instructmining_knn6").mean().row(0) for n in range(24)
    ]
    even = 0.29 / np.sqrt(50)
    assert (np.std(means, axis=0) > 3 * even).all()
    assert abs(np.corrcoef(np.transpose(means))[0, 1]) < 0.6  # and not together
    assert {drawn(frame, number=n)["why"][0].split()[0] for n in range(8)} == {"drawn", "along", "much"}


def test_a_subset_depends_on_seed_and_number_alone_and_takes_no_validation_row():
    frame = pool()
    one = set(drawn(frame, number=6)["id"])
    assert one == set(drawn(frame.sample(fraction=1, shuffle=True, seed=1), number=6)["id"])
    assert one != set(drawn(frame, number=6, seed=1)["id"]) != set(drawn(frame, number=5)["id"])
    assert drawn(frame, number=6)["split"].unique().to_list() == ["train"]


def test_sources_are_mixed_with_shares_that_differ():
    frame = pool().with_columns(source=pl.Series(["a", "b", "c", "d"] * 100))
    shares = [drawn(frame, number=n)["source"].value_counts()["count"].max() / 50 for n in range(1, 41, 4)]
    assert max(shares) > 0.6 and min(shares) < 0.5
    assert drawn(frame, number=1)["why"][0] == "a mixture of groups"


def test_rows_that_lack_an_indicator_are_in_no_subset_and_a_missing_column_is_named():
    frame = pool().with_columns(instructmining_mtld=pl.when(pl.int_range(pl.len()) > 60).then("instructmining_mtld"))
    assert drawn(frame, number=2)["instructmining_mtld"].null_count() == 0
    with pytest.raises(StepError, match="instructmining_reward"):
        drawn(frame, indicators=["reward"])


@pytest.mark.parametrize("number", range(4))
def test_a_few_rows_and_rows_that_are_all_alike_can_be_drawn_from(number):
    alike = pool(30).with_columns(instructmining_mtld=1.0, instructmining_knn6=0.0)
    assert drawn(alike, rows=20, number=number).height == 20
    few = pool(6)  # the first is for validation
    assert sorted(drawn(few, number=number)["id"]) == ["r1", "r2", "r3", "r4", "r5"]
    assert drawn(pool(1), number=number).height == 0
