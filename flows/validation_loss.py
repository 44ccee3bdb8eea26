"""The loss of a trained adapter on validation rows: one forward pass, nothing written."""

from pathlib import Path

from flows.config import LoopConfig, settings
from flows.models import tuned
from flows.tasks import run_one_step
from storage.store import Store


def validation_loss(config: LoopConfig, root: Path, label: str, rows: str, adapter: str) -> str:
    """The rows with `base_nll`: what `perplexity` tells of a base it tells of what a training made of it."""
    student = tuned(Store(root), config.model, adapter, config.engine)
    name, step = f"{config.name}.validated.{adapter}", settings("perplexity", {})
    return run_one_step(f"{label}measure", root, "perplexity", step, rows, {}, {"base": student}, name)
