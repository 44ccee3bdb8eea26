import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.engines import NANO
from storage.schema import message
from tests.rows import rows
from training.model import load_model
from training.sft import TrainConfig, TrainError, train
from training.sizes import parameters

POOL = rows(*[(f"Is {i} even?", "no" if i % 2 else "yes") for i in range(24)])
SHORT = {"optimizer_steps": 12, "batch_size": 8}


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """A run of each method on the embedded model: folder and facts."""
    made = {}
    for name, more in {
        "lora": {},
        "dora": {"dora": True, "targets": "q_proj,v_proj"},
        "rslora": {"rslora": True},
        "qlora": {"method": "qlora"},
        "full": {"method": "full"},
    }.items():
        out = tmp_path_factory.mktemp(name)
        made[name] = out, train(NANO, POOL, out, TrainConfig(**SHORT, **more), name="nano")
    return made


@pytest.mark.parametrize("method", ["lora", "dora", "rslora", "qlora", "full"])
def test_every_method_reduces_the_loss_of_the_embedded_model(nano, method):
    _, facts = nano[method]
    assert facts.final_loss < 0.6 * facts.losses[0]


def test_an_adapter_says_what_it_is_in_peft_alone(nano):
    said = {k: json.loads((nano[k][0] / "adapter_config.json").read_text()) for k in nano if k != "full"}
    assert said["dora"]["use_dora"] and said["dora"]["target_modules"] == ["q_proj", "v_proj"]
    assert said["rslora"]["use_rslora"] and not said["lora"]["use_rslora"]
    assert said["qlora"] == said["lora"]


@pytest.mark.parametrize("method", ["lora", "dora", "rslora", "qlora"])
def test_an_adapter_gives_the_same_numbers_in_peft_and_in_the_engine(nano, method):
    from peft import PeftModel

    from synthesis.local_engine import LocalEngine

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32), nano[method][0])
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    asked = [message("user", "Is 7 even?"), message("assistant", "no")]
    ids = tokenizer.apply_chat_template(asked, return_dict=True, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        all_of_them = model.eval()(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    for merge_below in (0, 20_000_000):
        [found] = LocalEngine(NANO, nano[method][0], device="cpu", merge_below=merge_below).logprobs([asked])
        assert found == pytest.approx(all_of_them[-len(found) :].tolist(), abs=1e-4)


def test_a_full_run_gives_a_model_that_loads_by_itself(nano):
    folder, facts = nano["full"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    asked = [message("user", "Is 1 even?"), message("assistant", "no")]
    ids = tokenizer.apply_chat_template(asked, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.inference_mode():
        losses = -model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    assert float(losses[-2:].mean()) < 0.6 * facts.losses[0]
    assert str(NANO) not in (folder / "config.json").read_text()


def test_gradients_of_a_4_bit_model_are_the_same_before_and_after_an_evaluation(monkeypatch):
    import bitsandbytes

    # as on a CPU that has AVX512-bf16, where an evaluation would repack the weights for a path without gradients
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    model = load_model(NANO, TrainConfig(method="qlora", rank=4))
    ids = torch.arange(10, 26)[None]

    def gradients():
        model.zero_grad()
        model.train()(input_ids=ids, labels=ids).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    before = gradients()
    with torch.no_grad():
        model.eval()(input_ids=ids)
    torch.testing.assert_close(gradients(), before, atol=1e-3 * float(before.abs().max()), rtol=1e-3)
    assert float(before.abs().max()) > 0


def test_every_linear_layer_but_the_head_is_in_4_bits():
    import bitsandbytes

    model = load_model(NANO, TrainConfig(method="qlora", rank=4))
    four = [n for n, m in model.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(four) == 6 * 7
    state = next(m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)).weight.quant_state
    assert state.quant_type == "nf4" and state.nested


def test_a_target_that_no_layer_has_is_refused_with_those_there_are(tiny_model, tmp_path):
    with pytest.raises(TrainError, match=r"no linear layer is named 'q_prjo'; did you mean q_proj.*down_proj"):
        train(tiny_model, POOL, tmp_path, TrainConfig(**SHORT, targets="v_proj,q_prjo"))


def test_defaults_follow_the_size_of_the_model():
    assert parameters(NANO) == AutoModelForCausalLM.from_pretrained(NANO).num_parameters()
    rates = [TrainConfig().for_model(n).learning_rate for n in (6e6, 1.2e9, 8e9, 70e9)]
    assert rates == [2e-3, 2e-4, 2e-4, 1e-4]
    assert TrainConfig(method="full").for_model(8e9).learning_rate == 2e-5
    assert TrainConfig(learning_rate=0.5).for_model(8e9).learning_rate == 0.5


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 16, "rows_at_once": 5}, {"method": "full", "dora": True}, {"too_long": "shrug"}]
)
def test_settings_that_contradict_each_other_are_refused(wrong):
    with pytest.raises(ValueError):
        TrainConfig(**wrong)
