import numpy as np
import polars as pl
import pytest

from curation.bsdetector import CHALLENGE
from curation.clear_correct import ClearCorrect, correct, outcome
from curation.clear_preference import COMPARE, alone
from curation.step import Completion, Failed
from tests.fakes import FakeEngine
from tests.rows import rows

CORRECT, CERTAIN = [1.0, 0.0, 0.0], [0.0, 1.0]


def pool(*pairs_, confidence=0.5, dropped=()):
    doubtful = [f"clear-filter: confidence {confidence} is not over 0.6" if i in dropped else None for i in range(99)]
    return rows(*pairs_, clear_confidence=[confidence] * len(pairs_)).with_columns(
        drop_reason=pl.Series(doubtful[: len(pairs_)], dtype=pl.String)
    )


class Judge(FakeEngine):
    """Prefers an answer by its worth, as surely as `sure`, and finds its own judgement correct as `correct` says."""

    def __init__(self, worth, sure=1.0, correct=1.0, first=0.0):
        super().__init__()
        self.worth, self.sure, self.correct, self.first = worth, sure, correct, first

    def choose(self, prompts, answers):
        return [self.told(p[-1]["content"], answers) for p in prompts]

    def told(self, text, answers):
        self.asked.append(text)
        if len(answers) == 3:
            return [self.correct, 1 - self.correct, 0.0]
        a, b = (text.split(f"Answer {side}: ")[1].split("\n")[0] for side in "AB")
        prefers_a = self.worth[a] + self.first >= self.worth[b]
        return [self.sure, 1 - self.sure] if prefers_a else [1 - self.sure, self.sure]


def corrected(table, candidate="good", judge=None, **settings):
    student = FakeEngine(reply=lambda t, i: candidate, identity="tuned")
    return correct(
        table, ClearCorrect(**settings), {"student": student, "judge": judge or Judge({"good": 1, "bad": 0})}
    )


def test_a_surely_better_answer_is_a_new_row_and_marks_its_parent():
    out = corrected(pool(("2+2?", "bad")))
    old, new = out.row(0, named=True), out.row(1, named=True)
    assert old["drop_reason"] == f"clear-correct: replaced by {new['id']}"
    assert old["messages"][-1]["content"] == "bad" and old["clear_outcome"] == "replace"
    assert [m["content"] for m in new["messages"]] == ["2+2?", "good"]
    assert (new["parent_id"], new["method"], new["source"], new["round"]) == ("r0", "clear-correct", "test", 1)
    assert new["drop_reason"] is None and new["clear_writer"] == "tuned"
    assert (new["clear_parent_confidence"], new["clear_correction_confidence"]) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("better", "over", "becomes"),
    [(False, False, "drop"), (False, True, "keep"), (True, False, "replace"), (True, True, "replace")],
)
def test_the_decision_table_is_the_papers(better, over, becomes):
    assert pl.select(outcome(pl.lit(better), pl.lit(over))).item() == becomes
    out = corrected(pool(("q", "bad"), dropped=() if over else (0,)), candidate="good" if better else "worse",
                    judge=Judge({"good": 1, "bad": 0, "worse": -1}))  # fmt: skip
    assert out["clear_outcome"][0] == becomes
    assert out["drop_reason"].is_null().to_list() == {"drop": [False], "keep": [True]}.get(becomes, [False, True])


def test_confidence_in_a_judgement_equals_the_worked_example():
    # P(B) = .9 and P(A) = .9 in the other order, reflection A, A with .6 of correct: p = .7 * .9 + .3 * .6 = .81 > .8
    sure = Judge({"good": 1, "bad": 0}, sure=0.9, correct=0.6)
    out = corrected(pool(("q", "bad")), judge=sure)
    assert out["clear_preference"][0] == pytest.approx(0.7 * 0.9 + 0.3 * 0.6)
    assert out.height == 2
    assert corrected(pool(("q", "bad")), judge=sure, eta=0.81).height == 1
    assert corrected(pool(("q", "bad")), judge=sure, beta=0.3).height == 1  # .3 * .9 + .7 * .6 = .69


def test_the_lower_of_both_orders_counts():
    class Uneven(Judge):
        def told(self, text, answers):
            if len(answers) == 2:
                self.sure = 0.95 if text.index("good") < text.index("bad") else 0.8
            return super().told(text, answers)

    out = corrected(pool(("q", "bad")), judge=Uneven({"good": 1, "bad": 0}))
    assert out["clear_preference"][0] == pytest.approx(0.7 * 0.8 + 0.3)


def test_a_judge_that_prefers_whatever_stands_first_replaces_nothing():
    judge = Judge({"good": 1, "bad": 1}, first=0.5)
    out = corrected(pool(("q", "bad")), judge=judge)
    assert out.height == 1 and out["clear_preference"].item() == 0.0
    assert not any("correct (B)" in text for text in judge.asked)  # no use to ask how sure it is


