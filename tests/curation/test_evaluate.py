import pytest

from curation.evaluate import Evaluate, evaluate, same
from curation.perplexity import Perplexity, perplexity
from curation.step import Completion, Failed
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
