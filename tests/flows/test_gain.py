"""What a round or a setting is worth by validation rows: of those that the metric can compare."""

from types import SimpleNamespace

import pytest

from flows.loop import _gained
from flows.self_guide_flow import gain
from storage.store import Store
from tests.flows.test_report import evaluation


def test_rows_without_a_verdict_do_not_thin_out_a_gain(tmp_path):
    """Three rows can be compared, and the round mends all of them; among 300 that would be chance."""
    store = Store(tmp_path)
    names = [("before", [False] * 3), ("after", [True] * 3), ("flat", [True, False, False])]
    tested = [evaluation(store, name, [*known, *[None] * 297]) for name, known in names]
    rounds = [SimpleNamespace(validation=dataset) for dataset in tested]
    assert _gained(store, rounds[:2])
    assert not _gained(store, [rounds[0], rounds[2]])
    assert _gained(store, rounds[:1])
    assert gain(store, tested[0], tested[1]) == 1.0
    assert gain(store, tested[0], tested[2]) == pytest.approx(1 / 3)


def test_an_answer_that_failed_is_a_wrong_one_and_no_row_less(tmp_path):
    store = Store(tmp_path)
    before = evaluation(store, "before", [True, True, None, None], ["a", "b", "c", "d"])
    after = evaluation(store, "after", [True, None, True, None], ["a", None, "c", "d"])
    assert gain(store, before, after) == pytest.approx(2 / 3 - 2 / 3)  # the last row is left out, the others are not
    worse = evaluation(store, "worse", [True, None, None, None], ["a", None, None, None])  # nor has the third one any
    assert gain(store, before, worse) == pytest.approx(1 / 2 - 1)
