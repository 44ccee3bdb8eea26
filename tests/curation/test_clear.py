import numpy as np
import polars as pl
import pytest

from curation import clear
from curation.step import Completion, Failed, StepError
from tests.fakes import FakeEmbedder, FakeEngine
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
    judge = FakeEngine(probabilities=lambda text: [0, 0, 1] if text == clear.CHALLENGE else [1, 0, 0])
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
    judge = FakeEngine(reply=lambda text, i: "hmm" if text == clear.CHALLENGE else "I think (A)")
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
    assert judge.asked == [clear.REFLECT.format(instruction="2+2?", response="5"), clear.CHALLENGE]


def scored(confidence, consistency=None):
    n = len(confidence)
    return rows(*[("q", "a")] * n, clear_confidence=confidence, clear_consistency=consistency or [0.0] * n)


@pytest.mark.parametrize("n", [7, 8, 101])
def test_the_median_keeps_the_lower_half_out(n):
    confidence = np.random.default_rng(0).permutation(n) / n
    out = clear.drop_doubtful(scored(list(confidence)), clear.ClearFilter())
    assert out["drop_reason"].null_count() == n // 2


def test_ties_at_the_median_are_broken_by_consistency():
    out = clear.drop_doubtful(scored([0.5, 0.5, 0.5, 0.5], [0.1, 0.9, 0.2, 0.8]), clear.ClearFilter())
    assert out["drop_reason"].is_null().to_list() == [False, True, False, True]


def test_within_groups_a_kind_that_the_model_finds_hard_keeps_its_better_half():
    table = scored([0.9, 0.8, 0.7, 0.6, 0.2, 0.1, 0.05, 0.0]).with_columns(kind=pl.Series(["easy"] * 4 + ["hard"] * 4))
    kept = {
        within: clear.drop_doubtful(table, clear.ClearFilter(within=within))["drop_reason"].is_null().to_list()
        for within in (None, "kind")
    }
    assert kept == {None: [True] * 4 + [False] * 4, "kind": ([True] * 2 + [False] * 2) * 2}


def test_a_group_of_one_row_keeps_it_unless_it_has_no_confidence():
    table = scored([0.9, 0.8, 0.1, None]).with_columns(kind=pl.Series(["a", "a", "b", "c"]))
    out = clear.drop_doubtful(table, clear.ClearFilter(within="kind"))
    assert out["drop_reason"].is_null().to_list() == [True, False, True, False]
    assert clear.drop_doubtful(table.clear(), clear.ClearFilter(within="kind")).height == 0
    with pytest.raises(ValueError, match="not both"):
        clear.ClearFilter(within="kind", threshold=0.5)
    with pytest.raises(StepError, match="no column 'topic'"):
        clear.drop_doubtful(table, clear.ClearFilter(within="topic"))


def test_a_fixed_threshold_names_both_numbers_in_the_reason():
    out = clear.drop_doubtful(scored([0.25, 0.75]), clear.ClearFilter(threshold=0.5))
    assert out["drop_reason"].to_list() == ["clear-filter: confidence 0.25 is not over 0.5", None]


def test_a_row_without_confidence_is_dropped_by_name():
    out = clear.drop_doubtful(scored([None, 0.75]), clear.ClearFilter(threshold=0.5))
    assert out["drop_reason"][0] == "clear-filter: no confidence could be had"
    assert isinstance(out["clear_threshold"].dtype, pl.Float64)
