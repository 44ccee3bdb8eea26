"""Is the student's answer right, by a function of the user's own: for a step of theirs, see docs/own-steps.md.

@step("same-set", kind="score", reads="student_answer", writes=CHECKED)
def same_set(rows: pl.DataFrame, cfg: SameSet) -> pl.DataFrame:
    return checked(rows, lambda answer, wanted: set(answer.split()) == set(wanted.split()))
"""

from collections.abc import Callable

import polars as pl

from storage.schema import response

CHECKED = "student_score student_correct student_check_error"


def checked(
    rows: pl.DataFrame, check: Callable[[str, str], bool | float | None], threshold: float = 0.5
) -> pl.DataFrame:
    """The rows with what `check(answer, wanted)` says of each, as a number from 0 to 1 or as yes and no.

    None is no verdict. Where it raises there is none either, and `student_check_error` says what it raised.
    """
    scores: list[float | None] = []
    errors: list[str | None] = []
    for answer, messages in zip(rows["student_answer"].to_list(), rows["messages"].to_list(), strict=True):
        score, error = None, None
        try:
            said = None if answer is None else check(answer, response(messages))
            score = None if said is None else float(said)
            if score is not None and not 0 <= score <= 1:  # and NaN, which polars takes for the greatest number
                raise ValueError(f"{said!r} is no number from 0 to 1")
        except Exception as why:  # theirs may raise anything, and one row is no reason to stop
            score, error = None, f"{type(why).__name__}: {why}"[:300]
        scores.append(score)
        errors.append(error)
    return rows.with_columns(
        student_score=pl.Series(scores, dtype=pl.Float64), student_check_error=pl.Series(errors, dtype=pl.String)
    ).with_columns(student_correct=pl.col("student_score") >= threshold)
