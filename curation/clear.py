"""CLEAR's confidence (Chen and Mueller, 2024, arXiv 2403.12776): is this answer good? Ask the model to be tuned.

BSDetector (`curation/bsdetector.py`) with the row's own answer in the place of the model's: k answers are sampled to
the same prompt and compared with it, and the model is asked twice whether it is right.

    confidence C = beta * O + (1 - beta) * S            alpha 0.8 within O, beta 0.7, k 5, temperature 1
"""

from collections.abc import Container
from typing import Literal, Self

import numpy as np
import polars as pl
from pydantic import Field

from curation.bsdetector import (
    Reading,
    confidence,
    consistency,
    embedding_similarity,
    nli_similarity,
    pairs_of,
    reflect,
)
from curation.step import Classifier, Embedder, Engine, StepConfig, step
from storage.schema import Messages, prompt

Similarity = Literal["auto", "nli", "embedding", "exact"]


class ClearScore(StepConfig):
    samples: int = Field(5, ge=1, le=100)
    """Answers sampled per row and compared with the given one."""

    temperature: float = Field(1.0, gt=0, le=2)
    """Sampling temperature of those answers."""

    max_tokens: int = Field(512, ge=1)
    """Longest sampled answer, in tokens; one that is cut is compared as it is, and its row counted."""

    alpha: float = Field(0.8, ge=0, le=1)
    """Weight of similarity against exact match within consistency."""

    beta: float = Field(0.7, ge=0, le=1)
    """Weight of consistency against reflection."""

    similarity: Similarity = "auto"
    """How a sampled answer is compared: nli (the paper's), embedding, exact, or auto: nli where its model is here."""

    reflection: Reading = "probability"
    """Read the probability of the letters, or the letter that the model writes (the paper's way)."""

    seed: int = 0
    """Seed of the sampled answers."""

    def settled(self, models: Container[str]) -> Self:
        if self.similarity != "auto":
            return self
        return self.model_copy(update={"similarity": "nli" if "nli" in models else "embedding"})

    def unasked(self) -> tuple[str, ...]:
        return {"nli": ("embedder",), "exact": ("embedder", "nli")}.get(self.similarity, ("nli",))


@step(
    "clear-score",
    kind="score",
    writes="clear_consistency clear_similarity clear_reflection clear_confidence clear_compared_by clear_unread "
    "clear_cut clear_error",
    good="clear_confidence clear_consistency clear_reflection clear_similarity",
    version=4,
)
def score(
    rows: pl.DataFrame,
    cfg: ClearScore,
    candidate: Engine,
    judge: Engine,
    embedder: Embedder | None,
    nli: Classifier | None,
) -> pl.DataFrame:
    """Confidence that a row's answer is good: agreement with sampled answers, and the judge's own opinion (CLEAR)."""
    cfg = cfg.settled({"nli"} if nli else ())
    conversations = rows["messages"].to_list()
    given, questions = [answer(m) for m in conversations], [question(m) for m in conversations]
    reflected = reflect(questions, given, judge, cfg.reflection)  # first: a judge that cannot costs no samples
    sampled = candidate.generate(
        [prompt(m) for m in conversations],  # k answers of a prompt are one request
        n=cfg.samples,
        max_tokens=cfg.max_tokens,
        temperature=cfg.temperature,
        seed=cfg.seed,
    )
    pairs, similar, why = pairs_of(given, sampled), None, {}
    if cfg.similarity == "nli":
        similar, why = nli_similarity(pairs, questions, nli)
    elif cfg.similarity == "embedding":
        similar = embedding_similarity(pairs, embedder)
    observed = consistency(sampled, pairs, similar, cfg.alpha, why)
    errors = [one or other for one, other in zip(observed.errors, reflected.errors, strict=True)]
    return rows.with_columns(
        clear_consistency=number(observed.observed),
        clear_similarity=number(observed.similarity),
        clear_reflection=number(reflected.credit),
        clear_confidence=number(confidence(observed.observed, reflected.credit, cfg.beta)),
        clear_compared_by=pl.lit(cfg.similarity),
        clear_unread=pl.Series(reflected.unread > 0, dtype=pl.Boolean),
        clear_cut=pl.Series([any(s.truncated for s in samples) for samples in sampled], dtype=pl.Boolean),
        clear_error=pl.Series(errors, dtype=pl.String),
    )


def answer(messages: Messages) -> str:
    """The last message, with the tools that it calls as they are written."""
    return _said(messages[-1])


def question(messages: Messages) -> str:
    """What the last message answers: the prompt, or all turns before with who said them where there are several."""
    *before, _ = messages
    if len(before) == 1:
        return _said(before[0])
    return "\n".join(f"{m['role']}: {_said(m)}" for m in before)


def _said(message: dict[str, str | None]) -> str:
    return "\n".join(filter(None, (message["content"], message.get("tool_calls"))))


def number(values: np.ndarray) -> pl.Series:
    return pl.Series(values, dtype=pl.Float64).fill_nan(None)
