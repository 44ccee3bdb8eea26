"""What is vLLM's own: its process, and the questions that kill its engine where nothing is done about them."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from storage.schema import message
from synthesis.vllm_engine import EngineError, VllmEngine
from tests.conftest import make_adapter
from tests.synthesis.engines import NANO, copied, needs_vllm, vllm_engine
from tests.synthesis.test_conformance import PROMPTS, answered, ask, texts

pytestmark = needs_vllm
SNIPS = NANO.parents[1] / "examples/snips/test.jsonl"


def test_log_probabilities_of_a_prompt_do_not_kill_an_engine_with_adapters(vllm):
    assert vllm._base.process.settings["enable_lora"]
    assert "lm_head" not in vllm._base.process.settings["lora_target_modules"]
    [told] = vllm.logprobs(answered(PROMPTS[:1], "PlayMusic"))
    assert len(told) > 1


def test_seeded_samples_of_more_prompt_than_one_step_reads_do_not_kill_the_engine(vllm):
    long = [[message("user", f"{i} " + "play me a song " * 130)] for i in range(20)]  # some 10,000 tokens; 8,192 fit
    drawn = {"max_tokens": 2, "n": 2, "temperature": 1.0, "seed": 4}
    first = vllm.generate(long, **drawn)
    assert not any(c.error for row in first for c in row)
    assert vllm.used["prompt_tokens"] > 8192


def test_a_prompt_that_was_read_is_not_read_again(vllm):
    view = vllm.with_adapter(None)
    shared = "Which of these is meant? " * 40  # over a block of 128 tokens, the least that is shared on a CPU
    view.generate([ask(shared + t) for t in "abcd"], max_tokens=2)
    view.generate([ask(shared + t) for t in "efgh"], max_tokens=2)
    assert view.used["cached_tokens"] > 0.3 * view.used["prompt_tokens"]


def test_json_is_written_without_white_space_of_the_models_own(vllm):
    """Which a small model may write until its limit, in the place of the next field."""
    fields = {name: {"type": "integer", "enum": [1, 2]} for name in ("stars", "seats")}
    schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    drawn = vllm.generate(PROMPTS[:24], max_tokens=60, schema=schema, n=2, temperature=2.0, seed=1)
    said = [c for row in drawn for c in row]
    assert not any(c.truncated for c in said)
    assert {c.text for c in said} <= {f'{{"stars":{i},"seats":{k}}}' for i in (1, 2) for k in (1, 2)}


def test_an_engine_that_is_killed_is_started_once_more_and_asked_for_what_was_missing(vllm):
    whole = texts(vllm.generate(PROMPTS, max_tokens=8))
    starts, heard = vllm._base.process.starts, []

    def told(i, answers):
        if len(heard) == 2:
            os.killpg(vllm._base.process.pid, signal.SIGKILL)
        heard.append(i)

    again = texts(vllm.generate(PROMPTS, max_tokens=8, done=told))
    assert sum(a != b for a, b in zip(again, whole, strict=True)) <= 1
    assert sorted(heard) == list(range(len(PROMPTS)))  # each told once
    assert vllm._base.process.starts == starts + 1


def test_an_adapter_that_vllm_cannot_play_beside_others_is_refused_by_name(vllm, nano_adapters, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(NANO), config).save_pretrained(tmp_path)
    with pytest.raises(EngineError, match=r"lm_head.*local engine"):
        vllm.with_adapter(tmp_path)
    with pytest.raises(EngineError, match="is no adapter"):
        vllm.with_adapter(tmp_path / "nothing")
    with pytest.raises(EngineError, match="rank up to"):
        vllm.with_adapter(wide(tmp_path / "wide"))


def wide(folder):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=600, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(NANO), config).save_pretrained(folder)
    return folder


@pytest.mark.real
def test_an_engine_that_dies_twice_is_an_error_that_says_how_far_it_came(nano_adapters):
    engine, heard, killed = vllm_engine(nano_adapters), [], set()

    def told(i, answers):
        heard.append(i)
        process = engine._base.process
        if process.starts not in killed:  # in each of its lives, at its first answer
            killed.add(process.starts)
            os.killpg(process.pid, signal.SIGKILL)

    try:
        with pytest.raises(EngineError, match=r"died twice .* of 630 answers were had"):
            engine.generate(PROMPTS * 6, max_tokens=8, done=told)
        assert killed == {1, 2} and 2 <= len(heard) < 630 and len(set(heard)) == len(heard)
    finally:
        engine.close()


@pytest.mark.real
def test_more_adapters_than_places_are_played_after_a_new_start_and_the_bare_model_stays_bare(tmp_path, local):
    engine = vllm_engine([make_adapter(NANO, tmp_path / "first", seed=1)])
    told = answered(PROMPTS[:2], "PlayMusic", "RateBook")
    try:
        engine.logprobs(told)
        views = [engine.with_adapter(make_adapter(NANO, tmp_path / str(i), seed=i)) for i in range(10, 14)]
        heard = [v.logprobs(told) for v in views]
        assert engine._base.process.starts == 2
        assert engine.logprobs(told)[0] == pytest.approx(local.logprobs(told)[0], abs=2e-3)
        assert len({str(h) for h in heard}) == 4
    finally:
        engine.close()


@pytest.mark.real
def test_log_probabilities_in_bfloat16_are_near_the_local_engines(local, nano_adapters):
    """The model's own answers to requests of SNIPS are within the bound; an unlikely answer, as far off as was seen."""
    engine = vllm_engine(nano_adapters[:1], dtype="bfloat16")
    rows = [json.loads(line) for line in SNIPS.read_text().splitlines()[:60]]
    requests = [ask("\n\n".join([r["instruction"], r["input"]])) for r in rows]
    unlikely = answered(PROMPTS, *["a song that I would like to hear, and then another"] * len(PROMPTS))
    far = []
    try:
        for one, other in (
            (engine, local),
            (engine.with_adapter(nano_adapters[0]), local.with_adapter(nano_adapters[0])),
        ):
            drawn = [other.generate(requests, max_tokens=40, temperature=t, seed=1) for t in (0.0, 1.0)]
            own = [c for said in drawn for c in answered(requests, *[a.text for [a] in said])]
            apart = apart_by(one, other, own)
            assert len(apart) > 300 and sum(apart) / len(apart) < 0.02 and max(apart) < 0.1
            apart = apart_by(one, other, unlikely)
            assert len(apart) > 1000
            assert sum(apart) / len(apart) < 0.04 and max(apart) < 0.5  # with the wrong adapter it is over 1
            far.append((sum(apart) / len(apart), max(apart)))
    finally:
        engine.close()
    if not all(mean < 0.02 and most < 0.1 for mean, most in far):
        pytest.xfail(f"0.02 on average and 0.1 at most are wanted of any answer, and not reached: {far}")


