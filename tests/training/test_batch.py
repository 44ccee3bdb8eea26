import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.rows import rows
from training.batch import Packed, Padded, keeps_apart, pack, packed_into
from training.encode import Template, encode_rows, load_tokenizer
from training.loss import token_losses
from training.sft import TrainConfig, train

POOL = rows(*[(f"say {i} please" + "." * (7 * i % 23), "yes" if i % 2 else "no, " * (i % 5) + "no") for i in range(16)])


@pytest.fixture(scope="module")
def batch(tiny_model):
    found = encode_rows(Template(load_tokenizer(tiny_model)), POOL, 200, "drop").encoded
    return [{"input_ids": e.tokens, "labels": e.labels, "row": i} for i, e in enumerate(found)]


def by_row(model, batch):
    rows, labels = batch.pop("rows"), batch["labels"]
    losses, places = token_losses(model, **batch)
    here = labels[:, places] != -100
    return torch.zeros(16).index_add_(0, rows[:, places][here], losses[here].detach())


def test_packed_and_unpacked_rows_have_the_same_loss(tiny_model, batch):
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    padded, packed = by_row(model, Padded(5)(batch)), by_row(model, Packed(5, 120)(batch))
    torch.testing.assert_close(packed, padded, atol=1e-4, rtol=0)
    assert padded.min() > 1
    fixed = Packed(5, 300, fixed=True)(batch)
    assert fixed["input_ids"].shape[1] == 300
    torch.testing.assert_close(by_row(model, fixed), padded, atol=1e-4, rtol=0)


def test_rows_that_are_packed_without_their_positions_have_another_loss(tiny_model, batch):
    model, packed = AutoModelForCausalLM.from_pretrained(tiny_model), Packed(5, 120)(batch)
    packed["position_ids"] = torch.arange(packed["input_ids"].shape[1]).expand_as(packed["input_ids"])
    assert (by_row(model, packed) - by_row(model, Padded(5)(batch))).abs().max() > 0.1


def test_a_pack_holds_every_row_once_in_few_sequences(batch):
    lengths = [len(b["input_ids"]) for b in batch]
    bins = pack(lengths, 120)
    assert sorted(i for held in bins for i in held) == list(range(16))
    assert all(sum(lengths[i] for i in held) <= 120 for held in bins)
    assert len(bins) == -(-sum(lengths) // 120)
    assert pack([200, 10], 120) == [[0], [1]]


def test_training_packed_is_the_same_training(tiny_model, tmp_path):
    config = TrainConfig(optimizer_steps=8, batch_size=8, rank=4, learning_rate=1e-2, max_length=120)
    plain = train(tiny_model, POOL, tmp_path / "plain", config)
    packed = train(tiny_model, POOL, tmp_path / "packed", config.model_copy(update={"packing": True}))
    assert packed.notes == () and packed.tokens == plain.tokens
    assert packed.losses == pytest.approx(plain.losses, abs=1e-4)
    last = [f.seen["last_loss"].to_list() for f in (plain, packed)]
    assert last[1] == pytest.approx(last[0], abs=1e-3)


def one_row_alone(model):
    """Tells packed rows apart in a single sequence only, as transformers does for FlashAttention."""
    told_apart = model.forward

    def forward(position_ids, **rest):
        asked, model.config._attn_implementation_internal = model.config._attn_implementation, "sdpa"
        if len(position_ids) > 1:
            position_ids = torch.arange(position_ids.shape[1]).expand_as(position_ids)
        found = told_apart(position_ids=position_ids, **rest)
        model.config._attn_implementation_internal = asked
        return found

    model.forward = forward
    return model


def test_a_model_that_mixes_packed_rows_is_found_out(tiny_model, batch):
    model, ids = AutoModelForCausalLM.from_pretrained(tiny_model), [b["input_ids"] for b in batch]
    assert keeps_apart(model, 5, ids)
    assert keeps_apart(model, 5, ids[:1])
    assert not keeps_apart(one_row_alone(model), 5, ids)


def test_for_flash_attention_the_rows_of_a_step_lie_in_one_sequence(tiny_model, batch):
    model, ids = one_row_alone(AutoModelForCausalLM.from_pretrained(tiny_model)), [b["input_ids"] for b in batch]
    assert packed_into(model, 120) == 120
    model.config._attn_implementation_internal = "flash_attention_2"
    assert keeps_apart(model, 5, ids)
    packed = Packed(5, packed_into(model, 120))(batch)
    assert packed["input_ids"].shape == (1, sum(map(len, ids)))
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.testing.assert_close(by_row(plain, packed), by_row(plain, Padded(5)(batch)), atol=1e-4, rtol=0)


def test_packing_turns_itself_off_where_rows_would_mix_and_says_so(tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    from tests.training.families import tokenizer

    torch.manual_seed(0)
    made = tokenizer("chatml")
    MambaForCausalLM(
        MambaConfig(vocab_size=len(made), hidden_size=16, num_hidden_layers=1, state_size=4, pad_token_id=0)
    ).save_pretrained(tmp_path / "mamba")
    made.save_pretrained(tmp_path / "mamba")
    config = TrainConfig(optimizer_steps=2, batch_size=4, rank=2, learning_rate=1e-3, packing=True, targets="in_proj")
    found = train(tmp_path / "mamba", POOL, tmp_path / "out", config)
    assert found.notes == ("packing is off: this model lets packed rows see each other",)
    assert len(found.losses) == 2


@pytest.mark.parametrize("less", [{"rows_at_once": 2}, {"gradient_checkpointing": "on"}])
def test_what_takes_less_memory_is_the_same_step(tiny_model, tmp_path, less):
    config = TrainConfig(optimizer_steps=4, batch_size=8, rank=4, learning_rate=1e-2)
    whole = train(tiny_model, POOL, tmp_path / "whole", config)
    parts = train(tiny_model, POOL, tmp_path / "parts", config.model_copy(update=less))
    assert parts.losses == pytest.approx(whole.losses, abs=1e-4)
