"""Training on the live rows of a dataset: an adapter, or a model, never twice for the same rows, base and settings."""

from collections.abc import Callable
from typing import Any

from flows.engines import EngineSpec
from flows.trained import Job, planned, read, sized, speed, trained_once
from storage.store import Store, StoreError
from training.settings import TrainConfig

VERSION = 4  # raise when the same rows and settings would give another adapter


def train_adapter(
    store: Store,
    rows: str,
    base: EngineSpec,
    config: TrainConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    every: float = 60.0,
) -> str:
    """Train on the live rows of a dataset; returns the id of the adapter, or of the model that a full run gives.

    Its side table `rows` tells of each row: tokens, how often it was seen, its loss the first and the last time, and
    why it was left out.
    """
    if base.adapter:
        raise StoreError(f"training starts from a base model, and {base.adapter} is an adapter; leave it out")
    job = sized(Job("train", rows, base, config))
    live = read(store, job)
    return trained_once(store, planned(job, VERSION, live, {"rows": rows}), job, live, progress, every)


def summary(facts: dict[str, Any], counts: dict[str, int]) -> list[str]:
    """A run's facts as lines for a person."""
    return [
        f"loss {facts['final_loss']:.4f} at the end, {counts['steps']:,} steps on {counts['rows']:,} rows; "
        f"{facts['tokens']:,} tokens, {facts['learnable_tokens']:,} of them learnt",
        *speed(facts, counts),
    ]
