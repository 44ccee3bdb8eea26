import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from storage.schema import message
from tests.rows import rows
from training.batch import order
from training.loss import _full_attention, token_losses
from training.sft import TrainConfig, TrainError, train

ROWS = rows(*[(f"say {i} please" + "." * i, "yes" if i % 2 else "no") for i in range(12)])
CONFIG = TrainConfig(optimizer_steps=12, batch_size=4, rank=4, alpha=8, learning_rate=1e-2, seed=3)


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("adapter")
    seen = []
    facts = train(tiny_model, ROWS, out, CONFIG, name="tiny", progress=lambda *told: seen.append(told))
    return out, facts, seen


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_the_loss_falls_and_every_step_is_told(trained):
    _, facts, seen = trained
    assert facts.final_loss < 0.7 * facts.losses[0]
    assert [(step, total) for step, total, _ in seen] == [(i, 12) for i in range(1, 13)]
    assert facts.losses == tuple(loss for *_, loss in seen)
    assert facts.rows == 12


def test_the_loss_is_that_of_the_assistants_tokens_alone(tiny_model, tmp_path):
    facts = train(tiny_model, ROWS[:4], tmp_path, CONFIG.model_copy(update={"optimizer_steps": 1}))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    total, count = 0.0, 0
    for messages in ROWS["messages"][:4]:
        ids = tokenizer(f"<|bos|><|user|>{messages[0]['content']}<|end|><|assistant|>{messages[1]['content']}<|end|>")
        ids, said = torch.tensor([ids["input_ids"]]), len(messages[1]["content"]) + 1
        with torch.inference_mode():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        total, count = total - float(logprobs[-said:].sum()), count + said
    assert facts.losses[0] == pytest.approx(total / count, abs=1e-4)
    assert facts.learnable == count


@pytest.mark.parametrize("alike", [40, 200])
def test_a_beginning_that_is_read_once_changes_neither_loss_nor_gradients(tiny_model, alike):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    texts = [f"<|bos|><|user|>{'w' * alike}{q}<|end|><|assistant|>" for q in ("?", " one?", " another?")]
    asked = [tokenizer(t)["input_ids"] for t in texts]
    whole = [a + tokenizer(f"{said}<|end|>")["input_ids"] for a, said in zip(asked, ("yes", "no", ""), strict=True)]
    width = max(map(len, whole))
    ids = torch.tensor([w + [0] * (width - len(w)) for w in whole])
    mask = torch.tensor([[1] * len(w) + [0] * (width - len(w)) for w in whole])
    labels = ids.masked_fill(mask == 0, -100)
    for row, a in zip(labels, asked, strict=True):
        row[: len(a)] = -100
    told, tokens = [], []
    model.get_input_embeddings().register_forward_hook(lambda _, given, __: tokens.append(given[0].numel()))
    for share in (False, True):
        model.zero_grad()
        loss = token_losses(model, ids, labels, mask, share=share)[0].sum()
        loss.backward()
        told.append([loss, *[p.grad for p in model.parameters()]])
    assert sum(tokens[1:]) < 0.8 * tokens[0]
    for apart, shared in zip(*told, strict=True):
        torch.testing.assert_close(shared, apart, atol=1e-4, rtol=1e-4)


def test_a_model_with_a_sliding_window_reads_every_row_whole(tiny_model):
    from transformers import MistralConfig

    config = AutoModelForCausalLM.from_pretrained(tiny_model).config
    assert _full_attention(config)
    assert not _full_attention(MistralConfig(num_hidden_layers=2, sliding_window=8))


def test_a_model_that_carries_a_state_on_reads_every_row_whole():
    from transformers import JambaConfig, Lfm2Config, MambaConfig

    assert not _full_attention(MambaConfig(num_hidden_layers=2))
    assert not _full_attention(JambaConfig(num_hidden_layers=8))
    assert not _full_attention(Lfm2Config(num_hidden_layers=4, layer_types=["conv", "full_attention"] * 2))


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(trained, tiny_model, tmp_path):
    torch.rand(7)  # what was drawn before must not matter
    again, other = tmp_path / "again", tmp_path / "other"
    train(tiny_model, ROWS, again, CONFIG, name="tiny")
    assert contents(again) == contents(trained[0])
    train(tiny_model, ROWS, other, CONFIG.model_copy(update={"seed": 4}), name="tiny")
    assert contents(other)["adapter_model.safetensors"] != contents(again)["adapter_model.safetensors"]


def test_the_folder_is_plain_peft_and_names_no_path_of_this_machine(trained, tiny_model):
    from peft import PeftModel

    folder, _, _ = trained
    assert sorted(contents(folder)) == ["adapter_config.json", "adapter_model.safetensors"]
    said = json.loads((folder / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == "tiny"
    assert said["target_modules"] == sorted(said["target_modules"])
    assert str(tiny_model) not in (folder / "adapter_config.json").read_text()
    ids = torch.tensor([[0, 2, 40, 4, 3]])
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = base(ids).logits
    assert not torch.allclose(PeftModel.from_pretrained(base, folder)(ids).logits, before, atol=1e-2)


def test_a_row_without_a_learnable_token_is_refused_by_name(tiny_model, tmp_path):
    answered, silent = [message("user", "q"), message("assistant", "a")], [message("user", "q")]
    silent = rows(("", ""), ("", ""), messages=[answered, silent])
    with pytest.raises(TrainError, match="row r1 has no learnable token"):
        train(tiny_model, silent, tmp_path, CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_no_rows_are_refused(tiny_model, tmp_path):
    with pytest.raises(TrainError, match="no row to train on"):
        train(tiny_model, ROWS[:0], tmp_path, CONFIG)


def test_every_row_is_seen_once_an_epoch_and_batches_hold_like_lengths():
    lengths = [(i * 37) % 101 for i in range(64)]
    drawn = order(lengths, TrainConfig(optimizer_steps=20, batch_size=8))
    assert len(drawn) == 160
    assert sorted(drawn[:128]) == sorted([*range(64)] * 2)
    batches = [[lengths[i] for i in drawn[k : k + 8]] for k in range(0, 128, 8)]
    assert max(max(batch) - min(batch) for batch in batches) < 20
