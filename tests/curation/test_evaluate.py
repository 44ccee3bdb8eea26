import math

import polars as pl
import pytest

from curation.evaluate import Evaluate, evaluate, same, score
from curation.judged import Judged, judge_answers
from curation.own_check import checked
from curation.perplexity import Perplexity, perplexity
from curation.step import Completion, Failed, StepError
from storage.schema import message
from tests.fakes import FakeEngine
from tests.rows import rows

ROWS = rows(("right?", "GetWeather"), ("wrong?", "PlayMusic"), ("lost?", "RateBook"))


class Halting(FakeEngine):
    """Fails on whatever asks `lost?`."""

    def generate(self, prompts, **how):
        lost = [Completion("", error="too long")]
        answers = super().generate(prompts, **how)
        return [lost if p[-1]["content"] == "lost?" else a for p, a in zip(prompts, answers, strict=True)]

    def logprobs(self, conversations):
        found = super().logprobs(conversations)
        return [
            Failed("too long") if c[0]["content"] == "lost?" else f for c, f in zip(conversations, found, strict=True)
        ]


def test_an_answer_is_right_by_the_rows_response_and_null_where_there_was_none():
    student = Halting(reply=lambda text, i: " getweather." if text == "right?" else "RateBook", nll=lambda text: 2.0)
    out = evaluate(ROWS, Evaluate(), {"student": student})
    assert out["student_answer"].to_list() == [" getweather.", "RateBook", None]
    assert out["student_correct"].to_list() == [True, False, None]
    assert out["student_nll"].to_list() == [2.0, 2.0, None]
    assert student.asked == ["right?", "wrong?", "lost?"]  # the prompt alone, never the answer


def test_likelihood_is_measured_only_where_it_is_wanted():
    class Mute(FakeEngine):
        def logprobs(self, conversations):
            raise AssertionError("nobody wants to know")

    out = evaluate(ROWS, Evaluate(likelihood=False), {"student": Mute(reply=lambda text, i: "GetWeather")})
    assert out["student_nll"].to_list() == [None] * 3 and out["student_correct"].to_list() == [True, False, False]


def test_perplexity_is_the_mean_over_the_responses_tokens():
    class Uneven(Halting):
        def logprobs(self, conversations):
            return [[-1.0, -3.0], [-4.0], Failed("too long")]

    assert perplexity(ROWS, Perplexity(), {"base": Uneven()})["base_nll"].to_list() == [2.0, 4.0, None]


@pytest.mark.parametrize(
    ("answer", "wanted", "right"),
    [
        pytest.param(" Play  music.\n", "play music", True, id="case, space and full stop"),
        pytest.param('"PlayMusic"', "PlayMusic", True, id="quotes"),
        pytest.param("-5", "5", False, id="a sign is no punctuation"),
        pytest.param("3.5", "35", False, id="inner punctuation counts"),
        pytest.param("?", "!", False, id="nothing but punctuation"),
        pytest.param("", "a", False, id="empty"),
    ],
)
def test_answers_are_the_same_but_for_what_stands_around_them(answer, wanted, right):
    assert same(answer, wanted) is right


@pytest.mark.parametrize(
    ("metric", "answer", "wanted", "found"),
    [
        pytest.param(
            "numeric", "It is 1,234.50 dollars.", "So 3 * 411.5 = 1234.5\n#### 1,234.5", 1.0, id="last number"
        ),
        pytest.param("numeric", "-5", "5", 0.0, id="sign"),
        pytest.param("numeric", "no idea", "5", 0.0, id="no number said"),
        pytest.param("numeric", "5", "five", None, id="no number wanted"),
        pytest.param("numeric", "\u22125", "5", 0.0, id="a minus of print"),
        pytest.param("gsm8k", "#### -5", "#### 5", 0.0, id="gsm8k sign"),
        pytest.param("gsm8k", "#### \u22125", "#### 5", 0.0, id="gsm8k minus of print"),
        pytest.param("gsm8k", "so\n#### 1,000", "#### 1000", 1.0, id="gsm8k thousands"),
        pytest.param("gsm8k", "#### $42.0", "#### 42", 1.0, id="gsm8k dollars"),
        pytest.param("gsm8k", "It is 42.", "#### 42", 0.0, id="gsm8k no mark"),
        pytest.param("gsm8k", "#### 42\nand 7 more", "42", 1.0, id="gsm8k the line of the mark"),
        pytest.param("gsm8k", "#### 42 apples in 2 boxes", "#### 42", 1.0, id="gsm8k the first number"),
        pytest.param("gsm8k", "#### 0", "1 - 1\n#### 0", 1.0, id="gsm8k nothing"),
        pytest.param("gsm8k", "#### 5", "five", None, id="gsm8k no number wanted"),
        pytest.param("rouge-l", "the cat sat", "the cat sat on the mat", 2 / 3, id="F of 3/3 and 3/6"),
        pytest.param("rouge-l", "", "a", 0.0, id="nothing said"),
        pytest.param("exact", "Yes.", "yes", 1.0, id="exact"),
    ],
)
def test_a_score_is_the_metrics(metric, answer, wanted, found):
    assert score(metric, answer, wanted) == (found if found is None else pytest.approx(found))


