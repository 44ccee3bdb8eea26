import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.adapters import exported, merged, serve_command
from flows.config import LoopConfig
from flows.engines import NANO, EngineSpec
from flows.models import role_models, tuned, typed_models
from flows.training import train_adapter
from storage.schema import ROW, message
from storage.store import Manifest, Store, StoreError
from synthesis.local_engine import LocalEngine
from tests.rows import rows
from tests.synthesis.engines import free_port, needs_vllm, served
from training.save import merge
from training.settings import TrainConfig, TrainError

SHORT = {"optimizer_steps": 4, "batch_size": 4, "rank": 4, "learning_rate": 1e-2}
IDS = torch.tensor([[0, 2, 40, 4, 3, 41]])


@pytest.fixture(scope="module")
def store(tiny_model, tmp_path_factory):
    """A store with an adapter, a DoRA adapter and a full run, all of one dataset."""
    store = Store(tmp_path_factory.mktemp("store"))
    part = store.put_part("pool", rows(*[(f"q{i}", "yes") for i in range(4)]), ROW)
    store.seal(Manifest("pool", "rows", "test", 1, {}, {}, {}, ((part,),), counts={"rows": 4}))
    store.name("mine", "pool")
    for name, more in {"lora": {}, "dora": {"dora": True}, "full": {"method": "full"}}.items():
        store.name(name, train_adapter(store, "pool", EngineSpec(model=str(tiny_model)), TrainConfig(**SHORT, **more)))
    return store


def logits(model):
    with torch.inference_mode():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_merged_model_says_what_base_and_adapter_say(store, tiny_model, tmp_path, kind):
    from peft import PeftModel

    merged(store, store.resolve(kind), str(tiny_model), tmp_path / "out")
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = logits(base)
    both = PeftModel.from_pretrained(base, store.files(store.resolve(kind)))
    torch.testing.assert_close(logits(alone), logits(both), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(both), before, atol=1e-2)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert "library_name: transformers" in (tmp_path / "out" / "README.md").read_text()


