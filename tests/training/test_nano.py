"""Quick checks of the shipped nano model: it loads, it is small, its chat template marks replies, its adapter fits."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.nano.labels import HELD_OUT_INTENTS, SNIPS_LABELS, bank_phrases, intent_names

NANO = Path(__file__).parents[2] / "models" / "nano"
CHAT = [{"role": "user", "content": "Which one: red, blue?\nthe sky"}, {"role": "assistant", "content": "blue"}]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(NANO)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)


def test_model_is_a_small_llama_in_bfloat16(model) -> None:
    config = json.loads((NANO / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["hidden_size"] // config["num_attention_heads"] == 64
    assert model.num_parameters() < 7_000_000
    assert sum(path.stat().st_size for path in NANO.rglob("*") if path.is_file()) <= 24 * 2**20


def test_plain_load_computes_in_float32() -> None:
    assert AutoModelForCausalLM.from_pretrained(NANO).dtype == torch.float32


def test_template_marks_the_reply(tokenizer) -> None:
    found = tokenizer.apply_chat_template(CHAT, return_assistant_tokens_mask=True, return_dict=True)
    marked = [i for i, inside in zip(found["input_ids"], found["assistant_masks"], strict=True) if inside]
    assert tokenizer.decode(marked) == "blue<|end|>"
    assert found["input_ids"][-1] == tokenizer.eos_token_id


def test_generation_prompt_opens_the_reply(tokenizer) -> None:
    text = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|user|>Which one: red, blue?\nthe sky<|end|><|assistant|>"


@pytest.mark.parametrize("text", ["get weather", " two\n\nlines\n and  spaces", "Zürich, 12.5 %\n", ""])
def test_tokenizer_gives_text_back(tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_letters_are_one_token(tokenizer) -> None:
    assert {len(tokenizer(letter, add_special_tokens=False)["input_ids"]) for letter in "ABC"} == {1}


def test_adapter_loads_and_changes_the_answer_scores(model, tokenizer) -> None:
    config = json.loads((NANO / "instruct" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "nano"
    assert config["target_modules"] == sorted(config["target_modules"])
    ids = torch.tensor([tokenizer("<|bos|><|user|>hello<|end|><|assistant|>", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        adapted = PeftModel.from_pretrained(model, NANO / "instruct")(input_ids=ids).logits
    assert adapted.isfinite().all() and not torch.allclose(plain, adapted)


def test_no_label_of_the_demo_was_a_name_in_the_training() -> None:
    used = {name for several in intent_names().values() for name in several} | set(bank_phrases())
    assert not used & set(SNIPS_LABELS)
    assert not used & {intent.replace("_", " ") for intent in HELD_OUT_INTENTS}
    assert not set(intent_names()) & set(HELD_OUT_INTENTS)
    assert len(set(HELD_OUT_INTENTS)) == 15
