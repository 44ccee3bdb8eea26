import math

import polars as pl
import pytest
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.rows import rows
from training.dpo import prefer
from training.settings import PreferConfig, TrainConfig
from training.sft import train

POOL, WORSE = (rows(("q", a), ("r", a)) for a in ("yes", "no"))
PAIRS = pl.DataFrame({"id": POOL["id"], "chosen": POOL["messages"], "rejected": WORSE["messages"]})
STEPS, RATE = 20, 1e-3
FALLS = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "constant": lambda done: 1.0,
}


@pytest.fixture
def rates():
    """The learning rate of every optimiser step that is taken meanwhile."""
    told = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: told.append(optimizer.param_groups[0]["lr"]))
    yield told
    hook.remove()


@pytest.mark.parametrize("schedule", FALLS)
def test_the_learning_rate_rises_over_the_warm_up_and_falls_as_asked(tiny_model, tmp_path, rates, schedule):
    shared = {"optimizer_steps": STEPS, "batch_size": 1, "rank": 2, "learning_rate": RATE, "schedule": schedule}
    for run, warm in (
        (lambda: train(tiny_model, POOL, tmp_path / "train", TrainConfig(**shared)), 1),  # 5 % of the steps
        (lambda: prefer(tiny_model, None, PAIRS, tmp_path / "prefer", PreferConfig(**shared)), 2),  # 10 %
    ):
        rates.clear()
        run()
        after = range(STEPS - warm)
        wanted = [i / warm for i in range(warm)] + [FALLS[schedule](i / (STEPS - warm)) for i in after]
        assert rates == pytest.approx([RATE * share for share in wanted], abs=1e-9)
