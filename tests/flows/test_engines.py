import os
import shutil
import sys
from fnmatch import fnmatch

import psutil
import pytest
import yaml
from pydantic import ValidationError

from curation.step import find_step
from flows import (
    cli,
    engines,
    spending,
    steps,  # noqa: F401  registers every step
)
from flows.config import ConfigError, LoopConfig, explain
from flows.doctor import examine
from flows.engine_settings import Local, OpenAI, Vllm
from flows.engines import NANO, PACKAGED, EngineError, EngineSpec, devices, has_card, identity, leases
from flows.forecast import asked, lengths_of_words
from flows.models import role_models, typed_engine, typed_models
from flows.run import run_step
from storage.importing import import_files
from storage.schema import prompt, response
from storage.store import Store
from synthesis.chat import load_chat
from tests.synthesis.engines import needs_vllm

SNIPS = NANO.parents[1] / "examples/snips/test.jsonl"


def config(text):
    return LoopConfig.model_validate({"name": "x", "pool": "p", "heldout": "h", **yaml.safe_load(text)})


def test_an_engine_is_said_by_a_word_or_with_its_settings_and_a_role_may_have_its_own(tmp_path):
    said = config("engine: vllm\nroles: {judge: {model: big, engine: {kind: openai, url: http://x/v1, revision: r1}}}")
    models = role_models(said, Store(tmp_path), None)
    assert models["candidate"].settings == Vllm() and models["student"].kind == models["base"].kind == "vllm"
    assert models["candidate"].adapter == str(NANO / "instruct")
    assert models["judge"].kind == "openai" and models["judge"].model == "big" and models["judge"].adapter is None
    assert role_models(config("{}"), Store(tmp_path), None)["judge"].kind == "local"


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        ("vlm", [], "vlm"),
        ("vllm", ["gpu_memory=2"], "gpu_memory: input should be less than or equal to 1"),
        ("openai", ["url=nowhere"], "url: string should match"),
        ("local", ["tensor_parallel=2"], "tensor_parallel: extra inputs"),
        ("openai", ["budget=5"], "a budget needs prices"),
        ("openai", ["reasoning_tokens=9", "tokenizer=nano"], "leave out tokenizer"),
    ],
)
def test_an_engine_that_is_none_is_refused_by_the_setting(kind, changes, match):
    with pytest.raises(ConfigError, match=match):
        typed_engine(kind, changes)


@pytest.mark.parametrize(
    "said", ["key: sk-very-secret", "url: 'https://me:very-secret@host/v1'", "url: 'http://h?k=secret'"]
)
def test_a_secret_where_none_belongs_is_refused_and_not_repeated(said):
    key, value = said.split(": ", 1)
    with pytest.raises(ConfigError) as typed:
        typed_engine("openai", [f"{key}={value}"])
    with pytest.raises(ValidationError) as written:
        config(f"engine: {{kind: openai, {said}}}")
    for told in (str(typed.value), explain(written.value, LoopConfig)):
        assert key in told and "secret" not in told.replace("'secret'", "")


def test_an_engine_is_typed_for_all_roles_of_a_step(tmp_path):
    typed = {"engine": "openai", "engine_set": ["url=http://x/v1", "budget=5", "price_in=1"], "judge": "big"}
    models = typed_models(Store(tmp_path), ["judge", "embedder"], typed)
    assert models["judge"].settings == OpenAI(url="http://x/v1", budget=5, price_in=1)
    assert models["embedder"].kind == "sentence-transformers"
    assert typed_models(Store(tmp_path), ["reward"], {}) == {}  # that it is missing is told where it is asked for


