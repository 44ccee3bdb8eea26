"""What the student answers to each row, whether that is right, and how unlikely it finds the row's own response."""

import polars as pl
from pydantic import Field

from curation.step import Completion, Engine, Failed, StepConfig, step
from storage.schema import prompt, response

_AROUND = " \t\r\n.,;:!?\"'`*()[]{}"


class Evaluate(StepConfig):
    max_tokens: int = Field(16, ge=1, le=4096)
    """Longest answer, in tokens."""

    likelihood: bool = True
    """Also measure student_nll, how unlikely the student finds the row's response; null if not."""


@step("evaluate", kind="score", writes="student_answer student_correct student_nll")
def evaluate(rows: pl.DataFrame, cfg: Evaluate, student: Engine) -> pl.DataFrame:
    """Greedy answers of the student, compared with the rows' responses; null where the model gave none."""
    messages = rows["messages"].to_list()
    answers = [c for [c] in student.generate([prompt(m) for m in messages], max_tokens=cfg.max_tokens)]
    facts = {
        "student_answer": pl.Series([_text(c) for c in answers], dtype=pl.String),
        "student_correct": pl.Series(
            [None if c.error else same(c.text, response(m)) for c, m in zip(answers, messages, strict=True)],
            dtype=pl.Boolean,
        ),
        "student_nll": pl.Series(
            [nll(found) for found in student.logprobs(messages)] if cfg.likelihood else [None] * len(messages),
            dtype=pl.Float64,
        ),
    }
    return rows.with_columns(**facts)


def same(answer: str, wanted: str) -> bool:
    """Equal but for case, spacing, and punctuation or quotes around it."""
    return plain(answer) == plain(wanted)


def plain(text: str) -> str:
    spaced = " ".join(text.casefold().split())
    return spaced.strip(_AROUND) or spaced


def nll(found: list[float] | Failed) -> float | None:
    """Mean negative log-likelihood of a token."""
    return None if isinstance(found, Failed) or not found else -sum(found) / len(found)


def _text(completion: Completion) -> str | None:
    return None if completion.error else completion.text
