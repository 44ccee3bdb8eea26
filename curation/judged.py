"""A judge's word on the student's answers, where no metric can tell: right as the reference is, or not.

The judge sees prompt, reference and answer, and chooses a letter; student_judged is P(A) / (P(A) + P(B)). Both orders
of the letters are asked and averaged, since judges lean to one letter (Zheng et al., 2023, arXiv 2306.05685).
"""

import polars as pl

from curation.step import Engine, Failed, StepConfig, step
from storage.schema import instruction, message, response

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
    judged: list[float | None] = [None] * rows.height
    votes: dict[int, list[float]] = {}
    for right, wrong in ("AB", "BA"):
        asked = [
            JUDGE.format(instruction=instruction(m), wanted=response(m), answer=a, right=right, wrong=wrong)
            for _, m, a in answered
        ]
        found = judge.choose([[message("user", q)] for q in asked], [right, wrong])
        for (i, _, _), odds in zip(answered, found, strict=True):
            if not isinstance(odds, Failed) and sum(odds) > 0:
                votes.setdefault(i, []).append(odds[0] / sum(odds))
    for i, said in votes.items():
        judged[i] = sum(said) / len(said)
    return rows.with_columns(student_judged=pl.Series(judged, dtype=pl.Float64))
