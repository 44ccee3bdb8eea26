import numpy as np
import polars as pl
import pytest

from curation import bsdetector, clear
from curation.step import Completion, Failed
from synthesis.fingerprint import EngineError
from tests.fakes import FakeEmbedder, FakeEngine, FakeNLI
from tests.rows import rows


class Embedded:
    """Cosine of every answer with "y" as given."""

    identity = "scripted"

    def __init__(self, cosine):
        self.cosine = cosine

    def embed(self, texts):
        cosines = np.array([1.0 if t == "y" else self.cosine[t] for t in texts])
        return np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)


def confidence_of(pool, config, candidate, judge, embedder=None):
    engines = {"candidate": candidate, "judge": judge, "embedder": embedder or FakeEmbedder()}
    return clear.score(pool, config, engines)


def test_confidence_equals_the_worked_example():
    # s = [1, .9, .2, 1, .6], r = [1, 0, 0, 1, 0] -> O = .672; replies A then C -> S = .75; C = .7 * .672 + .3 * .75
    answers = ["y", "near", "far", "y", "half"]
    candidate = FakeEngine(reply=lambda text, i: answers[i])
    judge = FakeEngine(probabilities=lambda text: [0, 0, 1] if text == bsdetector.CHALLENGE else [1, 0, 0])
    embedder = Embedded({"near": 0.9, "far": 0.2, "half": 0.6})
    out = confidence_of(rows(("q", "y")), clear.ClearScore(samples=5), candidate, judge, embedder)
    assert out["clear_consistency"].item() == pytest.approx(0.672)
    assert out["clear_reflection"].item() == pytest.approx(0.75)
    assert out["clear_confidence"].item() == pytest.approx(0.6954)


@pytest.mark.parametrize(
    ("answer", "letters", "confidence"),
    [
        pytest.param("y", [1, 0, 0], 1.0, id="all-agree-and-correct"),
        pytest.param("zzz", [0, 1, 0], 0.0, id="none-agree-and-incorrect"),
    ],
)
def test_confidence_reaches_its_bounds(answer, letters, confidence):
    candidate, judge = FakeEngine(reply=lambda t, i: answer), FakeEngine(probabilities=lambda t: letters)
    out = confidence_of(rows(("q", "y")), clear.ClearScore(), candidate, judge, Embedded({"zzz": 0.0}))
    assert out["clear_confidence"].item() == pytest.approx(confidence)


def test_letters_are_parsed_when_asked_for_and_an_unreadable_one_counts_as_unsure():
    judge = FakeEngine(reply=lambda text, i: "hmm" if text == bsdetector.CHALLENGE else "I think (A)")
    config = clear.ClearScore(reflection="letter", similarity="exact")
    out = confidence_of(rows(("q", "y")), config, FakeEngine(reply=lambda t, i: "y"), judge)
    assert out["clear_reflection"].item() == pytest.approx((1 + 0.5) / 2)


def test_a_failed_row_has_no_confidence_and_its_neighbour_keeps_its_own():
    class HalfDead(FakeEngine):
        def generate(self, prompts, **sampling):
            found = super().generate(prompts, **sampling)
            return [[Completion("", error="too long")] * len(f) if i == 0 else f for i, f in enumerate(found)]

        def choose(self, prompts, answers):
            return [Failed("too long"), *super().choose(prompts[1:], answers)]

    engine = HalfDead(reply=lambda t, i: "y", probabilities=lambda t: [1, 0, 0])
    out = confidence_of(rows(("giant", "y"), ("q", "y")), clear.ClearScore(), engine, engine)
    assert out["clear_confidence"].to_list() == [None, pytest.approx(1.0)]


def test_the_judge_is_asked_with_instruction_and_answer_and_then_challenged():
    judge = FakeEngine(probabilities=lambda t: [1, 0, 0])
    confidence_of(rows(("2+2?", "5")), clear.ClearScore(), FakeEngine(), judge)
    assert judge.asked == [bsdetector.REFLECT.format(question="2+2?", answer="5"), bsdetector.CHALLENGE]


