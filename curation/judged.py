"""A judge's word on the student's answers, where no metric can tell: right as the reference is, or not.

The judge sees prompt, reference and answer, and chooses a letter; student_judged is P(right) / (P(right) + P(wrong)).
"""

import polars as pl

from curation.step import Engine, StepConfig, step
from curation.yes_or_no import probability_of_yes
from storage.schema import instruction, response

JUDGE = """{instruction}

Reference answer: {wanted}

Proposed answer: {answer}

Is the proposed answer: ({right}) correct ({wrong}) incorrect? Reply with one letter."""


class Judged(StepConfig):
    pass


@step("judge-answers", kind="score", reads="student_answer", writes="student_judged")
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
    return rows.with_columns(student_judged=pl.Series(judged, dtype=pl.Float64))
