"""One of many trainings, and the loss of its adapter on validation rows: one forward pass, nothing written."""

from dataclasses import dataclass, replace
from pathlib import Path

from flows.config import LoopConfig, settings
from flows.models import tuned
from flows.tasks import run_one_step
from storage.store import Store


@dataclass(frozen=True, slots=True)
class Training:
    """What was trained on what with which seed, as far as it has come; or why it went no further."""

    what: str
    """For people, such as `subset 3`."""
    number: int | None
    """Of the subset, or of the rows that were asked for; None for a training of another run."""
    seed: int
    chosen: str = ""
    adapter: str = ""
    validated: str = ""
    failed: str | None = None

    @property
    def label(self) -> str:
        return f"{self.what}, seed {self.seed}, "


def measured(training: Training, config: LoopConfig, root: Path, rows: str) -> Training:
    """With the rows and their `base_nll`: what `perplexity` tells of a base it tells of what a training made of it."""
    student = tuned(Store(root), config.model, training.adapter, config.engine)
    name, step = f"{config.name}.validated.{training.adapter}", settings("perplexity", {})
    label = f"{training.label}measure"
    found = run_one_step(label, root, "perplexity", step, rows, {}, {"base": student}, name)
    return replace(training, validated=found)