def test_the_choice_is_the_likeliest_answer_by_the_sum_of_its_log_probabilities():
    class Leaning(FakeEngine):
        def logprobs(self, conversations):
            odds = {"PlayMusic": [-0.9], "RateBook now": [-0.4, -0.4], "GetWeather": [-3.0]}
            return [odds[c[-1]["content"]] if c[0]["content"] != "lost?" else Failed("x") for c in conversations]

    config = Evaluate(metric="choice", choices=["PlayMusic", "RateBook now", "GetWeather"], likelihood=False)
    out = evaluate(ROWS, config, {"student": Leaning()})
    assert out["student_answer"].to_list() == ["RateBook now", "RateBook now", None]
    assert out["student_correct"].to_list() == [False, False, None]
    with pytest.raises(StepError, match="name two or more with --choices"):
        evaluate(ROWS, Evaluate(metric="choice"), {"student": Leaning()})


def test_a_score_counts_as_correct_from_the_threshold():
    student = FakeEngine(reply=lambda text, i: "play the music")
    wanted = rows(("q", "play some music"))
    for threshold, right in ((0.6, True), (0.7, False)):
        out = evaluate(wanted, Evaluate(metric="rouge-l", threshold=threshold), {"student": student})
        assert out["student_correct"].to_list() == [right] and out["student_score"][0] == pytest.approx(2 / 3)


def test_loss_tokens_error_and_gain_come_from_one_pass():
    class Counting(Halting):
        calls = 0

        def logprobs(self, conversations):
            self.calls += 1
            return [[math.log(0.5), math.log(0.25)], [0.0], Failed("too long")]

    student = Counting()
    before = pl.DataFrame({"id": ["r1", "r0"], "base_nll": [2.0, 3.0]})
    out = evaluate(ROWS, Evaluate(), {"student": student}, {"before": before})
    assert student.calls == 1
    assert out["student_tokens"].to_list() == [2, 1, None]
    assert out["student_nll"].to_list() == [pytest.approx(1.5 * math.log(2)), 0.0, None]
    assert out["student_el2n"].to_list() == [pytest.approx(math.sqrt((0.25 + 0.5625) / 2)), 0.0, None]
    assert out["student_gain"].to_list() == [pytest.approx(3 - 1.5 * math.log(2)), 2.0, None]
    assert evaluate(ROWS, Evaluate(), {"student": student})["student_gain"].to_list() == [None] * 3


def test_a_judges_lean_to_one_letter_is_averaged_out():
    class Leaning(FakeEngine):
        def choose(self, prompts, answers):
            self.asked += [p[-1]["content"] for p in prompts]
            sure = [0.9 if "Proposed answer: yes" in p[-1]["content"] else 0.3 for p in prompts]
            return [[s * (2 if answers[0] == "A" else 1), 1 - s] for s in sure]

    judge = Leaning()
    told = rows(("a", "yes"), ("b", "yes"), ("c", "yes")).with_columns(student_answer=pl.Series(["yes", "no", None]))
    found = judge_answers(told, Judged(), {"judge": judge})["student_judged"].to_list()
    assert found == [pytest.approx((1.8 / 1.9 + 0.9) / 2), pytest.approx((0.6 / 1.3 + 0.3) / 2), None]
    assert len(judge.asked) == 4 and "Reference answer: yes" in judge.asked[0]


