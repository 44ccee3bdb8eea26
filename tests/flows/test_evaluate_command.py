import polars as pl
import pytest

from flows.evaluate_command import by_group, text, told

# two right, one wrong, one that the model failed to answer, two whose response holds nothing to compare
LIVE = pl.DataFrame(
    {
        "source": ["a", "a", "a", "b", "b", "b"],
        "student_answer": ["4", "5", "7", None, "3", "3"],
        "student_score": [1.0, 1.0, 0.0, None, None, None],
        "student_correct": [True, True, False, None, None, None],
        "student_nll": [1.0, 2.0, 3.0, None, 5.0, 6.0],
    }
)


def test_an_answer_that_failed_is_wrong_and_a_response_that_cannot_be_compared_is_left_out():
    found = told(LIVE)
    assert found["rows"] == 6 and found["unscorable"] == 2
    assert found["accuracy"]["mean"] == 0.5 and found["accuracy"]["rows"] == 4
    assert found["loss"]["mean"] == pytest.approx(3.4) and found["loss"]["rows"] == 5
    groups = {g["source"]: g for g in by_group(LIVE, "source")}
    assert groups["a"]["accuracy"]["mean"] == pytest.approx(2 / 3) and "unscorable" not in groups["a"]
    assert groups["b"]["accuracy"]["mean"] == 0.0 and groups["b"]["accuracy"]["rows"] == 1
    said = text({**found, "by": {}}, "numeric")
    assert "of 4 rows right by numeric" in said and "2 rows left out: nothing in their response" in said


def test_where_no_response_can_be_compared_that_alone_is_said():
    said = text({**told(LIVE[4:]), "by": {"source": by_group(LIVE[4:], "source")}}, "numeric")
    assert "right by" not in said and said.startswith("2 rows left out")
    assert told(LIVE[3:4])["accuracy"]["mean"] == 0.0
