"""CLEAR (Chen and Mueller, 2024, arXiv 2403.12776): is this answer good? Ask the model that is to be tuned.

Confidence is BSDetector's (arXiv 2308.16175): k sampled answers are compared with the given one, and the model is
asked twice whether the given answer is right.

    consistency o_i = alpha * similarity(y, y_i) + (1 - alpha) * [y = y_i],  O = mean of o_i   alpha 0.8, k 5, T 1
    reflection  S   = mean of two choices between A = 1, B = 0, C = 0.5
    confidence  C   = beta * O + (1 - beta) * S                                                 beta 0.7

The paper's similarity is the non-contradiction of an NLI model. Where there is none, as offline, it is the cosine of
sentence embeddings, a named deviation; `exact` leaves similarity out.
"""

import re
import string
from typing import Literal, Self

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from curation.step import Completion, Embedder, Engine, Failed, StepConfig, StepError, step
from storage.schema import Messages, instruction, prompt, response

REFLECT = """{instruction}

Proposed answer: {response}

Is the proposed answer: (A) correct (B) incorrect (C) not sure? Reply with one letter."""
CHALLENGE = """Are you really sure that the proposed answer is correct? \
Choose again: (A) correct (B) incorrect (C) not sure. Reply with one letter."""
LETTERS = ["A", "B", "C"]
CREDIT = np.array([1.0, 0.0, 0.5])
_LETTER = re.compile(r"\b([ABC])\b")


class ClearScore(StepConfig):
    samples: int = Field(5, ge=1, le=100)
    """Answers sampled per row and compared with the given one."""

    temperature: float = Field(1.0, gt=0, le=2)
    """Sampling temperature of those answers."""

    max_tokens: int = Field(64, ge=1)
    """Longest sampled answer, in tokens."""

    alpha: float = Field(0.8, ge=0, le=1)
    """Weight of similarity against exact match within consistency."""

    beta: float = Field(0.7, ge=0, le=1)
    """Weight of consistency against reflection."""

    similarity: Literal["embedding", "exact"] = "embedding"
    """How a sampled answer is compared: cosine of sentence embeddings, or equality alone."""

    reflection: Literal["probability", "letter"] = "probability"
    """Read the probability of the letters, or the letter that the model writes (the paper's way)."""

    seed: int = 0
    """Seed of the sampled answers."""