def test_what_decides_an_answer_is_in_the_identity_and_what_does_not_is_not():
    local, half, whole = (
        identity(EngineSpec(settings=s)) for s in (Local(), Vllm(), Vllm(dtype="float32", gpu_memory=0.5))
    )
    assert local == identity(EngineSpec()) and local.startswith("local-4:")
    assert len({local, half, whole}) == 3
    assert whole == identity(EngineSpec(settings=Vllm(dtype="float32")))
    here = EngineSpec(model="big", settings=OpenAI(url="http://here/v1", key="A", at_once=3))
    there = EngineSpec(model="big", settings=OpenAI(url="http://there/v1", key="A", at_once=3))
    assert identity(here) == identity(here.model_copy(update={"settings": OpenAI(url="http://here/v1")}))
    assert identity(here) != identity(there)
    named = [OpenAI(url=s.settings.url, revision="of May") for s in (here, there)]
    assert identity(EngineSpec(model="big", settings=named[0])) == identity(EngineSpec(model="big", settings=named[1]))
    tuned = EngineSpec(model="big", adapter=str(NANO / "instruct"), settings=OpenAI(url="http://here/v1"))
    assert identity(tuned) != identity(here)


def test_who_writes_the_prompt_and_where_it_is_cut_is_in_the_identity(tmp_path):
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
    ):
        shutil.copy(NANO / name, tmp_path)
    server = {"url": "http://here/v1"}
    said = [{}, {"tokenizer": "nano"}, {"reasoning_tokens": 0}, {"reasoning_tokens": 9}]
    names = [identity(EngineSpec(model="big", settings=OpenAI(**server, **more))) for more in said]
    assert len(set(names)) == 4
    copied = EngineSpec(model="big", settings=OpenAI(**server, tokenizer=str(tmp_path)))
    assert identity(copied) == names[1]  # the same tokenizer, wherever it lies, with or without weights beside it
    (tmp_path / "chat_template.jinja").write_text("another")
    assert identity(copied) != names[1]
    short = identity(EngineSpec(settings=Vllm(context=512)))
    assert len({short, identity(EngineSpec(settings=Vllm(context=1024))), identity(EngineSpec(settings=Vllm()))}) == 3


def test_beside_vllm_on_a_gpu_small_models_take_the_cpu_and_two_that_want_all_of_it_are_refused():
    large, other = (EngineSpec(settings=Vllm(gpu_memory=0.6, dtype=d)) for d in ("bfloat16", "float16"))
    small = {"embedder": EngineSpec(kind="sentence-transformers", model=PACKAGED)}
    assert devices({"judge": large, "candidate": large, **small}, "cuda") == {
        "judge": "cuda", "candidate": "cuda", "embedder": "cpu",
    }  # fmt: skip
    assert devices(small, "cuda") == {"embedder": "cuda"}
    tuned = large.model_copy(update={"adapter": str(NANO / "instruct")})
    assert devices({"judge": large, "candidate": tuned}, "cuda")  # one process plays both
    with pytest.raises(EngineError, match=r"2 vLLM engines at once, and their gpu_memory is 1.2 of a GPU"):
        devices({"judge": large, "candidate": other}, "cuda")
    assert devices({"judge": large, "candidate": other}, "cpu") == {"judge": "cpu", "candidate": "cpu"}
    local = EngineSpec(settings=Local())
    with pytest.raises(EngineError, match=r"the student is on the local engine.*vLLM, which takes its share.*a server"):
        devices({"judge": large, "student": local}, "cuda")
    assert devices({"judge": local, "student": local}, "cuda") == {"judge": "cuda", "student": "cuda"}
    assert devices({"judge": large, "student": local}, "cpu") == {"judge": "cpu", "student": "cpu"}


def test_what_is_freed_before_a_training_are_models_of_every_kind(tmp_path):
    embedder = {"embedder": EngineSpec(kind="sentence-transformers", model=PACKAGED)}
    with leases(embedder, Store(tmp_path)).open() as roles:
        roles["embedder"].embed(["a"])
        engines.release()
        with pytest.raises(EngineError, match="was closed"):
            roles["embedder"].embed(["a"])


def test_a_gpu_is_seen_by_whatever_number_it_has(tmp_path):
    (tmp_path / "nvidiactl").touch()
    assert not has_card(tmp_path)
    (tmp_path / "nvidia3").touch()
    assert has_card(tmp_path)


