"""CLEAR's Auto-Correct (Chen and Mueller, 2024, arXiv 2403.12776): replace an answer where another is surely better.

    candidate y'  of the student, tuned on what the filter kept, temperature 0
    p             BSDetector's confidence in the base model's judgement that y' is better than y          eta 0.8
    outcome       p > eta: replace;  else c > gamma: keep;  else drop                 (c and gamma: `clear-filter`)

How p comes about is in `curation/clear_preference.py`. A correction is a new row with the prompt of its parent, which
is marked; nothing is written over. An answer that calls tools is left alone.
"""

from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from curation.bsdetector import Reading
from curation.choice import for_training
from curation.clear import number, question
from curation.clear_preference import alone, side_by_side
from curation.same_answer import same
from curation.step import Completion, Engine, StepConfig, step
from storage.schema import message, prompt, response, row_id

# What stands beside a corrected row for good: both confidences, and the model that wrote it.
OF_CORRECTIONS = {
    "clear_correction_confidence": pl.Float64,
    "clear_parent_confidence": pl.Float64,
    "clear_writer": pl.String,
}
OF_THIS_PASS = ("clear_preference", "clear_outcome", "clear_same", "clear_judgement_unread", "clear_unjudged")
ABOUT_PROMPT = ("split", "embedding", "diversity_cluster", "diversity_share")  # a correction has its parent's


class ClearCorrect(StepConfig):
    eta: float = Field(0.8, ge=0, le=1)
    """An answer is replaced where the confidence that the candidate is better is over this."""

    beta: float = Field(0.7, ge=0, le=1)
    """Weight of consistency against reflection, within the confidence of a comparison side by side."""

    judged: Literal["pair", "each"] = "pair"
    """Both answers side by side, in both orders (the paper's way), or each alone, for a judge too weak to compare."""

    judgement: Reading = "probability"
    """Read the probability of the letters, or the letters that the judge writes (the paper's way)."""

    samples: int = Field(5, ge=1, le=100)
    """Judgements sampled in each order and compared with the greedy one, where letters are written."""

    max_tokens: int = Field(512, ge=1)
    """Longest candidate answer, in tokens; one that is cut replaces nothing."""

    only_doubtful: bool = False
    """Judge only the rows that clear-filter dropped; half the work. What it kept stays as it is."""

    round: int = Field(1, ge=0)
    """Turn of the loop, written into the new rows."""

    seed: int = 0
    """Seed of the sampled judgements."""


@step(
    "clear-correct",
    kind="revise",
    reads="clear_confidence",
    writes=" ".join([*OF_THIS_PASS, *OF_CORRECTIONS]),
    takes=" ".join([*ABOUT_PROMPT, *OF_CORRECTIONS]),
    revives="clear-filter",
    version=3,
)
def correct(rows: pl.DataFrame, cfg: ClearCorrect, student: Engine, judge: Engine) -> pl.DataFrame:
    """Replace the answers that the student, tuned on the kept rows, surely gives better (CLEAR Auto-Correct).

    Rows that clear-filter dropped are judged too: a surely better answer brings their prompt back. A corrected row's
    `clear_confidence` is the confidence with which it was preferred.
    """
    rows = rows.drop(OF_THIS_PASS, strict=False)
    asked = for_training(rows)  # validation rows stay as they came: no made row judges what made it
    asked = asked.filter(pl.col("messages").list.last().struct.field("tool_calls").is_null())  # a text is no call
    if cfg.only_doubtful:
        asked = asked.filter(pl.col("drop_reason").is_not_null())
    told = _told(asked, _candidates(asked, cfg, student), judge, cfg)
    out = rows.join(told, on="id", how="left", maintain_order="left").with_columns(
        pl.col("clear_same", "clear_judgement_unread").fill_null(False),
        *[pl.lit(None, dtype=kind).alias(name) for name, kind in OF_CORRECTIONS.items() if name not in rows.columns],
    )
    surely = (pl.col("clear_preference") > cfg.eta).fill_null(False)
    new = _corrections(out.filter(surely), student.identity, cfg)
    by = new.select(id="parent_id", by="id")
    marked = (
        out.join(by, on="id", how="left", maintain_order="left")
        .with_columns(
            clear_outcome=outcome(surely, pl.col("drop_reason").is_null()),
            drop_reason=pl.when(surely).then(pl.format("clear-correct: replaced by {}", "by")).otherwise("drop_reason"),
        )
        .drop("by", "candidate")
    )
    return pl.concat([marked, new], how="diagonal_relaxed")


