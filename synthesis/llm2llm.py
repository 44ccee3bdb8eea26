"""LLM2LLM (Lee et al., 2024, arXiv 2403.15042): where the student fails, a teacher writes more of the same kind.

Each round: the student, trained afresh from the base, answers the rows it was trained on; each imported row it gets
wrong is shown to the teacher, which writes one new row from it. Only imported rows are parents: prompting the teacher
with its own rows compounds its errors. What a reply must be to be kept, and in which order it is asked:

    readable       a question with one answer, or an input; nothing that was cut at `max_tokens`
    new            no prompt of the pool, of the rows written so far, or of a held-out set
    not near       ROUGE-L of 0.95 at most to its parent, the other wrong rows, the rows written in this round and in
                   earlier ones, and the held-out rows
    in its script  most letters are of a script that its parent has, too
    its own        no text that the teacher was trained on, where that is known
    marked         `#### n` at the end of the answer where the parent's answer has that

The pool's own steps (duplicates, held-out overlap, confidence) judge grown rows in the next round like any other. Where
a pool has wrong answers, "the student got it wrong" finds those too: parents are taken in the order of a quality
column, the most trusted first.
"""

from typing import Literal, Self

import polars as pl
from pydantic import Field, model_validator

from curation.same_answer import same
from curation.step import Engine, StepConfig, StepError, step
from storage.schema import Messages, instruction, prompt, response
from synthesis import growing
from synthesis.growing import OF_GROWN, Allowance, Place, Question, Unread, in_another_script
from synthesis.near import Near, rouge_l
from synthesis.recital import Recited
from synthesis.retelling import MARKER, SCHEMAS, input_of, question, rows_in

_SAMPLES, _AGREEING = 3, 2  # of the teacher's own answers to a row that it wrote


class LLM2LLM(StepConfig):
    rows: int = Field(200, ge=1)
    """Most rows that are written in one round."""

    per_parent: int = Field(1, ge=1, le=10)
    """New rows from each wrong row."""

    parents: Literal["seeds", "all"] = "seeds"
    """Rows that are grown from: imported ones, or grown ones too (what the paper advises against)."""

    weak_clusters: int = Field(0, ge=0)
    """Grow only in so many clusters of `kmeans-cluster`, those where the student is right least often; 0: in all."""

    of: Literal["wrong", "every"] = "wrong"
    """Rows of the weak clusters that are grown from: those answered wrongly (the paper), or all that were answered."""

    attempts: int = Field(5, ge=1, le=20)
    """How often the teacher is asked for a row before its place stays empty."""

    retry: Literal["again", "more"] = "again"
    """What is asked where a row is missing: the same, drawn anew; or, as in the paper's code, for one more at each
    attempt, every second time with those that were kept and the wish for others."""

    temperature: float = Field(1.0, gt=0, le=2)
    """Sampling temperature of the teacher."""

    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus that the teacher samples from."""

    max_tokens: int = Field(128, ge=1)
    """Longest reply of the teacher, in tokens; what is cut there is refused."""

    structured: bool = False
    """Ask for JSON, held to a schema by the engine."""

    agreement: bool = False
    """Keep a row only if two of three of the teacher's own answers to it are its answer."""

    max_rouge: float = Field(0.95, ge=0, le=1)
    """A new prompt whose ROUGE-L to its parent, to a row already written or to a held-out row is over this is
    refused."""

    tokens: int | None = Field(None, ge=1)
    """Most tokens that the teacher may write in one round."""

    seconds: float | None = Field(None, gt=0)
    """Seconds of the teacher's work after which nothing more is asked; how far it comes differs from run to run."""

    quality: str = "clear_confidence"
    """Column that says how far a row is trusted; the most trusted parents first, if the dataset has it."""

    round: int = Field(1, ge=0)
    """Turn of the loop, written into the new rows."""

    seed: int = 0
    """Seed of the teacher's sampling."""

    def columns(self) -> tuple[str, ...]:
        return (self.quality, "split", *(["diversity_cluster"] if self.weak_clusters else []))

    @model_validator(mode="after")
    def _every_of_some(self) -> Self:
        if self.of == "every" and not self.weak_clusters:
            raise ValueError("of: every row is grown from in weak clusters alone; say with weak_clusters how many")
        return self