def test_a_candidate_that_says_the_same_is_not_judged():
    judge = Judge({})
    out = corrected(pool(("q", "Good!")), judge=judge)
    assert out["clear_same"].item() and out["clear_preference"].item() is None and not judge.asked
    assert out["clear_outcome"].item() == "keep"


def test_raising_eta_never_replaces_more_and_one_is_the_filter_alone():
    class Varied(Judge):
        def told(self, text, answers):
            if len(answers) == 2:
                self.sure = 0.55 + int(text.split("?")[0]) / 25
            return super().told(text, answers)

    table = pool(*[(f"{n}?", "bad") for n in range(11)], dropped=(1, 3, 5))
    replaced = []
    for eta in (0.0, 0.5, 0.7, 0.8, 0.9, 1.0):
        out = corrected(table, judge=Varied({"good": 1, "bad": 0}), eta=eta)
        replaced.append((out["clear_outcome"] == "replace").sum())
        assert out.height == 11 + replaced[-1]
    assert replaced == sorted(replaced, reverse=True) and replaced[0] == 11 and replaced[3] in range(1, 11)
    assert replaced[-1] == 0 and out["drop_reason"].equals(table["drop_reason"], null_equal=True)


def test_no_prompt_is_changed_and_every_row_given_is_there_once():
    table = pool(("1?", "bad"), ("2?", "good"), ("3?", "bad"), dropped=(2,)).with_columns(
        drop_reason=pl.when(pl.col("id") == "r1").then(pl.lit("duplicates: of r9")).otherwise("drop_reason")
    )
    out = corrected(table)
    assert out.head(3)["id"].equals(table["id"]) and out.head(3)["messages"].equals(table["messages"])
    assert out["drop_reason"][1] == "duplicates: of r9" and out["clear_outcome"][1] is None
    asked = dict(zip(table["id"], [m[:-1] for m in table["messages"].to_list()], strict=True))
    for new in out.slice(3).to_dicts():
        assert new["messages"][:-1] == asked[new["parent_id"]]
    assert sorted(out.slice(3)["parent_id"]) == ["r0", "r2"]


def test_validation_rows_stay_as_they_came_and_a_correction_stays_on_its_side():
    table = pool(("1?", "bad"), ("2?", "bad")).with_columns(split=pl.Series(["train", "validation"]))
    out = corrected(table)
    assert out["clear_outcome"].to_list() == ["replace", "keep", "corrected"]
    assert out["split"].to_list() == ["train", "validation", "train"]


def test_only_the_doubtful_are_judged_when_asked_for():
    out = corrected(pool(("1?", "bad"), ("2?", "bad"), dropped=(1,)), only_doubtful=True)
    assert out["clear_outcome"].to_list() == ["keep", "replace", "corrected"]


def test_a_failure_leaves_its_row_as_it_was_and_its_neighbour_is_judged():
    class Short(Judge):
        def told(self, text, answers):
            return Failed("too long") if "giant" in text else super().told(text, answers)

    out = corrected(pool(("giant", "bad"), ("q", "bad")), judge=Short({"good": 1, "bad": 0}))
    assert out["clear_unjudged"].to_list()[:2] == ["too long", None]
    assert out["clear_outcome"].to_list() == ["keep", "replace", "corrected"]

    class Mute(FakeEngine):
        def generate(self, prompts, **sampling):
            return [[Completion("", error="no context")] for _ in prompts]

    out = correct(pool(("q", "bad")), ClearCorrect(), {"student": Mute(), "judge": FakeEngine()})
    assert out["clear_unjudged"].to_list() == ["no context"] and out["clear_outcome"].to_list() == ["keep"]


def test_a_candidate_that_was_cut_replaces_nothing_and_candidates_are_greedy():
    class Cut(FakeEngine):
        def generate(self, prompts, **how):
            super().generate(prompts, **how)
            return [[Completion("good", truncated=p[-1]["content"] == "1?")] for p in prompts]

    student, judge = Cut(), Judge({"good": 1, "bad": 0})
    out = correct(pool(("1?", "bad"), ("2?", "bad")), ClearCorrect(max_tokens=7), {"student": student, "judge": judge})
    assert out["clear_unjudged"].to_list()[:2] == ["the candidate was cut at 7 tokens", None]
    assert out["clear_outcome"].to_list() == ["keep", "replace", "corrected"]
    assert student.how == [{"n": 1, "temperature": 0.0, "seed": 0, "max_tokens": 7}]