@pytest.mark.parametrize(
    ("holds", "fetched"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model-00001-of-2.bin"], ["pytorch_model-00001-of-2.bin"]),
    ],
)
def test_old_weights_are_fetched_where_there_are_no_others_and_none_for_a_tokenizer(
    tmp_path, monkeypatch, holds, fetched
):
    def hub(name, allow_patterns):  # as the hub's own does, with what a repository holds
        for file in ["config.json", "tokenizer.json", "onnx.bin", *holds]:
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / name / file).write_text(file)
        return str(tmp_path / name)

    monkeypatch.setattr(engines, "snapshot_download", hub)
    for name, weights, wanted in (("whole", True, fetched), ("words", False, [])):
        (tmp_path / name).mkdir()
        folder = engines._from_hub.__wrapped__(name, weights)
        assert sorted(p.name for p in folder.iterdir()) == sorted(["config.json", "tokenizer.json", *wanted])


class Stubborn:
    closed = 0

    def close(self):
        Stubborn.closed += 1
        raise EngineError("an adapter may still be loaded on the server")


def test_a_command_frees_every_engine_when_it_ends_and_one_that_cannot_be_fails_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(engines, "_LOADED", {("openai", "a"): Stubborn(), ("openai", "b"): Stubborn()})
    monkeypatch.setattr(sys, "argv", ["thresher", "datasets", "--store", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code and Stubborn.closed == 2 and not engines._LOADED
    assert "may still be loaded" in "".join(capfd.readouterr())


def test_a_budget_is_the_runs_whatever_engine_pays(tmp_path):
    store = Store(tmp_path)
    said = {"url": "http://127.0.0.1:9/v1", "price_in": 1e6, "budget": 5.0}
    spec = {"judge": EngineSpec(model="big", settings=OpenAI(**said))}

    def purse(run):
        with leases(spec, store, run=run).open() as roles:
            return roles["judge"].engine.server.purse

    first = purse("snips")
    first.pay(2, 0)
    assert purse("snips") is first
    engines.release()
    later, other = purse("snips"), purse("another")
    for one in (later, other):
        one.keep()
    assert (later.spent, other.spent) == (2.0, 0.0)
    later.pay(4, 0)
    with pytest.raises(EngineError, match=r"budget of 5 is spent \(6"):
        later.check()
    engines.release()


@pytest.fixture
def rows(tmp_path):
    store = Store(tmp_path / "store")
    lines = SNIPS.read_text().splitlines()[:48]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return store, import_files(store, [tmp_path / "rows.jsonl"], "run.rows").dataset


@pytest.mark.parametrize(
    ("step", "settings"),
    [("evaluate", {}), ("perplexity", {}), ("clear-score", {"samples": 3})],
)
def test_what_models_are_asked_is_forecast_within_half_as_much_again_and_noted(rows, step, settings):
    store, pool = rows
    one = find_step(step)
    made_of = one.config(**settings)
    models = typed_models(store, one.roles, {})
    made = run_step(store, one, made_of, pool, lease=leases(models, store))
    store.name(f"run.{step}", made)
    chat, messages = load_chat(NANO), store.read(pool)["messages"].to_list()
    mean = lengths_of_words(
        chat.count,
        sum(map(len, chat.encode([prompt(m) for m in messages]))) / len(messages),
        sum(n + 1 for n in chat.count([response(m) for m in messages])) / len(messages),
    )
    forecast, facts = asked(step, made_of, mean) * len(messages), store.run_facts(made)
    assert facts["requests"] == forecast.requests
    assert forecast.read / 1.5 < facts["prompt_tokens"] < forecast.read * 1.5
    assert forecast.written / 1.5 <= facts.get("generated_tokens", 0) <= forecast.written * 1.5
    assert facts["engine_seconds"] > 0
    assert spending.of_run(store, "run")["total"]["requests"] == facts["requests"]
    assert f"{facts['requests']:,} requests" in spending.in_words(facts)


def test_what_growing_asks_of_its_teacher_stays_under_what_is_foretold(rows):
    store, pool = rows
    evaluate, grow = find_step("evaluate"), find_step("llm2llm")
    settings = evaluate.config(max_tokens=4, likelihood=False)
    results = run_step(store, evaluate, settings, pool, lease=leases(typed_models(store, evaluate.roles, {}), store))
    made_of = grow.config(rows=6, max_tokens=24, max_rouge=0.3)  # which refuses much, so that it is asked for again
    models = typed_models(store, grow.roles, {})
    made = run_step(store, grow, made_of, pool, {"results": results}, leases(models, store))
    chat, messages = load_chat(NANO), store.read(pool)["messages"].to_list()
    mean = lengths_of_words(
        chat.count,
        sum(map(len, chat.encode([prompt(m) for m in messages]))) / len(messages),
        sum(n + 1 for n in chat.count([response(m) for m in messages])) / len(messages),
    )
    bound, facts = asked("llm2llm", made_of, mean) * made_of.rows, store.run_facts(made)
    assert made_of.rows < facts["requests"] <= bound.requests
    assert 0 < facts["prompt_tokens"] <= bound.read
    assert 0 < facts["generated_tokens"] <= bound.written


def test_answers_that_are_there_cost_another_step_nothing(rows):
    store, pool = rows
    evaluate = find_step("evaluate")
    models = typed_models(store, evaluate.roles, {})
    first = run_step(
        store, evaluate, evaluate.config(max_tokens=4, likelihood=False), pool, lease=leases(models, store)
    )
    again = run_step(store, evaluate, evaluate.config(max_tokens=4, likelihood=True), pool, lease=leases(models, store))
    assert store.run_facts(first)["requests"] == 48 and "from_store" not in store.run_facts(first)
    assert store.run_facts(again)["requests"] == 96 and store.run_facts(again)["from_store"] == 48
    assert store.read(again)["student_answer"].equals(store.read(first)["student_answer"])


def test_doctor_says_which_engines_work_and_why_not_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = {c.what: c for c in examine(tmp_path, "http://127.0.0.1:9/v1")}
    assert found["engine local"].ok
    assert found["engine openai"].ok is False and "127.0.0.1:9" in found["engine openai"].found
    assert not found["engine vllm"].ok


@needs_vllm
def test_doctor_loads_vllm_and_tells_one_that_is_broken(tmp_path, monkeypatch):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm/__init__.py").write_text("")  # `import vllm` succeeds, as where torchvision does not fit
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    [broken] = [c for c in examine(tmp_path) if c.what == "engine vllm"]
    assert broken.ok is False and "installed and broken" in broken.found and "LLM" in broken.found
    monkeypatch.delenv("PYTHONPATH")
    [fine] = [c for c in examine(tmp_path) if c.what == "engine vllm"]
    assert fine.ok and ("cpu" in fine.found or os.path.exists("/dev/nvidia0"))


@needs_vllm
@pytest.mark.real
def test_vllm_plays_base_and_adapter_by_one_process_that_ends_before_training_and_starts_for_no_kept_answer(rows):
    store, pool = rows
    score = find_step("clear-score")
    models = typed_models(store, score.roles, {"engine": "vllm", "engine_set": ["dtype=float32"]})
    models["judge"] = models["judge"].model_copy(update={"adapter": None})  # candidate by an adapter, judge by the base
    made = run_step(store, score, score.config(samples=2), pool, lease=leases(models, store))
    assert store.read(made)["clear_confidence"].null_count() == 0
    [engine] = [e for (kind, *_), e in engines._LOADED.items() if kind == "vllm"]
    assert engine._base.process.starts == 1
    pid = engine._base.process.pid
    engines.release()
    assert not psutil.pid_exists(pid)

    again = run_step(store, score, score.config(samples=2, beta=0.5), pool, lease=leases(models, store))
    assert again != made and engines._LOADED
    [engine] = [e for (kind, *_), e in engines._LOADED.items() if kind == "vllm"]
    assert engine._base.process.starts == 0
    facts = store.run_facts(again)
    assert facts["requests"] == facts["from_store"] == 3 * 48
    engines.release()
