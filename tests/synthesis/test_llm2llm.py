import polars as pl
import pytest

from curation.step import STEPS, Completion
from storage.schema import instruction, message, response
from synthesis import llm2llm as ll
from tests.fakes import FakeEngine
from tests.rows import rows

POOL = [("Pick: a, b\nplay jazz", "a"), ("Pick: a, b\nrain today?", "b"), ("Pick: a, b\nsome rock", "a")]


def results(**correct):
    return pl.DataFrame({"id": list(correct), "student_correct": list(correct.values())})


def grow(pool, table, teacher, **settings):
    config = ll.LLM2LLM(**settings)
    return STEPS["llm2llm"](pool, config, {"teacher": teacher}, {"results": table})


def test_one_new_row_for_each_wrong_row_with_parent_method_and_round():
    teacher = FakeEngine(reply=lambda text, i: "a new one about " + text.split("Input: ")[1].split("\n")[0].split()[1])
    made = grow(rows(*POOL), results(r0=False, r1=True, r2=False), teacher, round=2)
    assert made["parent_id"].to_list() == ["r0", "r2"]
    assert made["method"].unique().to_list() == ["llm2llm"] and made["round"].unique().to_list() == [2]
    first = made["messages"].to_list()[0]
    assert instruction(first) == "Pick: a, b\na new one about jazz" and response(first) == "a"


def test_swapped_results_change_which_rows_grow():
    teacher = FakeEngine(reply=lambda text, i: f"another {hash(text)}")
    one = grow(rows(*POOL), results(r0=False, r1=True), teacher)
    other = grow(rows(*POOL), results(r0=True, r1=False), teacher)
    assert one["parent_id"].to_list() == ["r0"] and other["parent_id"].to_list() == ["r1"]


def test_grown_rows_and_validation_rows_are_never_parents():
    pool = rows(*POOL, split=["train", "validation", "train"])
    pool = pool.with_columns(round=pl.Series([0, 0, 1], dtype=pl.Int32))
    made = grow(pool, results(r0=False, r1=False, r2=False), FakeEngine(reply=lambda t, i: "something else"))
    assert made["parent_id"].to_list() == ["r0"]


def test_the_most_trusted_wrong_rows_come_first():
    pool = rows(*POOL, clear_confidence=[0.1, 0.5, 0.9])
    asked = FakeEngine(reply=lambda text, i: f"new {len(text)}")
    made = grow(pool, results(r0=False, r1=False, r2=False), asked, rows=2)
    assert made["parent_id"].to_list() == ["r2", "r1"]


def test_the_same_reply_in_two_rounds_gives_two_ids_and_is_not_written_again_while_it_stands():
    teacher = FakeEngine(reply=lambda text, i: "one more song")
    first = grow(rows(*POOL), results(r0=False), teacher, round=1)
    second = grow(rows(*POOL), results(r0=False), teacher, round=2)
    assert first["id"][0] != second["id"][0]
    assert grow(pl.concat([rows(*POOL), first]), results(r0=False), teacher, round=2).height == 0


def test_a_teacher_that_copies_is_refused_and_asked_no_more_than_the_attempts():
    teacher = FakeEngine(reply=lambda text, i: text.split("Input: ")[1].split("\n")[0])
    made = grow(rows(*POOL), results(r0=False), teacher, attempts=3)
    assert made.height == 0 and len(teacher.asked) == 3


def test_a_student_without_mistakes_grows_nothing_and_asks_nothing():
    teacher = FakeEngine()
    assert grow(rows(*POOL), results(r0=True), teacher).height == 0
    assert teacher.asked == []


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        pytest.param("Question: 3+3?\nAnswer: 6", ("3+3?", "6"), id="a-pair"),
        pytest.param("Question: 3+3?", None, id="no-answer"),
        pytest.param("Question: 1?\nAnswer: 1\nQuestion: 2?\nAnswer: 2", None, id="two-pairs"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_replies_without_an_input_line_are_read_as_question_and_answer(reply, expected):
    found = ll.parse([message("user", "2+2?"), message("assistant", "4")], Completion(reply))
    assert (found and (instruction(found), response(found))) == expected
