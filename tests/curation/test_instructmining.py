import polars as pl
import pytest

from curation import instructmining as im
from curation.step import StepError
from tests.fakes import FakeEngine
from tests.rows import rows


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(["a"] * 60, 2.0, id="one-word-again-and-again"),
        pytest.param(["a", "b"] * 30, 3.0, id="two-words-in-turn"),
        pytest.param([str(i) for i in range(60)], 60.0, id="all-differ-gives-the-length"),
        pytest.param([], None, id="nothing"),
    ],
)
def test_mtld(words, expected):
    assert im.mtld(words) == (expected if expected is None else pytest.approx(expected))


def test_sixth_neighbour_of_points_on_a_line():
    line = rows(*[("q", "a")] * 7, embedding=[[float(i)] for i in range(7)])
    line = line.with_columns(pl.col("embedding").list.to_array(1))
    assert im.neighbours(line, im.Neighbours())["instructmining_knn6"].to_list() == [6, 5, 4, 3, 4, 5, 6]


def test_too_few_rows_for_six_neighbours_give_null():
    few = rows(("q", "a"), embedding=[[0.0]]).with_columns(pl.col("embedding").list.to_array(1))
    assert im.neighbours(few, im.Neighbours())["instructmining_knn6"].to_list() == [None]


def test_indicators_count_tokens_and_take_the_perplexity_of_the_base_model():
    out = im.indicators(rows(("two words", "and three here"), base_nll=[0.0]), im.Indicators(), {"base": FakeEngine()})
    got = out.select(pl.col("^instructmining_.*$")).row(0, named=True)
    assert got["instructmining_input_length"] == 2
    assert got["instructmining_output_length"] == 3
    assert got["instructmining_perplexity"] == 1.0


def with_indicators(**columns):
    return rows(("q", "a"), **{f"instructmining_{k}": [v] for k, v in columns.items()})


@pytest.mark.parametrize(
    ("rule", "columns", "expected"),
    [
        pytest.param("2024", (0, 1, 1, 1), -0.0037, id="2024"),
        pytest.param("2024", (2, 0.9, 0.95, 0.9), -0.03225, id="2024-mixed"),
        pytest.param("2023-07", (1, 200, 0.7), 0.281614, id="2023"),
    ],
)
def test_rules_give_the_worked_values(rule, columns, expected):
    names = (
        ("reward", "output_length", "knn6")
        if rule == "2023-07"
        else ("reward", "understandability", "naturalness", "coherence")
    )
    out = im.predict(with_indicators(**dict(zip(names, columns, strict=True))), im.Rule(rule=rule))
    assert out["instructmining_predicted_loss"].item() == pytest.approx(expected, abs=1e-6)


def test_a_rule_over_a_missing_indicator_refuses_by_name():
    with pytest.raises(StepError, match=r"instructmining_reward.*oasst-rm"):
        im.predict(rows(("q", "a")), im.Rule(rule="2023-07"))