@step("llm2llm", kind="make", scope="dataset", writes=" ".join(OF_GROWN), version=2)
def grow(
    rows: pl.DataFrame,
    cfg: LLM2LLM,
    teacher: Engine,
    results: pl.DataFrame,
    heldout: pl.DataFrame | None = None,
    training_text: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """New rows like those that the student got wrong, one for each (LLM2LLM).

    `--results` is a dataset that `evaluate` made of the rows, with an adapter trained on them. What the teacher said
    and was not kept is there too, as dropped rows that say why: `thresher review` lists the reasons.
    """
    wrong = wrong_rows(rows, results, cfg).to_dicts()
    places = [Place(row, min(cfg.per_parent, cfg.rows - k * cfg.per_parent)) for k, row in enumerate(wrong)]
    seed = (cfg.seed * 1009 + cfg.round) * 20  # no two rounds draw alike
    part = 1 / (1 + _SAMPLES) if cfg.agreement else 1.0  # of the bounds; the rest is for checking what it buys
    allowance = Allowance(teacher, cfg.tokens and int(cfg.tokens * part), cfg.seconds and cfg.seconds * part)
    checking = Allowance(teacher, cfg.tokens and int(cfg.tokens * (1 - part)), cfg.seconds)
    how = {"max_tokens": cfg.max_tokens, "temperature": cfg.temperature, "top_p": cfg.top_p}
    known = _Known(rows, [row["messages"] for row in wrong], heldout, cfg.max_rouge, Recited(training_text))

    def read(place: Place, text: str, cut: bool) -> list[Messages | Unread]:
        return rows_in(place.parent["messages"], text, cut, cfg.structured)

    def agree(new: list[Messages]) -> list[str | None]:
        return agreed(new, checking, {**how, "seed": seed + 1_000_000})

    def ask(asking: list[Place], schema: dict | None) -> list[growing.Written]:
        return growing.grow(
            asking,
            allowance,
            attempts=cfg.attempts,
            seed=seed,
            how=how | ({"schema": schema} if schema else {}),
            ask=lambda place, attempt, kept: questions(place, attempt, kept, cfg),
            read=read,
            refuse=lambda place, new: known.refuse(place.parent["messages"], new),
            verify=agree if cfg.agreement else None,
        )

    if cfg.structured:  # one schema for a call
        of = {kind: [p for p in places if _has_input(p) is kind] for kind in (True, False)}
        written = [w for kind, some in of.items() for w in ask(some, SCHEMAS[kind])]
    else:
        written = ask(places, None)
    return growing.frame("llm2llm", written, teacher.identity, cfg.round)


def wrong_rows(rows: pl.DataFrame, results: pl.DataFrame, cfg: LLM2LLM) -> pl.DataFrame:
    """The training rows that are grown from: those that the student got wrong, or all of its weak clusters.

    The most trusted come first.
    """
    if "student_correct" not in results.columns:
        raise StepError("llm2llm: the results have no column student_correct; `thresher step evaluate` writes it")
    answered = results.filter(pl.col("student_correct").is_not_null())
    wrong = answered if cfg.of == "every" else answered.filter(~pl.col("student_correct"))
    if cfg.weak_clusters:
        wrong = wrong.join(_weakest(rows, answered, cfg.weak_clusters), on="id", how="semi")
    seeds = rows if cfg.parents == "all" else rows.filter(pl.col("round") == 0)
    if "split" in seeds.columns:
        seeds = seeds.filter(pl.col("split") == "train")
    trust = pl.col(cfg.quality) if cfg.quality in seeds.columns else pl.lit(0.0)
    found = seeds.join(wrong.select("id"), on="id", how="semi").with_columns(trust=trust)
    ordered = found.sort(["trust", "id"], descending=[True, False], nulls_last=True)
    return ordered.select("id", "messages", "source").head(-(-cfg.rows // cfg.per_parent))


def _weakest(rows: pl.DataFrame, answered: pl.DataFrame, clusters: int) -> pl.DataFrame:
    """The ids of the rows in the clusters where the student is right least often, as (right + 1) / (answered + 2)."""
    if "diversity_cluster" not in rows.columns:
        raise StepError("llm2llm: weak_clusters needs the column diversity_cluster; run `kmeans-cluster` first")
    known = rows.select("id", "diversity_cluster").drop_nulls()
    both = known.join(answered.select("id", right=pl.col("student_correct").cast(pl.Int64)), on="id")
    share = (pl.col("right").sum() + 1) / (pl.len() + 2)  # one wrong row makes no cluster the weakest of all
    weak = both.group_by("diversity_cluster").agg(share=share).sort("share", "diversity_cluster").head(clusters)
    return known.join(weak, on="diversity_cluster", how="semi").select("id")


def questions(place: Place, attempt: int, kept: list[Messages], cfg: LLM2LLM) -> list[Question]:
    """What the teacher is asked for the rows that a parent still lacks."""
    parent, lacking = place.parent["messages"], (place.quota or 0) - len(kept)
    if not (len(parent) > 1 and input_of(parent).strip() and response(parent).strip()):
        return []
    if cfg.retry == "again":
        return [question(parent, 1, [], cfg.structured)] * lacking
    shown = kept if attempt % 2 else []
    return [question(parent, min(lacking + attempt, 10), shown, cfg.structured)]


def agreed(new: list[Messages], allowance: Allowance, how: dict) -> list[str | None]:
    """Of rows that the teacher wrote: why one is not believed, if it is not."""
    answers = allowance.ask([prompt(m) for m in new], n=_SAMPLES, **how)
    told: list[str | None] = []
    for messages, samples in zip(new, answers, strict=True):
        if samples is None:
            told.append("its answer could not be checked")
            continue
        alike = sum(c.error is None and same(_final(c.text), _final(response(messages))) for c in samples)
        told.append(None if alike >= _AGREEING else "the teacher answers otherwise")
    return told


class _Known:
    """What a new row may not say over again; grows with every row that is kept."""

    def __init__(
        self, rows: pl.DataFrame, wrong: list[Messages], heldout: pl.DataFrame | None, limit: float, recited: Recited
    ) -> None:
        held = [] if heldout is None else heldout["messages"].to_list()
        grown = rows.filter(pl.col("round") > 0)["messages"].to_list()
        self._limit, self._recited = limit, recited
        self._said = {instruction(m) for m in rows["messages"].to_list()}
        self._held = {instruction(m) for m in held}
        self._near = Near(limit, map(input_of, [*wrong, *grown]))
        self._near_held = Near(limit, map(input_of, held))

    def refuse(self, parent: Messages, new: Messages) -> str | None:
        asked, text, of = instruction(new), input_of(new), input_of(parent)
        if asked == instruction(parent):
            return "its parent over again"
        if asked in self._held or text in self._near_held:
            return "near to a held-out row"
        if rouge_l(of, text) > self._limit:
            return "near to its parent"
        if asked in self._said or text in self._near:
            return "near to another row"
        if in_another_script(text, of):
            return "in another script"
        if text in self._recited or (response(new) != response(parent) and response(new) in self._recited):
            return "recited"
        if MARKER in response(parent) and response(new).count(MARKER) != 1:
            return "its answer has not one mark"
        self._said.add(asked)
        self._near.add(text)
        return None


def _has_input(place: Place) -> bool:
    return "\n" in (place.parent["messages"][-2]["content"] or "") if len(place.parent["messages"]) > 1 else False


def _final(answer: str) -> str:
    """What of a worked answer is the answer."""
    return answer.rpartition(MARKER)[2]
