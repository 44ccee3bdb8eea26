"""LLM2LLM (Lee et al., 2024, arXiv 2403.15042): where the student fails, a teacher writes more of the same kind.

Each round: the student, trained afresh from the base, answers the rows it was trained on; each imported row it gets
wrong is shown to the teacher, which writes one new row from it. Only imported rows are parents: prompting the teacher
with its own rows compounds its errors. A new row is kept if it reads as one and is not the parent over again (ROUGE-L
over 0.95). The pool's own steps (duplicates, held-out overlap, confidence) judge grown rows in the next round like any
other. Where a pool has wrong answers, "the student got it wrong" finds those too: parents are taken in the order of a
quality column, the most trusted first.
"""

import re

import polars as pl
from pydantic import Field
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from curation.step import Completion, Engine, StepConfig, step
from storage.schema import Messages, instruction, message, response, row_id

# Where a prompt is an instruction line with an input below it, the task stays and the teacher writes another input.
WITH_INPUT = """Write another input for this task that has the same answer.
Task: {task}
Input: {input}
Answer: {answer}"""
# Else the teacher writes question and answer.
WITHOUT_INPUT = """Write a new question of the same kind, with other names, numbers or words, and its answer.
Question: {question}
Answer: {answer}
Reply as "Question: ..." and "Answer: ..."."""
_PAIR = re.compile(r"Question:(?P<question>.+?)\nAnswer:(?P<answer>.+)", re.S)


class LLM2LLM(StepConfig):
    rows: int = Field(200, ge=1)
    """Most rows that are written in one round."""

    per_parent: int = Field(1, ge=1, le=10)
    """New rows from each wrong row."""

    attempts: int = Field(5, ge=1, le=20)
    """How often the teacher is asked for a row before its place stays empty."""

    temperature: float = Field(1.0, gt=0, le=2)
    """Sampling temperature of the teacher."""

    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus that the teacher samples from."""

    max_tokens: int = Field(128, ge=1)
    """Longest reply of the teacher, in tokens."""

    max_rouge: float = Field(0.95, ge=0, le=1)
    """A new prompt whose ROUGE-L to its parent or to a row already written is over this is refused."""

    quality: str = "clear_confidence"
    """Column that says how far a row is trusted; the most trusted parents first, if the dataset has it."""

    round: int = Field(1, ge=0)
    """Turn of the loop, written into the new rows."""

    seed: int = 0
    """Seed of the teacher's sampling."""

    def columns(self) -> tuple[str, ...]:
        return (self.quality, "split")


@step("llm2llm", kind="make", scope="dataset")
def grow(rows: pl.DataFrame, cfg: LLM2LLM, teacher: Engine, results: pl.DataFrame) -> pl.DataFrame:
    """New rows like those that the student got wrong, one for each (LLM2LLM)."""
    wrong = wrong_rows(rows, results, cfg.quality).head(-(-cfg.rows // cfg.per_parent))
    wanted = [row for row in wrong.to_dicts() for _ in range(cfg.per_parent)][: cfg.rows]
    rouge = RougeScorer(["rougeL"], tokenizer=DefaultTokenizer())
    made: list[dict] = []
    said = {instruction(messages) for messages in rows["messages"].to_list()}
    for attempt in range(cfg.attempts):
        if not wanted:
            break
        replies = teacher.generate(
            [teacher_prompt(row["messages"]) for row in wanted],
            max_tokens=cfg.max_tokens,
            temperature=cfg.temperature,
            top_p=cfg.top_p,
            seed=(cfg.seed * 1009 + cfg.round) * 20 + attempt,  # no two rounds draw alike
        )
        missed = []
        for parent, reply in zip(wanted, replies, strict=True):
            new = parse(parent["messages"], reply[0])
            if new is None or instruction(new) in said or _alike(rouge, parent["messages"], new) > cfg.max_rouge:
                missed.append(parent)
                continue
            said.add(instruction(new))
            made.append(_row(parent, new, cfg.round))
        wanted = missed
    return pl.DataFrame(made, schema=rows.select(*_COLUMNS).schema)


def wrong_rows(rows: pl.DataFrame, results: pl.DataFrame, quality: str) -> pl.DataFrame:
    """The imported training rows that the student answered wrongly, the most trusted first."""
    wrong = results.filter(~pl.col("student_correct")).select("id")
    seeds = rows.filter(pl.col("round") == 0)
    if "split" in seeds.columns:
        seeds = seeds.filter(pl.col("split") == "train")
    trust = pl.col(quality) if quality in seeds.columns else pl.lit(0.0)
    found = seeds.join(wrong, on="id").with_columns(trust=trust)
    return found.sort(["trust", "id"], descending=[True, False], nulls_last=True).select(*_COLUMNS)


def teacher_prompt(messages: Messages) -> Messages:
    task, below, text = instruction(messages).partition("\n")
    if below:
        asked = WITH_INPUT.format(task=task, input=text, answer=response(messages))
    else:
        asked = WITHOUT_INPUT.format(question=task, answer=response(messages))
    return [{"role": "user", "content": asked}]


def parse(parent: Messages, reply: Completion) -> Messages | None:
    """The new row's messages, or None if the reply cannot be read as one."""
    text = reply.text.strip()
    task, below, _ = instruction(parent).partition("\n")
    if reply.error or not text:
        return None
    if below:
        text = text.removeprefix("Input:").split("\nAnswer:")[0].strip()
        said = [message("user", f"{task}\n{text}"), message("assistant", response(parent))]
        return [*parent[:-2], *said] if text else None
    found = _PAIR.search(text)
    if not found or text.count("Question:") != 1:
        return None
    said = [message("user", found["question"].strip()), message("assistant", found["answer"].strip())]
    return [*parent[:-2], *said] if all(m["content"] for m in said) else None


_COLUMNS = ["id", "messages", "source", "method", "parent_id", "round", "drop_reason"]


def _alike(rouge: RougeScorer, parent: Messages, new: Messages) -> float:
    """ROUGE-L of what differs: the prompt without a shared first line."""
    left, right = (instruction(m).partition("\n")[2] or instruction(m) for m in (parent, new))
    return rouge.score(left, right)["rougeL"].fmeasure


def _row(parent: dict, messages: Messages, round_: int) -> dict:
    return {
        "id": row_id(messages, parent["source"], parent["id"], copy=round_),
        "messages": messages,
        "source": parent["source"],
        "method": "llm2llm",
        "parent_id": parent["id"],
        "round": round_,
        "drop_reason": None,
    }