def apart_by(one, other, told):
    pairs = zip(one.logprobs(told), other.logprobs(told), strict=True)
    return [abs(a - b) for got, wanted in pairs for a, b in zip(got, wanted, strict=True)]


def test_as_many_sequences_are_read_at_once_as_by_vllm_itself(vllm):
    vllm.generate(PROMPTS[:1], max_tokens=1)
    facts = vllm._base.process.start().facts
    assert facts["sequences_at_once"] >= 256 and facts["tokens_at_once"] >= 8192


def test_an_adapter_that_was_overwritten_is_played_as_it_was_when_it_was_named(vllm, nano_adapters, tmp_path):
    told = answered(PROMPTS[:1], "PlayMusic")
    [wanted] = vllm.with_adapter(nano_adapters[1]).logprobs(told)
    folder = copied(nano_adapters[1], tmp_path / "mine")
    fresh = VllmEngine(NANO, dtype="float32")
    view = fresh.with_adapter(folder)
    copied(nano_adapters[0], folder)  # before vLLM has read it, as also after a restart
    try:
        assert view.logprobs(told)[0] == pytest.approx(wanted, abs=2e-3)
    finally:
        fresh.close()


@pytest.mark.real
def test_the_process_ends_with_the_lease_and_with_whoever_started_it(nano_adapters):
    program = (
        "from tests.synthesis.engines import *\n"
        "from tests.synthesis.test_conformance import PROMPTS\n"
        "engine = vllm_engine([])\nengine.generate(PROMPTS[:1], max_tokens=1)\n"
        "print(engine._base.process.pid, flush=True)\n"
        "import sys; sys.stdin.readline(); engine.close(); print('closed', flush=True)\n"
        "engine.generate(PROMPTS[:1], max_tokens=1)\n"
        "print(engine._base.process.pid, flush=True)\nsys.stdin.readline()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    first = int(parent.stdout.readline())
    assert psutil.pid_exists(first)
    parent.stdin.write("\n")
    parent.stdin.flush()
    assert parent.stdout.readline() == "closed\n"
    assert not psutil.pid_exists(first)
    second = int(parent.stdout.readline())
    parent.kill()
    for _ in range(100):
        if not psutil.pid_exists(second):
            return
        time.sleep(0.1)
    pytest.fail("vLLM's process outlived its parent")


@pytest.mark.real
def test_an_engine_that_cannot_start_says_why():
    engine = VllmEngine(NANO, dtype="float32", cpu_cache_gib=100_000)
    with pytest.raises(EngineError, match="could not start"):
        engine.generate(PROMPTS[:1], max_tokens=1)
