import math
from xml.dom import minidom

import pytest

from flows import svg


def drawn(text: str, tag: str) -> list:
    return minidom.parseString(text).getElementsByTagName(tag)


def texts(text: str) -> list[str]:
    return [node.firstChild.data for node in drawn(text, "text") if node.firstChild]


def test_every_value_is_in_a_bar():
    assert svg._bins([0.0, 0.15, 0.15, 3.0], 0.0, 3.0)[0] == [1, 2, *[0] * 27, 1]


def test_whole_numbers_get_a_bar_each():
    picture = svg.histogram([0, 1, 1, 2, 2, 2])
    heights = [float(bar.getAttribute("height")) for bar in drawn(picture, "rect")]
    assert len(heights) == 3
    assert heights[1] == pytest.approx(heights[2] * 2 / 3, abs=0.1)


def test_what_lies_under_the_threshold_is_grey():
    fills = [bar.getAttribute("fill") for bar in drawn(svg.histogram([0, 1, 2, 3], thresholds=[1]), "rect")]
    assert fills == [svg.FAINT, svg.FAINT, svg.FILL, svg.FILL]
    assert "threshold 1" in texts(svg.histogram([0, 1, 2, 3], thresholds=[1]))


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="none"),
        pytest.param([math.nan, math.inf, None], id="no numbers"),
        pytest.param([0.5] * 9, id="all equal"),
        pytest.param([1.7e308, -1.7e308], id="too far apart"),
        pytest.param([1e299, -1e299], id="huge"),
        pytest.param([1e-320, 2e-320], id="tiny"),
    ],
)
def test_any_values_make_a_drawing(values: list):
    assert drawn(svg.histogram(values, thresholds=[0.2], title="t"), "svg")
    assert drawn(svg.histogram(values, thresholds=[math.nan]), "svg")


def test_text_is_escaped_and_what_no_browser_draws_is_replaced():
    picture = svg.lineage({"a": ["<script>&\x00\x0b'", "\ud800"]}, [])
    assert texts(picture) == ["<script>&\ufffd\ufffd'", "\ufffd"]
    assert not drawn(picture, "script")


def test_lineage_runs_from_left_to_right_and_survives_rings():
    picture = svg.lineage({"c": ["c"], "a": ["a"], "b": ["b"]}, [("a", "b"), ("b", "c"), ("a", "c")], "c")
    at = {node.firstChild.data: float(node.getAttribute("x")) for node in drawn(picture, "text")}
    assert at["a"] < at["b"] < at["c"]
    assert len(drawn(picture, "path")) == 6  # a line and a head for each of three arrows
    assert drawn(svg.lineage({"a": ["a"], "b": ["b"]}, [("a", "b"), ("b", "a")]), "rect")
    assert drawn(svg.lineage({}, []), "svg")


def test_intervals_are_drawn_to_scale():
    picture = svg.intervals([("ours", 0.8, 0.7, 0.9), ("random", 0.4, 0.3, 0.5), ("failed", math.nan, 0, 1)])
    wide = [float(bar.getAttribute("width")) for bar in drawn(picture, "rect")]
    assert wide[0] == pytest.approx(2 * wide[1], abs=0.2)
    assert "no value" in texts(picture)
    assert "no values" in texts(svg.intervals([]))


def test_a_curve_leaves_out_what_is_no_number():
    (line,) = drawn(svg.curve([(0, 2.0), (1, math.nan), (2, 1.0)]), "polyline")
    assert line.getAttribute("points").split() == ["64.0,30.0", "508.0,176.0"]
    assert "no values" in texts(svg.curve([]))


def test_bands_hold_every_line_with_its_interval():
    lines = {"a": [(100, 0.5, 0.4, 0.6), (400, 0.7, 0.6, 0.8)], "<b>": [(200, 0.6, 0.5, 0.7)]}
    found = svg.bands(lines, "accuracy", "rows")
    assert [len(drawn(found, tag)) for tag in ("polygon", "polyline", "circle")] == [2, 2, 3]
    middle = [float(dot.getAttribute("cx")) for dot in drawn(found, "circle")]
    assert middle[2] == (middle[0] + middle[1]) / 2  # 200 stands halfway from 100 to 400, in powers of two
    assert "<b>" not in found and "no values" in svg.bands({}, "empty")


def test_every_group_has_its_threshold_and_of_very_many_the_ends_are_drawn():
    def dashed(thresholds):
        lines = drawn(svg.histogram([0, 1, 2, 3], thresholds=thresholds), "line")
        return [line for line in lines if line.getAttribute("stroke-dasharray")]

    assert len(dashed([])) == 0 and len(dashed([1, 1, 2])) == 2 and len(dashed([n / 10 for n in range(30)])) == 2
    assert "thresholds 1 to 2" in texts(svg.histogram([0, 1, 2, 3], thresholds=[2, 1]))


@pytest.mark.parametrize("thresholds", [[0.0001234, 0.98765], [0.00012345], [0.98765], [0.1, 0.12]])
def test_the_name_of_a_threshold_is_written_over_nothing_and_inside_the_drawing(thresholds: list[float]):
    picture = svg.histogram([0.0001, 0.5, 0.9999], thresholds=thresholds)
    nodes = drawn(picture, "text")
    (named,) = [node for node in nodes if node.firstChild and node.firstChild.data.startswith("threshold")]
    at, half = float(named.getAttribute("x")), 3.5 * len(named.firstChild.data)
    assert half <= at <= 350 - half
    assert all(
        abs(float(node.getAttribute("y")) - float(named.getAttribute("y"))) >= 14 for node in nodes if node is not named
    )
    assert float(named.getAttribute("y")) < float(drawn(picture, "svg")[0].getAttribute("height"))
