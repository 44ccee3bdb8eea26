"""Both ways to write rows with the embedded model: whatever it says, every request is accounted for, twice alike."""

import copy
import json
from pathlib import Path

import polars as pl
import pytest

from curation.step import STEPS
from flows import steps  # noqa: F401  registers every step
from storage.schema import message, response
from synthesis import retelling
from tests.rows import rows
from tests.synthesis.engines import needs_vllm

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


ASKED = [message("user", "What is the capital of France?"), message("assistant", "Paris")]


@pytest.mark.parametrize("engine", ["local", pytest.param("vllm", marks=needs_vllm)])
@pytest.mark.parametrize("fields", [("input",), ("question", "answer")], ids=" and ".join)
def test_structured_replies_keep_to_their_schema_by_the_engines_own_constraint(fields, engine, request, nano_adapters):
    """The embedded teacher ends no string by itself; held to short ones, each reply is JSON to the end."""
    pytest.importorskip("xgrammar")
    teacher = request.getfixturevalue(engine).with_adapter(nano_adapters[0])
    parent = POOL["messages"].to_list()[0] if fields == ("input",) else ASKED
    asked = retelling.question(parent, 1, [], structured=True).prompt
    schema = copy.deepcopy(retelling.SCHEMAS[fields == ("input",)]) | {"maxItems": 1}
    for field in fields:
        schema["items"]["properties"][field]["maxLength"] = 8
    replies = teacher.generate([asked] * 6, max_tokens=60, temperature=1.0, seed=5, schema=schema)
    for [reply] in replies:
        assert not reply.truncated and not reply.error
        (item,) = json.loads(reply.text)
        assert set(item) == set(fields) and all(isinstance(said, str) for said in item.values())


@pytest.mark.parametrize("engine", ["local", pytest.param("vllm", marks=needs_vllm)])
def test_structured_growth_counts_what_is_cut_and_answers_with_labels_alone(engine, request, nano_adapters):
    pytest.importorskip("xgrammar")
    view = request.getfixturevalue(engine)
    wrong = POOL.head(2).select("id", student_correct=pl.lit(False))
    step = STEPS["llm2llm"]
    config = step.config(structured=True, attempts=1, max_tokens=24)
    made = step(POOL, config, {"teacher": view.with_adapter(nano_adapters[0])}, {"results": wrong})
    assert set(made["grown_prompt"].drop_nulls()) == {"input-json/1"}
    told = made.drop_nulls("grown_prompt").to_dicts()
    assert len(told) == 2 and all(
        row["messages"][-1]["content"].startswith('[{"input":')
        if row["drop_reason"] == "llm2llm: cut at max_tokens"
        else row["drop_reason"] is None or not row["drop_reason"].endswith("unreadable")
        for row in told
    )
    labels, step = sorted({line["output"] for line in LINES}), STEPS["self-guide"]
    config = step.config(labels=labels, structured=True, epochs=1, prompts=4, samples=3, max_tokens=24, examples=3)
    made = step(POOL, config, {"student": view.with_adapter(None)})
    answered = [m[-1]["content"] for m in made["messages"].to_list() if m[-1]["content"]]
    assert made.height == 4 and answered and set(answered) <= set(labels)
