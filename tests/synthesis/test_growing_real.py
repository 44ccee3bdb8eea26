"""Both ways to write rows with the embedded model: whatever it says, every request is accounted for, twice alike."""

import json
from pathlib import Path

import polars as pl
import pytest

from curation.step import STEPS
from flows import steps  # noqa: F401  registers every step
from storage.schema import response
from tests.rows import rows

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
SNIPS = Path(__file__).parents[2] / "examples/snips/seed50.jsonl"
LINES = [json.loads(line) for line in SNIPS.read_text().splitlines()]
POOL = rows(*[(f"{line['instruction']}\n{line['input']}", line["output"]) for line in LINES])


def test_llm2llm_with_the_embedded_teacher(local, nano_adapters):
    teacher = local.with_adapter(nano_adapters[0])
    wrong = POOL.head(6).select("id", student_correct=pl.lit(False))
    step = STEPS["llm2llm"]

    def grown():
        config = step.config(attempts=2, max_tokens=40)
        return step(POOL, config, {"teacher": teacher}, {"results": wrong, "heldout": POOL.tail(3)})

    made = grown()
    live = made.filter(pl.col("drop_reason").is_null())
    short = made.filter(pl.col("drop_reason").str.contains("short of the quota"))
    assert live.height + short.height == 6 and live.height > 0 and set(made["parent_id"]) == set(wrong["id"])
    answers = dict(zip(POOL["id"], [response(m) for m in POOL["messages"].to_list()], strict=True))
    assert all(response(row["messages"]) == answers[row["parent_id"]] for row in live.to_dicts())
    assert made["clear_writer"].drop_nulls().unique().to_list() == [teacher.identity]
    assert grown().equals(made)


def test_self_guide_with_the_embedded_student(local):
    labels = sorted({line["output"] for line in LINES})
    step = STEPS["self-guide"]
    config = step.config(labels=labels, epochs=2, prompts=4, samples=4, max_tokens=24, examples=4)
    made = step(POOL, config, {"student": local})
    assert made.height == 8  # one for each input, kept or not
    live = made.filter(pl.col("drop_reason").is_null())
    assert set(live["messages"].list.last().struct.field("content")) <= set(labels)
    assert step(POOL, config, {"student": local}).equals(made)
