import polars as pl
import pytest

from flows import steps  # noqa: F401  registers every step
from flows.budget import rows_within, within
from flows.config import Use
from storage.store import Store, StoreError
from tests.flows.test_report import sealed
from tests.rows import rows

COUNTS = [5, 9, 2, 7, 4, 8]


@pytest.fixture
def counted(tmp_path):
    answers = [("q", "x" * (10 - i)) for i in range(6)]  # the longest first
    frame = rows(*answers, tokens=COUNTS, drop_reason=[None] * 5 + ["heldout-overlap: r1"])
    return Store(tmp_path), sealed(Store(tmp_path), "counted", frame)


@pytest.mark.parametrize(("tokens", "taken"), [(5, 1), (13, 1), (14, 2), (16, 3), (27, 5), (10**6, 5)])
def test_as_many_rows_are_taken_as_fit(counted, tokens, taken):
    store, dataset = counted
    assert rows_within(store, Use(step="longest"), dataset, tokens, {}, round=1, seed=0) == taken


def test_a_budget_under_the_first_row_is_refused(counted):
    store, dataset = counted
    with pytest.raises(StoreError, match="longest: no row fits a budget of 4 tokens"):
        rows_within(store, Use(step="longest"), dataset, 4, {}, round=1, seed=0)


def test_a_random_choice_keeps_within_its_tokens(counted):
    store, dataset = counted
    held = pl.Series(COUNTS)[:5].sum()
    assert 1 <= rows_within(store, Use(step="random"), dataset, held - 1, {}, round=1, seed=3) <= 4


def test_a_step_that_counts_tokens_is_told_the_budget_itself(counted):
    store, dataset = counted
    assert within(store, Use(step="choose"), dataset, 14, {}, round=1, seed=0) == {"tokens": 14}
    assert within(store, Use(step="longest"), dataset, 14, {}, round=1, seed=0) == {"rows": 2}