def test_sampled_judgements_that_all_fail_leave_the_row_unjudged_and_unread_ones_are_counted():
    class Writer(FakeEngine):
        def generate(self, prompts, *, n=1, **how):
            super().generate(prompts, n=n, **how)
            return [[self.said(p[-1]["content"], n, i) for i in range(n)] for p in prompts]

        def said(self, text, n, i):
            if not text.endswith("A or B? Reply with one letter."):
                return Completion("(A)")
            if n > 1 and "1?" in text:
                return Completion("", error="too long")
            right = "BA"[text.index("bad") > text.index("good")]
            return Completion("hmm" if n > 1 and i == 0 else right)

    judge = Writer()
    out = corrected(pool(("1?", "bad"), ("2?", "bad")), judge=judge, judgement="letter", samples=2, seed=5)
    assert out["clear_unjudged"].to_list()[:2] == ["too long", None]
    assert out["clear_preference"].to_list()[:2] == [None, pytest.approx(0.7 * 0.75 + 0.3)]
    assert out["clear_judgement_unread"].to_list()[:2] == [False, True]
    assert [h for h in judge.how if h["n"] == 2] == [{"n": 2, "temperature": 1.0, "seed": 5, "max_tokens": 64}] * 2


def test_written_letters_agree_over_samples_and_an_unreadable_one_counts_half():
    # verdicts B then A; of four samples two agree, one does not, one cannot be read: O = 2.5 / 4; both reflections A
    class Writer(FakeEngine):
        def generate(self, prompts, *, n=1, **how):
            return [[Completion(self.said(p[-1]["content"], i, n)) for i in range(n)] for p in prompts]

        def said(self, text, i, n):
            if not text.endswith("A or B? Reply with one letter."):
                return "(A)"
            right, wrong = "BA" if text.index("bad") < text.index("good") else "AB"
            return right if n == 1 else [f"I say {right}", right, wrong, "hmm"][i]

    out = corrected(pool(("q", "bad")), judge=Writer(), judgement="letter", samples=4)
    assert out["clear_preference"][0] == pytest.approx(0.7 * 2.5 / 4 + 0.3)
    out = corrected(pool(("q", "bad")), judge=FakeEngine(reply=lambda t, i: "hmm"), judgement="letter")
    assert out["clear_judgement_unread"].to_list() == [True] and out.height == 1


def test_the_judge_sees_question_and_both_answers_in_both_orders_and_is_challenged():
    judge = Judge({"good": 1, "bad": 0})
    corrected(pool(("2+2?", "bad")), judge=judge)
    assert judge.asked[:2] == [
        COMPARE.format(question="2+2?", a="bad", b="good"),
        COMPARE.format(question="2+2?", a="good", b="bad"),
    ]
    assert judge.asked.count(CHALLENGE) == 2 and "Proposed answer: Answer B is better." in judge.asked[2]


def test_a_second_pass_corrects_the_correction_and_keeps_what_is_known_of_the_first():
    once = corrected(pool(("1?", "bad")))
    twice = corrected(once, candidate="best", judge=Judge({"best": 2, "good": 1, "bad": 0}), round=2)
    assert twice["drop_reason"].is_null().to_list() == [False, False, True]
    assert twice["parent_id"].to_list() == [None, "r0", once["id"][1]]
    assert twice["clear_writer"].to_list() == [None, "tuned", "tuned"]
    assert twice["clear_correction_confidence"].to_list() == [None, 1.0, 1.0]


def test_each_alone_is_the_odds_that_the_right_one_of_two_is_the_candidate():
    # S' = .9 and S = .4: p = .9 * .6 / (.9 * .6 + .4 * .1) = .54 / .58
    belief = {"good": 0.9, "bad": 0.4, "sure": 1.0, "also sure": 1.0}

    class Alone(FakeEngine):
        def choose(self, prompts, answers):
            said = [p[0]["content"].split("Proposed answer: ")[1].split("\n")[0] for p in prompts]
            return [[belief[a], 1 - belief[a], 0.0] for a in said]

    found = alone(["q"] * 3, ["bad", "good", "sure"], ["good", "bad", "also sure"], Alone(), "probability")
    assert found.confidence == pytest.approx([0.54 / 0.58, 0.04 / 0.58, 0.5])
    out = corrected(pool(("q", "bad")), judge=Alone(), judged="each")
    assert out["clear_outcome"].to_list() == ["replace", "corrected"]
    assert corrected(pool(("q", "bad")), judge=Alone(), judged="each", eta=0.94).height == 1


def test_a_judge_that_fails_on_one_answer_leaves_that_row_unjudged():
    class Half(FakeEngine):
        def choose(self, prompts, answers):
            return [Failed("too long") if "worse" in p[0]["content"] else [1.0, 0.0, 0.0] for p in prompts]

    found = alone(["q", "q"], ["bad", "bad"], ["worse", "good"], Half(), "probability")
    assert found.errors == ["too long", None] and np.isnan(found.confidence).tolist() == [True, False]


def test_an_answer_that_calls_tools_is_left_alone():
    table = pool(("q", ""), ("p", "bad"))
    said = table["messages"].to_list()
    said[0][-1]["tool_calls"] = '[{"name": "look"}]'
    out = corrected(table.with_columns(messages=pl.Series(said, dtype=table.schema["messages"])))
    assert out["clear_outcome"].to_list() == ["keep", "replace", "corrected"]
    assert out["parent_id"].to_list() == [None, None, "r1"]
