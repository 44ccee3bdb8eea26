"""A judge's word on the student's answers, where no metric can tell: right as the reference is, or not.

The judge sees prompt, reference and answer, and chooses a letter; student_judged is P(right) / (P(right) + P(wrong)).
"""

import polars as pl
from pydantic import Field

from curation.step import Engine, StepConfig, step
from curation.yes_or_no import probability_of_yes
from storage.schema import instruction, response

JUDGE = """{instruction}

Reference answer: {wanted}

Proposed answer: {answer}

Is the proposed answer: ({right}) correct ({wrong}) incorrect? Reply with one letter."""


class Judged(StepConfig):
    threshold: float | None = Field(None, gt=0, le=1)
    """From which student_judged on student_correct is true, whatever a metric said; without it that stays as it is."""


@step(
    "judge-answers",
    kind="score",
    reads="student_answer",
    writes="student_judged student_correct",
    takes="student_correct",
    version=2,
)
def judge_answers(rows: pl.DataFrame, cfg: Judged, judge: Engine) -> pl.DataFrame:
    """How sure the judge is that the student's answer is right; null where there is no answer, or no word on it."""
    answered = [
        (i, m, a)
        for i, (m, a) in enumerate(zip(rows["messages"].to_list(), rows["student_answer"].to_list(), strict=True))
        if a is not None
    ]
    found = probability_of_yes(
        judge,
        lambda right, wrong: [
            JUDGE.format(instruction=instruction(m), wanted=response(m), answer=a, right=right, wrong=wrong)
            for _, m, a in answered
        ],
    )
    judged: list[float | None] = [None] * rows.height
    for (i, _, _), vote in zip(answered, found, strict=True):
        judged[i] = vote
    out = rows.with_columns(student_judged=pl.Series(judged, dtype=pl.Float64))
    if cfg.threshold is not None:
        return out.with_columns(student_correct=pl.col("student_judged") >= cfg.threshold)
    if "student_correct" in out.columns:
        return out
    return out.with_columns(student_correct=pl.lit(None, dtype=pl.Boolean))
