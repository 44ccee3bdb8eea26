"""What the student answers to each row, how good that is, and how unlikely it finds the row's own response.

    metric    student_answer            student_score, from 0 to 1
    exact     written greedily          1 where it equals the response but for case, spacing, punctuation around it
    numeric   written greedily          1 where its last number is the response's last
    gsm8k     written greedily          1 where the number after its last `####` is that of the response
    rouge-l   written greedily          F of the longest common subsequence of words with the response (Lin, 2004)
    choice    the likeliest of a list   1 where it equals the response; likeliest by the sum of its log-probabilities

student_correct says whether the score reaches `threshold`. From the log-probabilities l of the response's n tokens:

    student_nll    - mean of l, nats per token: the loss after training; student_tokens is n
    student_el2n   root mean square of 1 - exp(l): the part of EL2N (Paul et al., 2021, arXiv 2107.07075), the norm of
                   p - one-hot, that lies in the right token; 1/sqrt(2) of it where one other token has the rest
    student_gain   the base's nll minus the student's, where a table `before` with base_nll is given
"""

import re
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from curation.same_answer import same
from curation.step import Completion, Engine, Failed, StepConfig, StepError, step
from storage.schema import Messages, message, prompt, response, with_examples

Metric = Literal["exact", "numeric", "gsm8k", "rouge-l", "choice"]
_NUMBER = re.compile(r"-?(?:\d[\d,]*\.?\d*|\.\d+)")
_NEAR = 1e-6  # numbers that differ by less, relative to the wanted one, are the same


class Evaluate(StepConfig):
    metric: Metric = "exact"
    """How an answer is scored: exact, numeric, gsm8k (after ####), rouge-l, or choice, the likeliest of `choices`."""

    max_tokens: int = Field(16, ge=1, le=4096)
    """Longest answer, in tokens."""

    choices: list[str] = Field(default_factory=list)
    """Answers to choose from with the metric choice; repeat the option for each."""

    threshold: float = Field(0.5, gt=0, le=1)
    """Score from which an answer counts as correct."""

    likelihood: bool = True
    """Also measure student_nll, how unlikely the student finds the row's response; null if not."""


@step(
    "evaluate",
    kind="score",
    writes="student_answer student_score student_correct student_nll student_tokens student_el2n student_gain",
    version=5,
)
def evaluate(
    rows: pl.DataFrame,
    cfg: Evaluate,
    student: Engine,
    before: pl.DataFrame | None = None,
    examples: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """The student's answers, scored against the rows' responses, and its loss on these; null where there is none.

    Few-shot: `--examples` is a dataset of rows that are shown before each prompt, as a conversation; dropped ones
    are not.
    """
    shown = [] if examples is None else _shown(examples)
    messages = [with_examples(m, shown) for m in rows["messages"].to_list()]
    answers = _chosen(messages, cfg, student) if cfg.metric == "choice" else _written(messages, cfg, student)
    scores = [None if a is None else score(cfg.metric, a, response(m)) for a, m in zip(answers, messages, strict=True)]
    found = student.logprobs(messages) if cfg.likelihood else [Failed("nobody asked")] * len(messages)
    out = rows.with_columns(
        student_answer=pl.Series(answers, dtype=pl.String),
        student_score=pl.Series(scores, dtype=pl.Float64),
        student_nll=pl.Series([nll(f) for f in found], dtype=pl.Float64),
        student_tokens=pl.Series([None if isinstance(f, Failed) else len(f) for f in found], dtype=pl.Int64),
        student_el2n=pl.Series([el2n(f) for f in found], dtype=pl.Float64),
    ).with_columns(student_correct=pl.col("student_score") >= cfg.threshold)
    return out.with_columns(student_gain=_base_nll(out, before) - out["student_nll"])


def _shown(examples: pl.DataFrame) -> list[Messages]:
    if "messages" not in examples.columns:
        raise StepError("evaluate: --examples wants a dataset of rows, and this is a choice or a table")
    live = examples.filter(pl.col("drop_reason").is_null())["messages"].to_list()
    if not live:
        raise StepError(f"evaluate: of the {examples.height} rows of --examples none is live; name rows to be shown")
    return live


def score(metric: Metric, answer: str, wanted: str) -> float | None:
    """From 0 to 1; null where the wanted response has nothing to compare, such as no number."""
    match metric:
        case "numeric":
            return _same_number(last_number(answer), last_number(wanted))
        case "gsm8k":
            return _same_number(marked_number(answer), wanted_number(wanted))
        case "rouge-l":
            return _ROUGE.score(wanted, answer)["rougeL"].fmeasure
    return float(same(answer, wanted))


def last_number(text: str) -> float | None:
    """The last number of a text, its thousands' commas left out."""
    found = _NUMBER.findall(text.replace("\u2212", "-"))
    return float(found[-1].replace(",", "")) if found else None


def marked_number(text: str) -> float | None:
    """The number that ends an answer of GSM8K, the first in the line after the last ####; None without one."""
    _, mark, final = text.rpartition("####")
    found = _NUMBER.findall(final.strip().partition("\n")[0].replace("\u2212", "-"))
    return float(found[0].replace(",", "")) if mark and found else None


def nll(found: list[float] | Failed) -> float | None:
    """Mean negative log-likelihood of a token."""
    return None if isinstance(found, Failed) or not found else -sum(found) / len(found)


def el2n(found: list[float] | Failed) -> float | None:
    """Root mean square of the probability that the right token was not given."""
    return None if isinstance(found, Failed) or not found else float(np.sqrt(np.mean((1 - np.exp(found)) ** 2)))


def wanted_number(wanted: str) -> float | None:
    marked = marked_number(wanted)
    return last_number(wanted) if marked is None else marked


def _same_number(said: float | None, target: float | None) -> float | None:
    if target is None:
        return None
    return float(said is not None and abs(said - target) <= _NEAR * max(1.0, abs(target)))


# left to choose its tokenizer, it says so in the log of the whole program
_ROUGE = RougeScorer(["rougeL"], tokenizer=DefaultTokenizer())


def _written(messages: list[Messages], cfg: Evaluate, student: Engine) -> list[str | None]:
    answers = student.generate([prompt(m) for m in messages], max_tokens=cfg.max_tokens)
    return [_text(c) for [c] in answers]


def _chosen(messages: list[Messages], cfg: Evaluate, student: Engine) -> list[str | None]:
    """The likeliest of the choices; null where one of them could not be scored."""
    if len(cfg.choices) < 2:
        raise StepError("evaluate: the metric choice needs answers to choose from; name two or more with --choices")
    asked = [[*m[:-1], message("assistant", c)] for m in messages for c in cfg.choices]
    sums = [None if isinstance(f, Failed) else sum(f) for f in student.logprobs(asked)]
    by_row = [sums[i : i + len(cfg.choices)] for i in range(0, len(sums), len(cfg.choices))]
    return [None if None in s else cfg.choices[int(np.argmax(s))] for s in by_row]


def _base_nll(rows: pl.DataFrame, before: pl.DataFrame | None) -> pl.Series:
    if before is None or "base_nll" not in before.columns:
        return pl.Series([None] * rows.height, dtype=pl.Float64)
    known = before.select("id", "base_nll").unique("id")
    return rows.select("id").join(known, on="id", how="left", maintain_order="left")["base_nll"]


def _text(completion: Completion) -> str | None:
    return None if completion.error else completion.text
