import resource
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.rows import rows
from training.checkpoint import latest
from training.sft import TrainConfig, TrainError, train

POOL = rows(*[(f"say {i} please" + "." * i, "yes" if i % 2 else "no") for i in range(12)])
CONFIG = TrainConfig(optimizer_steps=10, batch_size=4, rank=4, learning_rate=1e-2, dropout=0.1, schedule="cosine")


class Killed(Exception):
    pass


def kill_at(step):
    def progress(now, total, loss):
        if now == step:
            raise Killed

    return progress


@pytest.mark.parametrize("more", [{}, {"method": "qlora"}, {"method": "full"}], ids=["lora", "qlora", "full"])
def test_a_run_that_was_killed_goes_on_to_the_same_losses_and_the_same_bytes(tiny_model, tmp_path, more):
    config = CONFIG.model_copy(update=more)
    whole = train(tiny_model, POOL, tmp_path / "whole", config, name="tiny")
    for step in (4, 8):
        with pytest.raises(Killed):
            how = {"progress": kill_at(step), "checkpoints": tmp_path / "c", "every": 0}
            train(tiny_model, POOL, tmp_path / "part", config, **how)
        assert latest(tmp_path / "c").name == f"checkpoint-{step - 1}"
        assert len([p for p in (tmp_path / "c").iterdir() if p.name.startswith("checkpoint")]) == 1
    found = train(tiny_model, POOL, tmp_path / "part", config, name="tiny", checkpoints=tmp_path / "c", every=0)
    assert found.resumed_at == 7
    assert found.tokens == whole.tokens == whole.tokens_in_loop
    assert 0.2 < found.tokens_in_loop / found.tokens < 0.4  # three steps of ten
    assert found.losses == whole.losses
    assert found.seen.equals(whole.seen)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "part" / path.name).read_bytes() == path.read_bytes()


def test_a_run_that_was_killed_goes_on_with_fewer_rows_at_once(tiny_model, tmp_path):
    config = CONFIG.model_copy(update={"dropout": 0.0, "optimizer_steps": 6})
    whole = train(tiny_model, POOL, tmp_path / "whole", config)
    with pytest.raises(Killed):
        how = {"progress": kill_at(4), "checkpoints": tmp_path / "c", "every": 0}
        train(tiny_model, POOL, tmp_path / "part", config, **how)
    less = config.model_copy(update={"rows_at_once": 2})
    found = train(tiny_model, POOL, tmp_path / "part", less, checkpoints=tmp_path / "c")
    assert found.resumed_at == 3 and found.losses == pytest.approx(whole.losses, abs=1e-4)
    assert found.seen["times"].to_list() == whole.seen["times"].to_list()


def test_a_checkpoint_that_was_not_finished_is_not_one(tiny_model, tmp_path):
    (tmp_path / "unfinished" / "checkpoint-9").mkdir(parents=True)
    assert latest(tmp_path) is None
    assert train(tiny_model, POOL, tmp_path / "out", CONFIG, checkpoints=tmp_path).resumed_at == 0


def test_a_disk_that_is_full_leaves_the_checkpoint_before_intact(tiny_model, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_at_5(now, total, loss):
        if now == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))

    try:
        with pytest.raises(TrainError, match=r"could not be written.* step 4 is intact; free the disk"):
            train(tiny_model, POOL, tmp_path / "out", CONFIG, progress=fill_at_5, checkpoints=tmp_path / "c", every=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["checkpoint-4"]
    again = train(tiny_model, POOL, tmp_path / "out", CONFIG, checkpoints=tmp_path / "c")
    assert again.resumed_at == 4 and again.losses == train(tiny_model, POOL, tmp_path / "other", CONFIG).losses


def test_a_disk_that_is_full_at_the_end_is_said(tiny_model, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(now, total, loss):
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))

    try:
        with pytest.raises(TrainError, match=r"could not be written.*free the disk"):
            train(tiny_model, POOL, tmp_path / "out", CONFIG, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    from transformers import AutoTokenizer

    bad = AutoTokenizer.from_pretrained(tiny_model)("z")["input_ids"][0]
    weights["model.embed_tokens.weight"][bad] = torch.nan
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    pool = rows(*[("zebra" if i == 5 else f"say {i}", "yes") for i in range(8)])
    with pytest.raises(TrainError, match=r"the loss is no number at 1 of 4 rows: r5; lower the learning rate"):
        train(tmp_path / "broken", pool, tmp_path / "out", CONFIG)
    assert not (tmp_path / "out").exists()


def test_what_was_seen_of_each_row_is_its_loss_the_first_time_and_the_last(tiny_model, tmp_path):
    config = CONFIG.model_copy(update={"dropout": 0.0, "optimizer_steps": 6, "max_length": 26})
    facts = train(tiny_model, POOL, tmp_path / "out", config)
    seen = {row["id"]: row for row in facts.seen.to_dicts()}
    assert list(seen) == [f"r{i}" for i in range(12)]
    assert seen["r11"]["left_out"].startswith("32 tokens") and seen["r11"]["times"] == 0
    assert sum(r["times"] for r in seen.values()) == 24
    again = [r for r in seen.values() if r["times"] > 1]
    assert sum(r["last_loss"] < r["first_loss"] for r in again) >= 6  # the others stood twice in one batch
    assert all(0 <= r["first_el2n"] <= 1 for r in seen.values() if r["times"])
    one = train(tiny_model, POOL[:4], tmp_path / "one", config.model_copy(update={"optimizer_steps": 1}))
    mean = sum(r["first_loss"] * r["learnt_tokens"] for r in one.seen.to_dicts()) / one.seen["learnt_tokens"].sum()
    assert mean == pytest.approx(one.losses[0], abs=1e-5)
