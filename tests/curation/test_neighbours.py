import numpy as np
import pytest

from curation import neighbours
from curation.neighbours import kth_distance, nearest, recall


def test_sixth_neighbour_of_points_on_a_line_in_any_order():
    line = np.arange(7, dtype=np.float32)[:, None]
    assert kth_distance(line, 6).tolist() == [6, 5, 4, 3, 4, 5, 6]
    order = np.array([3, 0, 6, 2, 5, 1, 4])
    assert kth_distance(line[order], 6).tolist() == [3, 6, 6, 4, 5, 5, 4]


def test_equal_vectors_are_nothing_apart_though_rounding_would_part_them():
    rng = np.random.default_rng(0)
    one = rng.standard_normal(384).astype(np.float32)
    one /= np.linalg.norm(one)
    others = one + rng.standard_normal((50, 384)).astype(np.float32) * 1e-4
    assert kth_distance(np.vstack([[one] * 7, others]), 6)[:7].tolist() == [0.0] * 7
    assert kth_distance(np.vstack([[one] * 6, others]), 6)[:6].min() > 0


def test_too_few_vectors_and_those_that_are_no_numbers_give_nan():
    assert np.isnan(kth_distance(np.zeros((6, 2), np.float32), 6)).all()
    some = np.arange(9, dtype=np.float32)[:, None]
    some[4] = np.nan
    found = kth_distance(some, 6)
    assert np.isnan(found[4]) and found[0] == 7 and np.isfinite(np.delete(found, 4)).all()


def test_blocks_change_nothing_and_agree_with_plain_arithmetic(monkeypatch):
    points = np.random.default_rng(1).standard_normal((300, 8)).astype(np.float32)
    far = np.sort(np.linalg.norm(points[:, None] - points[None], axis=2), axis=1)[:, 6]
    assert kth_distance(points, 6) == pytest.approx(far, abs=1e-5)
    monkeypatch.setattr(neighbours, "_BLOCK", 301)
    assert kth_distance(points, 6) == pytest.approx(far, abs=1e-5)


def test_the_approximate_search_finds_what_the_exact_one_finds(monkeypatch):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(2)
    points = rng.standard_normal((4000, 16)).astype(np.float32)
    monkeypatch.setattr(neighbours, "EXACT_BELOW", 1000)
    near = kth_distance(points, 6, "faiss")
    exact = kth_distance(points, 6, "exact")
    assert not np.array_equal(near, exact)  # it is another search
    assert (near >= exact - 1e-6).all() and np.mean(near <= exact + 1e-6) > 0.9
    ids, far = nearest(points, 6, "faiss")
    some = np.arange(0, 4000, 40)
    assert np.array_equal(far[:, -1], near) and recall(ids[some], nearest(points, 6, rows=some)[0]) > 0.9


def test_the_nearest_others_are_in_order_and_never_the_point_itself():
    points = np.array([0, 1, 3, 7, 7, 12], np.float32)[:, None]
    ids, far = nearest(points, 2, rows=np.array([4, 0, 5]))
    assert ids.tolist() == [[3, 2], [1, 2], [3, 4]] and far.tolist() == [[0, 4], [1, 3], [5, 5]]
    assert nearest(points, 2)[0][[4, 0]].tolist() == [[3, 2], [1, 2]]


def test_recall_is_the_share_of_known_neighbours_found():
    assert recall(np.array([[1, 2, 3], [4, 5, 6]]), np.array([[3, 1, 9], [7, 8, 9]])) == pytest.approx(1 / 3)
