import json
import shutil

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from trl import DPOConfig

from storage.schema import message
from tests.rows import rows
from tests.training.families import tokenizer
from training.checkpoint import latest
from training.dpo import encode_pairs, pair_of, prefer
from training.encode import Template, load_tokenizer
from training.running import arguments
from training.settings import PreferConfig, TrainError

ASKED = [f"Is {i} even?" for i in range(8)]
RIGHT = rows(*[(q, "no" if i % 2 else "yes") for i, q in enumerate(ASKED)])
WRONG = rows(*[(q, "yes" if i % 2 else "no") for i, q in enumerate(ASKED)])
PAIRS = pl.DataFrame({"id": RIGHT["id"], "chosen": RIGHT["messages"], "rejected": WRONG["messages"]})
CONFIG = PreferConfig(optimizer_steps=10, batch_size=4, learning_rate=3e-3)


class Killed(Exception):
    pass


def kill_at(step):
    def progress(now, total, loss):
        if now == step:
            raise Killed

    return progress


@pytest.mark.parametrize("more", [{}, {"method": "qlora"}], ids=["lora", "qlora"])
def test_a_run_that_was_killed_goes_on_to_the_same_losses_and_the_same_bytes(tiny_model, tiny_adapters, tmp_path, more):
    config, start = CONFIG.model_copy(update=more), tiny_adapters[0]
    whole = prefer(tiny_model, start, PAIRS, tmp_path / "whole", config, name="tiny")
    with pytest.raises(Killed):
        how = {"progress": kill_at(7), "checkpoints": tmp_path / "c", "every": 0}
        prefer(tiny_model, start, PAIRS, tmp_path / "part", config, **how)
    assert latest(tmp_path / "c").name == "checkpoint-6"
    found = prefer(tiny_model, start, PAIRS, tmp_path / "part", config, name="tiny", checkpoints=tmp_path / "c")
    assert found.resumed_at == 6 and found.curve.equals(whole.curve)
    assert whole.losses[-1] < 0.6 < whole.losses[0]
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "part" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("less", [{"rows_at_once": 2}, {"gradient_checkpointing": "on"}])
def test_what_takes_less_memory_is_the_same_step(tiny_model, tmp_path, less):
    config = CONFIG.model_copy(update={"optimizer_steps": 4})
    whole = prefer(tiny_model, None, PAIRS, tmp_path / "whole", config)
    parts = prefer(tiny_model, None, PAIRS, tmp_path / "parts", config.model_copy(update=less))
    assert parts.losses == pytest.approx(whole.losses, abs=1e-4)


def test_a_pair_is_its_prompt_and_what_the_assistant_says_with_its_end_token(tiny_model):
    template = Template(load_tokenizer(tiny_model))
    pair = pair_of(template, PAIRS.row(0, named=True))
    said = [template.tokenizer.decode(part) for part in (pair.prompt, pair.chosen, pair.rejected)]
    assert said == ["<|bos|><|user|>Is 0 even?<|end|><|assistant|>", "yes<|end|>", "no<|end|>"]
    assert pair.tokens == 2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected)


def test_only_the_last_answer_of_a_conversation_is_preferred(tiny_model):
    template = Template(load_tokenizer(tiny_model))
    talk = [message("user", "a"), message("assistant", "b"), message("user", "c")]
    row = {"id": "r0", "chosen": [*talk, message("assistant", "good")], "rejected": [*talk, message("assistant", "go")]}
    pair = pair_of(template, row)
    assert template.tokenizer.decode(pair.prompt).endswith("b<|end|><|user|>c<|end|><|assistant|>")
    assert template.tokenizer.decode(pair.chosen) == "good<|end|>"


def test_tool_calls_are_learnt():
    calls = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}"
        "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    template = Template(tokenizer("chatml", calls))
    told = [json.dumps([{"name": "rain", "arguments": {"days": n}}]) for n in (1, 2)]
    row = {"id": "r0"} | {
        which: [message("user", "rain?"), message("assistant", "", call)]
        for which, call in zip(("chosen", "rejected"), told, strict=True)
    }
    pair = pair_of(template, row)
    assert '"days": 1' in template.tokenizer.decode(pair.chosen)
    assert '"days": 2' in template.tokenizer.decode(pair.rejected)


def test_a_pair_over_the_length_is_left_out_shortened_or_refused_as_asked(tiny_model, tmp_path):
    talk = [message(role, letter * 30) for role, letter in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    long = [message("user", "x" * 99)]
    both = [[[*said, message("assistant", answer)] for said in (talk, long, talk[2:])] for answer in ("yes", "no")]
    pairs = pl.DataFrame({"id": ["r0", "r1", "r2"], "chosen": both[0], "rejected": both[1]})
    template = Template(load_tokenizer(tiny_model))
    told, left_out = encode_pairs(template, pairs, 64, "drop")
    assert [pair.id for pair in told] == ["r2"] and list(left_out) == ["r0", "r1"]
    assert left_out["r1"] == "107 tokens, over 64"
    told, left_out = encode_pairs(template, pairs, 64, "truncate")
    assert [(pair.id, pair.cut) for pair in told] == [("r0", 2), ("r2", 0)] and list(left_out) == ["r1"]
    assert told[0].prompt == told[1].prompt and told[0].chosen == told[1].chosen
    with pytest.raises(TrainError, match=r"pair r0 has 102 tokens, over the 64 of --max-length.*--too-long drop"):
        encode_pairs(template, pairs, 64, "refuse")
    with pytest.raises(TrainError, match=r"all 3 pairs are longer than the 8 tokens of --max-length"):
        encode_pairs(template, pairs, 8, "truncate")
    short = CONFIG.model_copy(update={"max_length": 64, "optimizer_steps": 1})
    found = prefer(tiny_model, None, pairs, tmp_path, short)
    assert found.rows == 1 and found.notes == ("2 pairs were left out, such as r0 (102 tokens, over 64)",)
    wide = pairs.with_columns(pl.Series("chosen", [[message("user", "x" * 300), message("assistant", "a")]] * 3))
    with pytest.raises(TrainError, match="over the 256 of --max-length and the model's context"):
        prefer(tiny_model, None, wide, tmp_path, CONFIG.model_copy(update={"too_long": "refuse"}))


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_pairs(tiny_model, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.embed_tokens.weight"][load_tokenizer(tiny_model)("z")["input_ids"][0]] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    odd = rows(*[("zebra" if i == 5 else q, "no") for i, q in enumerate(ASKED)])["messages"]
    other = rows(*[("zebra" if i == 5 else q, "yes") for i, q in enumerate(ASKED)])["messages"]
    pairs = pl.DataFrame({"id": RIGHT["id"], "chosen": odd, "rejected": other})
    one = CONFIG.model_copy(update={"rows_at_once": 1})
    with pytest.raises(TrainError, match=r"the loss is no number at one of the 1 pairs r5; lower the learning rate"):
        prefer(broken, None, pairs, tmp_path / "out", one)


def test_on_a_machine_with_two_gpus_one_process_takes_one(tmp_path):
    class TwoGpus(DPOConfig):
        def __post_init__(self):
            super().__post_init__()
            self._n_gpu = 2  # as transformers counts them

    assert TwoGpus(output_dir=str(tmp_path), use_cpu=True).n_gpu == 2  # which TRL refuses
    assert arguments(TwoGpus, tmp_path, CONFIG, 0.1).n_gpu == 1