def test_a_judge_decides_what_is_right_where_a_threshold_says_so():
    judge = FakeEngine(probabilities=lambda text: [])
    told = rows(("a", "yes"), ("b", "yes")).with_columns(
        student_answer=pl.Series(["yes", None]), student_correct=pl.Series([False, True])
    )
    for threshold, correct in ((None, [False, True]), (0.5, [True, None]), (0.6, [False, None])):
        found = judge_answers(told, Judged(threshold=threshold), {"judge": judge})
        assert found["student_correct"].to_list() == correct
    assert judge_answers(told.drop("student_correct"), Judged(), {"judge": judge})["student_correct"].null_count() == 2


@pytest.mark.parametrize("said", [float("nan"), -0.1, 1.5, float("inf")])
def test_a_check_that_says_no_number_from_0_to_1_is_no_verdict(said):
    told = rows(("a", "1")).with_columns(student_answer=pl.Series(["1"]))
    found = checked(told, lambda answer, wanted: said)
    assert found.select("student_score", "student_correct").row(0) == (None, None)
    assert "is no number from 0 to 1" in found["student_check_error"][0]


def test_a_check_of_the_users_own_that_raises_marks_the_row_and_goes_on():
    told = rows(("a", "1"), ("b", "2"), ("c", "x"), ("d", "4"), ("e", "5")).with_columns(
        student_answer=pl.Series(["1", "3", "3", None, "none"])
    )

    def check(answer, wanted):
        return None if answer == "none" else int(answer) == int(wanted)

    found = checked(told, check)
    assert found["student_correct"].to_list() == [True, False, None, None, None]
    assert found["student_score"].to_list() == [1.0, 0.0, None, None, None]
    errors = found["student_check_error"].to_list()
    assert errors[2].startswith("ValueError: invalid literal") and errors.count(None) == 4


def test_examples_are_shown_as_a_conversation_under_the_system_prompt_and_judged_by_nobody():
    asked = []

    class Heard(FakeEngine):
        def generate(self, prompts, **how):
            asked.extend([(m["role"], m["content"]) for m in prompt] for prompt in prompts)
            return super().generate(prompts, **how)

    held = rows(("3?", "three"), ("4?", "four"))
    told = [[message("system", "count"), *m] for m in held["messages"].to_list()[:1]] + held["messages"].to_list()[1:]
    held = held.with_columns(messages=pl.Series(told, dtype=held["messages"].dtype))
    shown = rows(("1?", "one"), ("2?", "two"))
    student = Heard(reply=lambda text, i: {"3?": "three"}.get(text, "no"))
    made = evaluate(held, Evaluate(likelihood=False), {"student": student}, {"examples": shown})
    before = [("user", "1?"), ("assistant", "one"), ("user", "2?"), ("assistant", "two")]
    assert asked == [[("system", "count"), *before, ("user", "3?")], [*before, ("user", "4?")]]
    assert made["student_correct"].to_list() == [True, False] and made["id"].to_list() == held["id"].to_list()


def test_a_dropped_example_is_not_shown_and_what_has_no_rows_to_show_is_refused():
    asked = []
    shown = rows(("1?", "one"), ("2?", "wrong")).with_columns(drop_reason=pl.Series([None, "clear-filter: doubtful"]))

    class Heard(FakeEngine):
        def generate(self, prompts, **how):
            asked.extend([m["content"] for m in prompt] for prompt in prompts)
            return super().generate(prompts, **how)

    student, held, config = Heard(reply=lambda text, i: "four"), rows(("4?", "four")), Evaluate(likelihood=False)
    evaluate(held, config, {"student": student}, {"examples": shown})
    assert asked == [["1?", "one", "4?"]]
    with pytest.raises(StepError, match="of the 1 rows of --examples none is live"):
        evaluate(held, config, {"student": student}, {"examples": shown[1:]})
    choice = pl.DataFrame({"id": ["r0"], "taken": [True], "why": [""]})
    with pytest.raises(StepError, match="--examples wants a dataset of rows"):
        evaluate(held, config, {"student": student}, {"examples": choice})