def test_confidence_with_an_nli_model_equals_the_worked_example_and_asks_in_both_orders():
    # contradictions (y, s), (s, y): near .2 and 0, far .7 and .9, half .3 and .5 -> s = .9, .2, .6; the rest as above.
    # One order alone, or alpha and beta exchanged, gives another number.
    odds = {("y", "near"): 0.2, ("near", "y"): 0.0, ("y", "far"): 0.7, ("far", "y"): 0.9, ("y", "half"): 0.3}
    odds[("half", "y")] = 0.5
    nli = FakeNLI(odds=lambda left, right: odds[left.removeprefix("q\n"), right.removeprefix("q\n")])
    answers = ["y", "near", "far", "Y.", "half"]
    candidate = FakeEngine(reply=lambda text, i: answers[i])
    judge = FakeEngine(probabilities=lambda text: [0, 0, 1] if text == bsdetector.CHALLENGE else [1, 0, 0])
    engines = {"candidate": candidate, "judge": judge, "nli": nli}
    out = clear.score(rows(("q", "y")), clear.ClearScore(similarity="nli"), engines)
    assert out["clear_similarity"].item() == pytest.approx((1 + 0.9 + 0.2 + 1 + 0.6) / 5)
    assert out["clear_consistency"].item() == pytest.approx(0.672)
    assert out["clear_confidence"].item() == pytest.approx(0.6954)
    assert out["clear_compared_by"].item() == "nli"
    assert len(nli.asked) == 6 and all(side.startswith("q\n") for pair in nli.asked for side in pair)


def test_nli_similarity_is_the_same_with_the_sides_exchanged_and_asks_nothing_of_equal_texts():
    nli = FakeNLI(odds=lambda left, right: 0.9 if left < right else 0.2)
    one, other, same = (
        bsdetector.nli_similarity(bsdetector.Pairs(np.array([0]), [a], [b]), ["q"], nli)[0].item()
        for a, b in (("a", "b"), ("b", "a"), ("a", " A. "))
    )
    assert one == other == pytest.approx(0.45)
    assert same == 1.0 and len(nli.asked) == 4


def test_auto_is_the_nli_model_where_one_is_here_and_embeddings_where_not():
    config = clear.ClearScore()
    assert config.settled({"nli"}).similarity == "nli" and config.settled({"judge"}).similarity == "embedding"
    assert clear.ClearScore(similarity="exact").settled({"nli"}).similarity == "exact"
    assert clear.score.asks(config.settled(())) == ("candidate", "judge", "embedder")
    assert clear.score.asks(config.settled({"nli"})) == ("candidate", "judge", "nli")
    out = confidence_of(rows(("q", "y")), config, FakeEngine(), FakeEngine())
    assert out["clear_compared_by"].item() == "embedding"


def test_a_pair_that_the_nli_model_cannot_judge_is_left_out_and_a_row_without_any_says_why():
    class Short(FakeNLI):
        def classify(self, pairs):
            found = super().classify(pairs)
            return [Failed("too long") if "giant" in p[0] + p[1] else f for p, f in zip(pairs, found, strict=True)]

    candidate = FakeEngine(reply=lambda text, i: ["giant one", "other"][i] if text == "q" else "giant")
    judge = FakeEngine(probabilities=lambda text: [1, 0, 0])
    engines = {"candidate": candidate, "judge": judge, "nli": Short(odds=lambda left, right: 0.25)}
    config = clear.ClearScore(similarity="nli", samples=2)
    out = clear.score(rows(("q", "y"), ("p", "y")), config, engines)
    assert out["clear_similarity"].to_list() == [pytest.approx(0.75), None]
    assert out["clear_consistency"].to_list() == [pytest.approx(0.8 * 0.75), None]
    assert out["clear_error"].to_list() == [None, "nli: too long"]


def test_a_sample_that_failed_is_left_out_and_one_that_was_cut_is_counted():
    class Uneven(FakeEngine):
        def generate(self, prompts, **sampling):
            return [[Completion("y"), Completion("", error="lost"), Completion("y and", truncated=True)]]

    judge = FakeEngine(probabilities=lambda t: [1, 0, 0])
    out = confidence_of(rows(("q", "y")), clear.ClearScore(samples=3, similarity="exact"), Uneven(), judge)
    assert out["clear_consistency"].item() == pytest.approx(1 / 2)
    assert out["clear_cut"].to_list() == [True] and out["clear_error"].to_list() == [None]


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [("Paris.", "paris", True), (" 'a  b' ", "A b", True), ("1.5", "15", False), ("-3", "3", False),
     ("2+2", "2-2", False), ("C++", "C#", False), ("10/12", "1012", False), ("?!", "", False)],
)  # fmt: skip
def test_answers_are_the_same_but_for_case_spacing_and_punctuation_around_them(one, other, alike):
    assert bsdetector.Pairs(np.array([0]), [one], [other]).same.tolist() == [alike]