def test_an_exported_adapter_loads_by_itself_and_its_card_names_the_data_by_key(store, tiny_model, tmp_path):
    exported(store, store.resolve("lora"), str(tiny_model), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"dataset `pool` (mine), content `{store.manifest('pool').digest}`: 4 rows" in card
    assert store.resolve("lora") in card and "learning rate: 0.01" in card and "library_name: peft" in card
    assert str(tiny_model.parent) not in card
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    with pytest.raises(StoreError, match="is there already"):
        exported(store, store.resolve("lora"), str(tiny_model), tmp_path / "out")


def test_an_adapter_of_another_base_is_not_merged_and_nothing_is_left(store, tiny_model, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(
        LlamaConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=2, vocab_size=262, intermediate_size=32)
    ).save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "other")
    with pytest.raises(StoreError, match="was trained on another model"):
        merged(store, store.resolve("lora"), str(tmp_path / "other"), tmp_path / "out")
    with pytest.raises(TrainError, match="is no adapter of"):
        merge(tmp_path / "other", store.files(store.resolve("lora")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_serve_command_makes_room_for_the_rank_and_leaves_the_head_alone(store, tiny_model):
    said = serve_command(store, store.resolve("lora"), str(tiny_model), "lora", 8000)
    assert said[said.index("--max-lora-rank") + 1] == "8"
    assert f"lora={store.files(store.resolve('lora'))}" in said
    assert "q_proj" in said and "lm_head" not in said
    assert said[0] == sys.executable and said[said.index("--max-loras") + 1] == "2"
    assert "--enable-lora" not in serve_command(store, store.resolve("full"), str(tiny_model), "full", 8000)
    with pytest.raises(StoreError, match="DoRA adapter, which vLLM does not serve"):
        serve_command(store, store.resolve("dora"), str(tiny_model), "dora", 8000)


@needs_vllm
@pytest.mark.real
@pytest.mark.timeout(900)
def test_the_printed_call_serves_the_adapter_and_beside_it_the_bare_model(store, tmp_path):
    """As it is printed, but for the number format and no compiling, so that it says what the local engine says."""
    learnt = TrainConfig(optimizer_steps=8, batch_size=4, learning_rate=4e-3)
    store.name("nano-lora", train_adapter(store, "pool", EngineSpec(), learnt))
    asked = [[message("user", f"Find me {what}, please")] for what in ("a song", "a film", "a book", "a table", "rain")]
    local = LocalEngine(NANO, device="cpu")
    tuned = local.with_adapter(store.files(store.resolve("nano-lora")))
    wanted = [c.text for e in (local, tuned) for [c] in e.generate(asked, max_tokens=6)]
    assert not set(wanted[:5]) & set(wanted[5:])
    port = free_port()
    command = serve_command(store, store.resolve("nano-lora"), "nano", "nano-lora", port)
    prompts = local._base.chat.encode(asked)
    with served([*command, "--dtype", "float32", "--enforce-eager"], port, tmp_path) as url:

        def ask(model, tokens):
            body = {"model": model, "prompt": tokens, "max_tokens": 6, "temperature": 0}
            return httpx.post(f"{url}/completions", json=body, timeout=300).json()["choices"][0]["text"].strip()

        names = [str(NANO)] * 5 + ["nano-lora"] * 5
        with ThreadPoolExecutor(10) as at_once:
            found = list(at_once.map(ask, names, prompts * 2))
    assert sum(a != b for a, b in zip(found, wanted, strict=True)) <= 1  # a near-tie


def test_an_adapter_is_not_used_with_another_base_of_the_same_shape(store, other_model, tmp_path):
    lora, other = store.resolve("lora"), str(other_model)
    for use in (
        lambda: merged(store, lora, other, tmp_path / "out"),
        lambda: exported(store, lora, other, tmp_path / "out"),
        lambda: serve_command(store, lora, other, "lora", 8000),
    ):
        with pytest.raises(StoreError, match=rf"{lora} was trained on another model than .*; name that one with --mod"):
            use()
    assert not (tmp_path / "out").exists()
    assert str(store.files(store.resolve("full"))) in serve_command(store, store.resolve("full"), other, "full", 8000)


def test_an_adapter_is_asked_beside_no_other_base_than_its_own(store, tiny_model, other_model, tmp_path):
    lora, other = store.files(store.resolve("lora")), str(other_model)
    copied = shutil.copytree(lora, tmp_path / "mine")
    for adapter, why in (
        ("lora", "was trained on another model than"),
        (lora, "another model"),
        (copied, "as it says"),
    ):
        for role in ("student", "judge"):
            with pytest.raises(StoreError, match=rf"{why}.*--model"):
                typed_models(store, [role], {role: other, f"{role}_adapter": str(adapter)})
            typed = {role: str(tiny_model), f"{role}_adapter": str(adapter)}
            assert typed_models(store, [role], typed)[role].adapter == str(copied if adapter is copied else lora)
    typed = {"engine": "openai", "engine_set": ["url=http://x/v1"], "judge": "served", "judge_adapter": "lora"}
    assert typed_models(store, ["judge"], typed)["judge"].adapter == str(lora)  # whose base lies elsewhere
    with pytest.raises(StoreError, match="name what `thresher train` made"):
        typed_models(store, ["judge"], {"judge": other, "judge_adapter": "mine"})
    said = {"name": "x", "pool": "p", "heldout": "h", "model": other, "roles": {"judge": {"adapter": str(copied)}}}
    with pytest.raises(StoreError, match="as it says"):
        role_models(LoopConfig.model_validate(said), store, None)


def test_what_was_not_trained_is_neither_merged_nor_served(store, tiny_model, tmp_path):
    with pytest.raises(StoreError, match="name what `thresher train` made"):
        merged(store, "pool", str(tiny_model), tmp_path / "out")
    with pytest.raises(StoreError, match="is a whole model already"):
        merged(store, store.resolve("full"), str(tiny_model), tmp_path / "out")


def test_a_full_run_is_asked_as_a_model_and_an_adapter_beside_its_base(store, tiny_model):
    lora, full = store.resolve("lora"), store.resolve("full")
    assert tuned(store, str(tiny_model), lora) == EngineSpec(model=str(tiny_model), adapter=str(store.files(lora)))
    assert tuned(store, str(tiny_model), full) == EngineSpec(model=str(store.files(full)))
    assert json.loads((store.files(full) / "config.json").read_text())["model_type"] == "llama"
