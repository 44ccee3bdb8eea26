"""InstructMining's rules: a linear function of indicators that predicts the log of the loss after tuning.

    log loss = intercept + sum of coefficient * indicator        low is good

The published ones are from secondary sources; the papers' tables could not be read first-hand. Their coefficients
belong to their models and their pool; the sign of understandability is against what it means, which is what
indicators that vary together do to a regression. One that was fitted here is such a file:

    {"name": "mine", "version": "5f0c8a…", "source": "…", "intercept": 0.41,
     "terms": {"perplexity": {"coefficient": 0.012, "mean": 31.0, "std": 4.2, "low": 2.1, "high": 210.0}}, "r2": 0.7}
"""

from typing import Literal, get_args

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from curation.step import StepError

Indicator = Literal[
    "input_length",
    "output_length",
    "perplexity",
    "mtld",
    "knn6",
    "reward",
    "naturalness",
    "coherence",
    "understandability",
    "judged_reward",
    "judged_naturalness",
    "judged_coherence",
    "judged_understandability",
]
INDICATORS: tuple[Indicator, ...] = get_args(Indicator)


def known(names: list[str]) -> list[str]:
    """The names, if each is an indicator's: checks a setting that is a list of words on the command line."""
    if strange := [name for name in names if name not in INDICATORS]:
        raise ValueError(f"there is no indicator {strange[0]!r}; there are {', '.join(INDICATORS)}")
    return names


class RuleFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Term(RuleFile):
    """One indicator of a rule, with what it was like where the rule was fitted; None where nobody told."""

    coefficient: float
    error: float | None = None  # standard error of the coefficient
    mean: float | None = None  # over the subsets that were trained on
    std: float | None = None
    low: float | None = None  # a row's value is held between these, the 1st and 99th percentile of the pool
    high: float | None = None
    inflation: float | None = None  # variance inflation: how much the other indicators blur the coefficient
    alone: float | None = None  # Spearman's correlation of this indicator alone with the loss


class Rule(RuleFile):
    name: str
    version: str
    source: str
    intercept: float
    terms: dict[Indicator, Term]
    r2: float | None = None
    leave_one_out_r2: float | None = None
    spearman: float | None = None  # of predicted and true losses of subsets that the fit has not seen
    subsets: int | None = None  # observations that it was fitted on: all trainings on the same rows are one
    heldout_subsets: int | None = None
    model: str | None = None  # what was trained: digest of the model's files, and its precision

    def columns(self) -> tuple[str, ...]:
        return tuple(column(name) for name in self.terms)

    def predicted(self, winsorise: float = 0.0) -> pl.Expr:
        """The predicted log loss of each row; null where an indicator is.

        An indicator is held between what its rule was fitted on; where nobody told, as in published rules, a reward,
        which has no bounds, between its own quantiles `winsorise` and 1 - winsorise among the rows.
        """
        parts = [term.coefficient * _held(name, term, winsorise) for name, term in self.terms.items()]
        return pl.sum_horizontal(pl.lit(self.intercept), *parts, ignore_nulls=False)


def _held(name: Indicator, term: Term, winsorise: float) -> pl.Expr:
    value = pl.col(column(name)).cast(pl.Float64).fill_nan(None)
    if term.low is not None or term.high is not None:
        return value.clip(term.low, term.high)
    if name == "reward" and winsorise:
        return value.clip(value.quantile(winsorise), value.quantile(1 - winsorise))
    return value


def column(name: str) -> str:
    return f"instructmining_{name}"


def _published(name: str, version: str, source: str, intercept: float, r2: float | None, **by: float) -> Rule:
    terms = {name: Term(coefficient=coefficient) for name, coefficient in by.items()}
    return Rule(name=name, version=version, source=source, intercept=intercept, terms=terms, r2=r2)


PUBLISHED = {
    "2023-07": _published(
        "2023-07",
        "first version, July 2023, LLaMA-7B",
        "Cao et al., arXiv 2307.06290v1, as a repository's README gives it",
        1.0694,
        None,
        reward=-0.1498,
        output_length=8.257e-5,
        knn6=-0.9350,
    ),
    "2024": _published(
        "2024",
        "third version, COLM 2024, LLaMA-2-7B",
        "Cao et al., arXiv 2307.06290v3, as a survey gives it",
        0.0274,
        0.522,
        reward=-0.0078,
        understandability=0.4421,
        naturalness=-0.3212,
        coherence=-0.1520,
    ),
}


def find_rule(rule: str) -> Rule:
    """A published rule by its name, or the one whose file's text this is; StepError if it is neither."""
    if rule in PUBLISHED:
        return PUBLISHED[rule]
    if not rule.lstrip().startswith("{"):
        raise StepError(
            f"there is no rule {rule!r}; published are {' and '.join(PUBLISHED)}, and `thresher fit-rule` fits one"
        )
    try:
        return Rule.model_validate_json(rule)
    except ValidationError as wrong:
        first = wrong.errors()[0]
        raise StepError(f"this is no rule: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