def test_k_answers_of_a_prompt_are_one_request_sampled_as_the_settings_say():
    candidate = FakeEngine(reply=lambda text, i: str(i))
    config = clear.ClearScore(samples=7, temperature=0.6, seed=3, max_tokens=9)
    confidence_of(rows(("q", "y"), ("p", "y")), config, candidate, FakeEngine())
    assert candidate.asked == ["q", "p"]
    assert candidate.how == [{"n": 7, "temperature": 0.6, "seed": 3, "max_tokens": 9}]


def test_a_judge_that_cannot_be_asked_costs_no_samples():
    class Dumb(FakeEngine):
        def choose(self, prompts, answers):
            raise EngineError("this server tells no log-probabilities")

    candidate = FakeEngine()
    with pytest.raises(EngineError, match="no log-prob"):
        confidence_of(rows(("q", "y")), clear.ClearScore(), candidate, Dumb())
    assert not candidate.asked


def test_the_last_letter_that_stands_alone_is_the_one_that_is_read():
    assert bsdetector.letter_in("A at first, but then (B)", bsdetector.LETTERS) == "B"
    assert bsdetector.letter_in("Because. C", bsdetector.LETTERS) == "C"
    assert bsdetector.letter_in("Bad Cat", bsdetector.LETTERS) is None


def test_an_answer_that_calls_tools_is_judged_as_it_is_written():
    said = rows(("q", "")).with_columns(
        messages=pl.Series([[{"role": "user", "content": "q", "tool_calls": None},
                             {"role": "assistant", "content": None, "tool_calls": '[{"name": "look"}]'}]])
    )  # fmt: skip
    judge = FakeEngine(probabilities=lambda t: [1, 0, 0])
    confidence_of(said, clear.ClearScore(), FakeEngine(), judge)
    assert 'Proposed answer: [{"name": "look"}]' in judge.asked[0]


def test_a_judge_that_fails_on_a_row_leaves_it_without_confidence_and_says_why():
    class Short(FakeEngine):
        def choose(self, prompts, answers):
            found = super().choose(prompts, answers)
            return [
                Failed("too long") if "giant" in p[0]["content"] else f for p, f in zip(prompts, found, strict=True)
            ]

    judge = Short(probabilities=lambda t: [1, 0, 0])
    pool = rows(("giant", "y"), ("q", "y"))
    out = confidence_of(pool, clear.ClearScore(), FakeEngine(reply=lambda t, i: "y"), judge)
    assert out["clear_confidence"].to_list() == [None, pytest.approx(1.0)]
    assert out["clear_error"].to_list() == ["too long", None]


def test_replies_that_cannot_be_read_are_counted_by_row():
    judge = FakeEngine(reply=lambda text, i: "hmm" if text == bsdetector.CHALLENGE else "B, since it is wrong (B)")
    config = clear.ClearScore(reflection="letter", similarity="exact")
    out = confidence_of(rows(("q", "y")), config, FakeEngine(reply=lambda t, i: "y"), judge)
    assert out["clear_unread"].to_list() == [True]
    assert out["clear_reflection"].item() == pytest.approx((0 + 0.5) / 2)


def test_a_row_of_several_turns_is_judged_on_its_last_answer_with_all_before_as_context():
    turns = [("system", "s"), ("user", "u"), ("assistant", "b"), ("user", "v"), ("assistant", "c")]
    said = pl.Series([[{"role": role, "content": text, "tool_calls": None} for role, text in turns]])
    judge, candidate = FakeEngine(probabilities=lambda t: [1, 0, 0]), FakeEngine(reply=lambda t, i: "c")
    out = confidence_of(rows(("q", "y")).with_columns(messages=said), clear.ClearScore(), candidate, judge)
    asked = "system: s\nuser: u\nassistant: b\nuser: v"
    assert judge.asked[0] == bsdetector.REFLECT.format(question=asked, answer="c")
    assert candidate.asked == ["v"] and out["clear_confidence"].item() == pytest.approx(1.0)