def outcome(surely_better: pl.Expr, over_threshold: pl.Expr) -> pl.Expr:
    """The paper's decision: what becomes of a row by p > eta and c > gamma."""
    kept = pl.when(over_threshold).then(pl.lit("keep")).otherwise(pl.lit("drop"))
    return pl.when(surely_better).then(pl.lit("replace")).otherwise(kept)


def _told(rows: pl.DataFrame, candidates: list[Completion], judge: Engine, cfg: ClearCorrect) -> pl.DataFrame:
    """What was found out of each row that was asked about: id, candidate, and the columns of this step's own."""
    given = [response(m) for m in rows["messages"].to_list()]
    alike = [c.error is None and same(c.text, y) for c, y in zip(candidates, given, strict=True)]
    rivals = [i for i, c in enumerate(candidates) if c.error is None and not alike[i]]
    asked = [question(m) for m in rows["messages"].gather(rivals).to_list()]
    both = [given[i] for i in rivals], [candidates[i].text for i in rivals]
    if cfg.judged == "each":
        found = alone(asked, *both, judge, cfg.judgement)
    else:
        found = side_by_side(asked, *both, judge, cfg.judgement, cfg.beta, cfg.samples, cfg.seed)
    p, unread, errors = np.full(len(given), np.nan), np.zeros(len(given), dtype=bool), [c.error for c in candidates]
    p[rivals], unread[rivals] = found.confidence, found.unread
    for i, error in zip(rivals, found.errors, strict=True):
        errors[i] = error
    return pl.DataFrame(
        {
            "id": rows["id"],
            "candidate": pl.Series([c.text for c in candidates], dtype=pl.String),
            "clear_preference": number(p),
            "clear_same": pl.Series(alike, dtype=pl.Boolean),
            "clear_judgement_unread": pl.Series(unread, dtype=pl.Boolean),
            "clear_unjudged": pl.Series(errors, dtype=pl.String),
        }
    )


def _candidates(rows: pl.DataFrame, cfg: ClearCorrect, student: Engine) -> list[Completion]:
    found = student.generate([prompt(m) for m in rows["messages"].to_list()], max_tokens=cfg.max_tokens)
    return [_whole(c, cfg.max_tokens) for [c] in found]


def _whole(said: Completion, most: int) -> Completion:
    """The candidate, or why there is none."""
    if said.error is None and said.truncated:
        return Completion("", error=f"the candidate was cut at {most} tokens")
    text = said.text.strip()
    return Completion(text, error=said.error or (None if text else "the candidate is empty"))


def _corrections(parents: pl.DataFrame, writer: str, cfg: ClearCorrect) -> pl.DataFrame:
    """A new row for each parent: its prompt as it is, the candidate as the last message."""
    made = [
        [*messages[:-1], message("assistant", candidate)]
        for messages, candidate in zip(parents["messages"].to_list(), parents["candidate"], strict=True)
    ]
    ids = [
        row_id(messages, source, parent, copy=cfg.round)
        for messages, source, parent in zip(made, parents["source"], parents["id"], strict=True)
    ]
    carried = [pl.col(c) for c in ABOUT_PROMPT if c in parents.columns]
    return parents.select(
        *carried,
        pl.Series("id", ids, dtype=pl.String),
        pl.Series("messages", made, dtype=parents.schema["messages"]),
        "source",
        method=pl.lit("clear-correct"),
        parent_id="id",
        round=pl.lit(cfg.round, dtype=pl.Int32),
        drop_reason=pl.lit(None, dtype=pl.String),
        clear_outcome=pl.lit("corrected"),
        clear_same=pl.lit(False),
        clear_judgement_unread="clear_judgement_unread",
        clear_confidence="clear_preference",
        clear_correction_confidence="clear_preference",
        clear_parent_confidence=pl.col("clear_confidence").cast(pl.Float64),
        clear_writer=pl.lit(writer),
    )
