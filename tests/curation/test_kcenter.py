import numpy as np
import polars as pl

from curation.kcenter import KCenter, take_farthest
from tests.curation.test_diversity import embedded


def test_each_row_taken_is_the_farthest_from_those_before():
    line = [[x, 1.0] for x in (0.0, 1.0, 2.0, 6.0, 10.0)]
    choice = take_farthest(embedded(line), KCenter(rows=4))
    at = {f"r{n}": x for n, (x, _) in enumerate(line)}
    order = [at[i] for i in choice.filter("taken")["id"]]
    for n in range(1, 4):
        gaps = [min(abs(x - y) for y in order[:n]) for x in at.values()]
        assert min(abs(order[n] - y) for y in order[:n]) == max(gaps)
    assert choice.height == 5


def test_equal_rows_are_each_taken_once_and_rows_without_a_vector_never():
    vectors = np.ones((5, 3))
    vectors[2] = np.nan
    choice = take_farthest(embedded(vectors), KCenter(rows=9))
    assert sorted(choice.filter("taken")["id"]) == ["r0", "r1", "r3", "r4"]
    assert take_farthest(embedded(vectors[:0]), KCenter(rows=9)).is_empty()
    assert take_farthest(embedded(vectors[2:3]), KCenter(rows=9)).schema["taken"] == pl.Boolean