class ClearFilter(StepConfig):
    threshold: float | None = Field(None, ge=0, le=1)
    """Rows whose confidence is not over this are dropped; the median of the live rows if not given."""

    within: str | None = None
    """Column of groups with a median each, such as diversity_cluster: hard kinds of row are not dropped whole."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.within and self.threshold is not None:
            raise ValueError("a threshold is the same for all groups: give threshold or within, not both")
        return self

    def columns(self) -> tuple[str, ...]:
        return (self.within,) if self.within else ()


@step(
    "clear-score",
    kind="score",
    writes="clear_consistency clear_reflection clear_confidence",
    good="clear_confidence clear_consistency clear_reflection",
)
def score(rows: pl.DataFrame, cfg: ClearScore, candidate: Engine, judge: Engine, embedder: Embedder) -> pl.DataFrame:
    """Confidence that a row's answer is good: agreement with sampled answers, and the judge's own opinion (CLEAR)."""
    conversations = rows["messages"].to_list()
    sampled = candidate.generate(
        [prompt(m) for m in conversations],
        n=cfg.samples,
        max_tokens=cfg.max_tokens,
        temperature=cfg.temperature,
        seed=cfg.seed,
    )
    consistency = _consistency([response(m) for m in conversations], sampled, cfg, embedder)
    first = _reflect([_reflection_prompt(m) for m in conversations], cfg, judge)
    second = _reflect([_challenge_prompt(m, f) for m, f in zip(conversations, first, strict=True)], cfg, judge)
    reflection = np.mean([[credit(f), credit(s)] for f, s in zip(first, second, strict=True)] or [[0.0, 0.0]], axis=1)
    return rows.with_columns(
        clear_consistency=_nullable(consistency),
        clear_reflection=_nullable(reflection[: rows.height]),
    ).with_columns(
        clear_confidence=cfg.beta * pl.col("clear_consistency") + (1 - cfg.beta) * pl.col("clear_reflection")
    )


@step(
    "clear-filter", kind="filter", scope="dataset", reads="clear_confidence clear_consistency", writes="clear_threshold"
)
def drop_doubtful(rows: pl.DataFrame, cfg: ClearFilter) -> pl.DataFrame:
    """Drop the rows whose confidence is not over the threshold (CLEAR Auto-Filter; the median by default).

    Coarse confidences tie: where a strict median would keep under 40 % of the rows, ties are broken by consistency,
    then id, to keep half, and one at the least.
    """
    if cfg.within and cfg.within not in rows.columns:
        raise StepError(f"clear-filter: no column {cfg.within!r} in the dataset; run the step that writes it first")
    group = pl.col(cfg.within) if cfg.within else pl.lit(0)
    confidence, consistency = (pl.col(f"clear_{name}").cast(pl.Float64) for name in ("confidence", "consistency"))
    threshold = confidence.median().over(group) if cfg.threshold is None else pl.lit(cfg.threshold, dtype=pl.Float64)
    keep = (confidence > threshold).fill_null(False)
    if cfg.threshold is None:
        scored = confidence.count().over(group)
        place = pl.struct(confidence.fill_null(-1), consistency.fill_null(-1), "id").rank("ordinal", descending=True)
        half = (place.over(group) <= (scored // 2).clip(1)) & confidence.is_not_null()
        keep = pl.when(keep.sum().over(group) < 0.4 * scored).then(half).otherwise(keep)
    why = pl.format("clear-filter: confidence {} is not over {}", confidence.round(3), threshold.round(3))
    why = why.fill_null(pl.lit("clear-filter: no confidence could be had"))
    return rows.with_columns(
        clear_threshold=threshold,
        drop_reason=pl.when(keep).then("drop_reason").otherwise(why),
    )


def credit(letters: np.ndarray | None) -> float:
    """Credit of one reflection from the weights of A, B and C; an unreadable one counts as C."""
    return float(letters @ CREDIT) if letters is not None else 0.5


def normalised(answer: str) -> str:
    return " ".join(answer.lower().translate(str.maketrans("", "", string.punctuation)).split())


def _reflection_prompt(messages: Messages) -> Messages:
    text = REFLECT.format(instruction=instruction(messages), response=response(messages))
    return [{"role": "user", "content": text}]


def _challenge_prompt(messages: Messages, first: np.ndarray | None) -> Messages:
    said = LETTERS[int(first.argmax())] if first is not None else "C"
    return [
        *_reflection_prompt(messages),
        {"role": "assistant", "content": said},
        {"role": "user", "content": CHALLENGE},
    ]


def _reflect(prompts: list[Messages], cfg: ClearScore, judge: Engine) -> list[np.ndarray | None]:
    """Weights of A, B and C for each prompt, summing to 1; None where nothing could be read."""
    if cfg.reflection == "probability":
        return [_weights(p) for p in judge.choose(prompts, LETTERS)]
    replies = judge.generate(prompts, max_tokens=64)
    return [_one_hot(_LETTER.findall(reply[0].text)) for reply in replies]


def _weights(probabilities: list[float] | Failed) -> np.ndarray | None:
    if isinstance(probabilities, Failed) or sum(probabilities) <= 0:
        return None
    return np.array(probabilities) / sum(probabilities)


def _one_hot(letters: list[str]) -> np.ndarray | None:
    return np.array([float(letter == letters[-1]) for letter in LETTERS]) if letters else None


def _consistency(given: list[str], sampled: list[list[Completion]], cfg: ClearScore, embedder: Embedder) -> np.ndarray:
    """O of each row; NaN where no answer could be sampled."""
    pairs = [
        (row, normalised(y), normalised(s.text))
        for row, (y, samples) in enumerate(zip(given, sampled, strict=True))
        for s in samples
        if s.error is None
    ]
    same = np.array([float(y == s) for _, y, s in pairs])
    credits = same if cfg.similarity == "exact" else cfg.alpha * _similarity(pairs, embedder) + (1 - cfg.alpha) * same
    owner = np.array([row for row, _, _ in pairs], dtype=int)
    counts = np.bincount(owner, minlength=len(given))
    sums = np.bincount(owner, weights=credits, minlength=len(given))
    return np.divide(sums, counts, out=np.full(len(given), np.nan), where=counts > 0)


def _similarity(pairs: list[tuple[int, str, str]], embedder: Embedder) -> np.ndarray:
    """Cosine of each pair of texts, not under 0; identical texts are 1."""
    texts = sorted({t for _, y, s in pairs for t in (y, s)})
    if not texts:
        return np.zeros(0)
    place = {text: i for i, text in enumerate(texts)}
    vectors = embedder.embed(texts)
    left, right = (np.array([place[p[side]] for p in pairs]) for side in (1, 2))
    cosine = np.einsum("ij,ij->i", vectors[left], vectors[right])
    return np.where(left == right, 1.0, np.clip(cosine, 0.0, 1.0))


def _nullable(values: np.ndarray) -> pl.Series:
    return pl.Series(values, dtype=pl.Float64).fill_nan(None)
