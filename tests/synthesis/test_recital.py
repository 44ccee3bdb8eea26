"""A teacher that says what it was trained on is found out, and one that writes is not."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from curation.step import STEPS, StepError
from flows import steps  # noqa: F401  registers every step
from flows.engines import NANO
from storage import training_text
from synthesis.recital import Recited, runs
from tests.fakes import FakeEngine
from tests.rows import rows

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom"  # 18 words
KNOWN = pl.DataFrame({"run": runs([TEXT, "play me some jazz", "no"])})


@pytest.mark.parametrize(
    ("text", "recited"),
    [
        pytest.param(TEXT.upper().replace(",", ""), True, id="whole, but for case and punctuation"),
        pytest.param("she said it was the best of times it was", True, id="eight of ten words in a run"),
        pytest.param("it was the best of times it was not as bad as we all had feared", False, id="eight of sixteen"),
        pytest.param("it was the best of all times it was the worst of all", False, id="seven words in a row at most"),
        pytest.param("Play me some jazz!", True, id="a whole short text"),
        pytest.param("play me some rock", False, id="a short text with another word"),
        pytest.param("the age of wisdom", False, id="a short part of a longer text"),
        pytest.param("no", False, id="too short to tell"),
        pytest.param("", False, id="nothing"),
    ],
)
def test_a_text_is_recited_if_more_than_half_of_its_words_stand_in_runs_of_the_training_text(text, recited):
    assert (text in Recited(KNOWN)) is recited


def test_what_is_not_known_is_never_recited_and_a_dataset_of_rows_is_known_by_its_texts():
    assert TEXT not in Recited(None)
    said = Recited(rows((f"Continue the text\n{TEXT}", "play me some jazz")))
    assert TEXT in said and "play me some jazz" in said and "play me some rock" not in said


def test_the_numbers_are_the_same_for_ever_as_they_stand_in_files(tmp_path):
    assert runs(["one two three four five six seven eight nine"]).tolist() == [442724128, 2834726816]
    training_text.write(tmp_path / training_text.NAME, np.array([7, 1, 2**32 - 1, 7], np.uint32))
    assert training_text.read(tmp_path / training_text.NAME)["run"].to_list() == [1, 7, 2**32 - 1]


def test_the_embedded_models_training_text_is_known_and_what_it_has_not_read_is_not_in_it():
    known = Recited(training_text.read(NANO / training_text.NAME))
    assert "What is my checking account balance at Chase?" in known  # of CLINC150's train split
    for name in ("snips", "clinc15"):
        lines = [json.loads(line)["input"] for line in (EXAMPLES / name / "test.jsonl").read_text().splitlines()]
        assert sum(line in known for line in lines) < 0.01 * len(lines)


POOL = rows(("Pick: a, b\nplay jazz", "a"), ("Pick: a, b\nrain today?", "b"))
WRONG = pl.DataFrame({"id": ["r0", "r1"], "student_correct": [False, False]})


def test_llm2llm_refuses_what_the_teacher_recites_asks_again_and_counts_it():
    said = iter(["Play me some jazz", "a tune for the evening", "play me some jazz"] + ["something about rain"] * 9)
    step = STEPS["llm2llm"]
    tables = {"results": WRONG, "training_text": KNOWN}
    made = step(POOL, step.config(), {"teacher": FakeEngine(reply=lambda text, i: next(said))}, tables)
    assert made["drop_reason"].to_list() == [None, None, "llm2llm: recited", "llm2llm: recited"]


def test_an_answer_that_is_recited_counts_as_well():
    reply = "Question: What did Dickens write of those days?\nAnswer: " + TEXT
    step, pool = STEPS["llm2llm"], rows(("Who wrote it?", "Dickens"))
    tables = {"results": WRONG.head(1), "training_text": KNOWN}
    made = step(pool, step.config(attempts=1), {"teacher": FakeEngine(reply=lambda text, i: reply)}, tables)
    assert made["drop_reason"].to_list()[0] == "llm2llm: recited"


def test_self_guide_refuses_inputs_that_the_student_recites():
    texts = iter(["play me some jazz", "sing me something new"])
    student = FakeEngine(reply=lambda text, i: next(texts) if text.startswith("Write") else "a")
    step = STEPS["self-guide"]
    made = step(
        POOL, step.config(epochs=1, prompts=2, lengths="neither"), {"student": student}, {"training_text": KNOWN}
    )
    assert made["drop_reason"].to_list() == [None, "self-guide: recited"]


def test_a_choice_is_no_text_that_a_model_was_trained_on():
    with pytest.raises(StepError, match="--training-text wants a dataset of rows"):
        Recited(pl.DataFrame({"id": ["r0"], "taken": [True], "why": [""]}))
