import numpy as np
import polars as pl
import pytest

from curation.clear_filter import ClearFilter, drop_doubtful
from curation.step import StepError
from tests.rows import rows


def scored(confidence, consistency=None):
    n = len(confidence)
    return rows(*[("q", "a")] * n, clear_confidence=confidence, clear_consistency=consistency or [0.0] * n)


@pytest.mark.parametrize("n", [7, 8, 101])
def test_the_median_keeps_the_lower_half_out(n):
    confidence = np.random.default_rng(0).permutation(n) / n
    out = drop_doubtful(scored(list(confidence)), ClearFilter())
    assert out["drop_reason"].null_count() == n // 2


def test_ties_at_the_median_are_broken_by_consistency():
    out = drop_doubtful(scored([0.5, 0.5, 0.5, 0.5], [0.1, 0.9, 0.2, 0.8]), ClearFilter())
    assert out["drop_reason"].is_null().to_list() == [False, True, False, True]


def test_within_groups_a_kind_that_the_model_finds_hard_keeps_its_better_half():
    table = scored([0.9, 0.8, 0.7, 0.6, 0.2, 0.1, 0.05, 0.0]).with_columns(kind=pl.Series(["easy"] * 4 + ["hard"] * 4))
    kept = {
        within: drop_doubtful(table, ClearFilter(within=within))["drop_reason"].is_null().to_list()
        for within in (None, "kind")
    }
    assert kept == {None: [True] * 4 + [False] * 4, "kind": ([True] * 2 + [False] * 2) * 2}


def test_a_group_of_one_row_keeps_it_unless_it_has_no_confidence():
    table = scored([0.9, 0.8, 0.1, None]).with_columns(kind=pl.Series(["a", "a", "b", "c"]))
    out = drop_doubtful(table, ClearFilter(within="kind"))
    assert out["drop_reason"].is_null().to_list() == [True, False, True, False]
    assert drop_doubtful(table.clear(), ClearFilter(within="kind")).height == 0
    with pytest.raises(ValueError, match="not both"):
        ClearFilter(within="kind", threshold=0.5)
    with pytest.raises(StepError, match="no column 'topic'"):
        drop_doubtful(table, ClearFilter(within="topic"))


def test_a_fixed_threshold_names_both_numbers_in_the_reason():
    out = drop_doubtful(scored([0.25, 0.75]), ClearFilter(threshold=0.5))
    assert out["drop_reason"].to_list() == ["clear-filter: confidence 0.25 is not over 0.5", None]


def test_a_row_without_confidence_is_dropped_by_name():
    out = drop_doubtful(scored([None, 0.75]), ClearFilter(threshold=0.5))
    assert out["drop_reason"][0] == "clear-filter: no confidence could be had"
    assert isinstance(out["clear_threshold"].dtype, pl.Float64)


def test_a_row_at_the_threshold_is_dropped_and_marked_as_a_tie():
    out = drop_doubtful(scored([0.5, 0.75, 0.25]), ClearFilter(threshold=0.5))
    assert out["drop_reason"].is_null().to_list() == [False, True, False]
    assert out["drop_reason"][0] == "clear-filter: confidence 0.5 ties with the threshold"
    assert out["clear_tied"].to_list() == [True, False, False]


def test_ties_of_consistency_too_are_broken_by_similarity_and_then_by_id():
    table = scored([0.5] * 4, [0.3] * 4).with_columns(clear_similarity=pl.Series([0.1, 0.9, 0.1, 0.1]))
    out = drop_doubtful(table, ClearFilter())
    assert out["drop_reason"].is_null().to_list() == [False, True, False, True]
    assert out["clear_tied"].to_list() == [True] * 4


def test_ties_that_leave_two_fifths_are_not_broken():
    # 4 of 10 are over the median of .5, and that is enough
    out = drop_doubtful(scored([0.9] * 4 + [0.5] * 2 + [0.1] * 4), ClearFilter())
    assert out["drop_reason"].null_count() == 4
    # 3 of 10 are not
    assert drop_doubtful(scored([0.9] * 3 + [0.5] * 4 + [0.1] * 3), ClearFilter())["drop_reason"].null_count() == 5


@pytest.mark.parametrize(("keep", "kept"), [(0.3, 3), (0.29, 2), (0.7, 7), (0.05, 1)])
def test_a_share_is_kept_to_the_row_the_surest_first(keep, kept):
    out = drop_doubtful(scored([n / 10 for n in range(10)]), ClearFilter(keep=keep))
    assert out["drop_reason"].is_null().to_list() == [n >= 10 - kept for n in range(10)]
    assert out["clear_threshold"].unique().to_list() == [(9 - kept) / 10]


def test_a_share_within_each_source_keeps_as_much_of_each():
    table = scored([0.9, 0.8, 0.7, 0.6, 0.2, 0.1, 0.05, 0.0]).with_columns(source=pl.Series(["a"] * 4 + ["b"] * 4))
    out = drop_doubtful(table, ClearFilter(keep=0.5, within="source"))
    assert out["drop_reason"].is_null().to_list() == [True, True, False, False] * 2
    with pytest.raises(ValueError, match="threshold or keep, not both"):
        ClearFilter(threshold=0.5, keep=0.5)


@pytest.mark.parametrize(("knowing", "least", "most"), [(0.8, 1.5, 2.0), (0.0, 0.6, 1.4)])
def test_the_dropped_half_holds_more_spoilt_rows_where_the_score_knows_them(knowing, least, most):
    rng = np.random.default_rng(3)
    spoilt = np.arange(200) < 40
    confidence = (knowing * ~spoilt + rng.uniform(0, 1, 200)) / (1 + knowing)
    dropped = drop_doubtful(scored(confidence.tolist()), ClearFilter())["drop_reason"].is_not_null().to_numpy()
    lift = spoilt[dropped].mean() / spoilt.mean()
    assert dropped.sum() == 100 and least < lift <= most


def test_the_reason_names_why_a_row_has_no_confidence():
    table = scored([None, 0.5]).with_columns(clear_error=pl.Series(["too long", None]))
    out = drop_doubtful(table, ClearFilter(threshold=0.1))
    assert out["drop_reason"].to_list() == ["clear-filter: no confidence could be had (too long)", None]


def test_another_threshold_asks_no_model():
    assert drop_doubtful.roles == () and drop_doubtful.asks(ClearFilter()) == ()
    table = scored([0.2, 0.5, 0.8])
    kept = [drop_doubtful(table, ClearFilter(threshold=t))["drop_reason"].null_count() for t in (0.1, 0.3, 0.6, 0.9)]
    assert kept == [3, 2, 1, 0]
