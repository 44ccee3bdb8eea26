"""What `thresher self-guide` reads: a model, and tasks that it is to teach itself from a few examples each.

tasks:
  reviews:
    pool: reviews.jsonl                # right rows of one task, relative to the config file: examples and validation
    heldout: reviews-test.jsonl
    guide: {labels: [good, bad]}
model: nano                            # or any path or hub name
search: {settings: 6}                  # try so many settings on the validation rows; none without it
seeds: [0, 1, 2]
"""

import itertools
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from flows.config import Budget, LoopConfig, Roles, Strict, Use, check_given, read, settings
from flows.engine_settings import EngineSettings, Local
from flows.own_steps import ConfigError

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9_-]{0,29}")
Lengths = Literal["auto", "both", "inputs", "outputs", "neither"]


@dataclass(frozen=True, slots=True)
class Setting:
    """What the paper searches: one setting for all tasks. None and `auto` are the paper's pipelines'."""

    temperature: float | None
    lengths: str
    epochs: int

    def guide(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "lengths": self.lengths}

    def __str__(self) -> str:
        heat = "temperature 0.7 with labels and 0.9 without" if self.temperature is None else self.temperature
        said = heat if self.temperature is None else f"temperature {heat}"
        return f"{said}, lengths {self.lengths}, {self.epochs} epochs"


class Search(Strict):
    settings: int = Field(ge=1)
    """Settings that are tried, of all that the lists below make: the config's own first, then others drawn by seed."""

    temperature: list[Annotated[float, Field(gt=0, le=2)]] = Field([0.6, 0.7, 0.8, 0.9, 1.0], min_length=1)
    """Sampling temperatures of inputs (the paper's)."""

    lengths: list[Lengths] = Field(["neither", "inputs", "outputs", "both"], min_length=1)
    """What must be about as long as the examples (the paper's)."""

    epochs: list[Annotated[int, Field(ge=1)]] = Field([1, 2, 3], min_length=1)
    """Epochs of the student's training (the paper's)."""


class GuidedTask(Strict):
    pool: str
    """File of right rows that share an instruction line: examples, and a share for validation."""

    heldout: str
    """File of held-out rows, read by the report alone."""

    guide: dict[str, Any] = Field(default_factory=dict)
    """Settings of `self-guide` for this task, such as its labels, over those of all tasks."""

    evaluate: dict[str, Any] = Field(default_factory=dict)
    """Settings of `evaluate` for this task, over those of all tasks."""


class SelfGuideConfig(Strict):
    name: str
    """Name of the run: the datasets of it are named after it."""

    tasks: dict[str, GuidedTask] = Field(min_length=1)
    """The tasks by name; each has a student of its own."""

    model: str = "nano"
    """The student: `nano`, a folder or a hub name."""

    engine: EngineSettings = Local()
    """Where the student answers: local, vllm, or a server."""

    roles: Roles = Field(default_factory=dict)
    """Models of other roles, for steps under `check`."""

    steps: list[str] = Field(default_factory=list)
    """Files with steps of your own, relative to the config file."""

    guide: dict[str, Any] = Field(default_factory=dict)
    """Settings of `self-guide` for all tasks."""

    epochs: int = Field(3, ge=1)
    """Epochs of the student's training on its own rows (the paper's)."""

    search: Search | None = None
    """Look for the setting whose least gain over few-shot prompting, of all tasks, is the greatest (max-min)."""

    validation: float = Field(0.3, gt=0, lt=0.5)
    """Share of each task's rows that the search decides by; they are no examples."""

    train: dict[str, Any] = Field(default_factory=dict)
    """Settings of the trainer other than its steps and its seed."""

    evaluate: dict[str, Any] = Field(default_factory=dict)
    """Settings of `evaluate` for all tasks."""

    check: list[Use] = Field(default_factory=list)
    """Score steps that say after `evaluate` which answers are right."""

    seeds: list[Annotated[int, Field(ge=0, strict=True)]] = Field([0], min_length=1)
    """A growth and a training of every task for each."""

    @model_validator(mode="after")
    def _names(self) -> "SelfGuideConfig":
        for name in self.tasks:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name[:50]!r} is no name of a task: up to 30 letters, digits, _ and -")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed stands there twice, and says nothing new the second time")
        return self

    def loop(self, task: str, steps: int = 1) -> LoopConfig:
        """A task as a run, so that what it shares with other runs is computed once."""
        said = self.tasks[task]
        shared = ("model", "engine", "roles", "steps", "validation", "train", "check", "seeds")
        return LoopConfig(
            **{name: getattr(self, name) for name in shared},
            name=f"{self.name}.{task}",
            pool=said.pool,
            heldout=said.heldout,
            evaluate=self.evaluate | said.evaluate,
            choose=Use(step="random"),
            budget=Budget(optimizer_steps=steps),
        )

    def use(self, task: str, setting: Setting | None = None) -> Use:
        """The step `self-guide` for a task."""
        said = self.guide | self.tasks[task].guide | (setting.guide() if setting else {})
        return Use(step="self-guide", **{"with": said})

    def own(self) -> Setting:
        """The setting that the config gives."""
        return Setting(self.guide.get("temperature"), self.guide.get("lengths", "auto"), self.epochs)

    def settings(self) -> list[Setting]:
        """Those that are tried: the config's own, and as many of the grid as the search may try."""
        if self.search is None:
            return [self.own()]
        grid = [Setting(*values) for values in itertools.product(*(getattr(self.search, k) for k in _SEARCHED))]
        others = [s for s in dict.fromkeys(grid) if s != self.own()]
        random.Random(self.seeds[0]).shuffle(others)
        return [self.own(), *others][: self.search.settings]


_SEARCHED = ("temperature", "lengths", "epochs")


def load_self_guide(path: Path, changes: list[str] = ()) -> SelfGuideConfig:
    """Read the config of a Self-Guide run."""
    config = read(path, changes, SelfGuideConfig)
    for name, task in config.tasks.items():
        check_given(path, config.loop(name))
        settings("self-guide", config.use(name).with_)
        if decided := sorted({"round", "seed"} & {*config.guide, *task.guide}):
            raise ConfigError(f"{path}: guide: {decided} is said by `seeds`")
        if config.search and (decided := sorted({"temperature", "lengths"} & set(task.guide))):
            raise ConfigError(f"{path}: tasks.{name}.guide: {decided} is what the search looks for; leave it out")
    return config
