import re
from pathlib import Path

import pytest

from curation.step import STEPS
from flows import steps  # noqa: F401  registers every step
from flows.config import load
from flows.estimate import estimate
from flows.forecast import COUNTING, Asked, Lengths, asked

SNIPS = Path(__file__).parents[2] / "examples/snips"


def test_a_step_that_asks_a_language_model_says_how_much():
    mean = Lengths(100.0, 20.0, 30.0, 10.0, 40.0)
    silent = []
    for step in (s for name, s in STEPS.items() if name not in COUNTING):
        if set(step.asks(config := step.config())) & {"judge", "candidate", "teacher", "student", "base"}:
            silent += [step.name] if asked(step.name, config, mean) == Asked() else []
    assert not silent, f"flows/forecast.py does not say what {silent} ask of models"


def tokens(*changes):
    told = estimate(load(SNIPS / "loop.yaml", list(changes)), SNIPS)
    found = re.search(r"tokens +([\d,]+) scored, ([\d,]+) trained on, ([\d,]+) evaluated", told)
    return [int(number.replace(",", "")) for number in found.groups()], told


def test_a_pool_scored_by_the_last_student_is_scored_in_every_round_of_every_seed():
    (with_student, _, _), _ = tokens()
    (untuned, _, _), _ = tokens("roles={}")
    (two_seeds, _, _), _ = tokens("seeds=[0,1]")
    again = (with_student - untuned) / 2  # in the second round and the third
    assert again > untuned / 5 and two_seeds - untuned == pytest.approx(5 * again, rel=0.001)


def test_training_and_evaluation_grow_with_baselines():
    (_, trained, tested), told = tokens()
    (_, less_trained, less_tested), less_told = tokens("baselines=false")
    assert "5 training runs" in told and "3 training runs" in less_told
    assert abs(trained * 3 - less_trained * 5) <= 5 and less_tested < tested
    assert re.search(r"rows +2,7\d\d in the pool, 700 held out", told)


def test_a_correction_counts_its_own_student_in_every_round():
    steps_ = "[{step: clear-score}, {step: clear-filter}, {step: clear-correct}]"
    (scored, trained, _), told = tokens(f"score={steps_}", "roles={}", "feedback=[]")
    (less, less_trained, _), _ = tokens("score=[{step: clear-score}, {step: clear-filter}]", "roles={}", "feedback=[]")
    assert "8 training runs" in told and trained / less_trained == pytest.approx(8 / 5, abs=0.01)
    once, _, _ = tokens(f"score={steps_}", "roles={}", "feedback=[]", "budget.rounds=1")[0]
    assert scored - less == pytest.approx(3 * (once - less), rel=0.001) and once > less
