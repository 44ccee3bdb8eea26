"""What `thresher run` reads: a pool, a held-out set, a model, a budget, and lists of steps.

pool: raw.jsonl                      # relative to the config file
heldout: test.jsonl
model: nano                          # or any path or hub name
budget: {rows: 700, rounds: 3, optimizer_steps: 150}
score:
  - {step: embed}
  - {step: clear-score, with: {samples: 5}}
choose: {step: kmeans-quality}
feedback: [{step: reweight-clusters}]
seeds: [0]
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from curation.step import StepConfig, find_step
from flows.engine_settings import EngineSettings, Local
from flows.own_steps import ConfigError, load_steps
from training.settings import PreferConfig, TrainConfig


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, populate_by_name=True)


class Use(Strict):
    step: str
    """Name of a registered step."""

    with_: dict[str, Any] = Field(default_factory=dict, alias="with")
    """Its settings; the defaults are the papers'."""

    from_: str | None = Field(None, alias="from")
    """Under `feedback`: a file of rows that it grows from, in the place of the pool, relative to the config file."""

    def config(self, **budget: Any) -> StepConfig:
        """The step's settings, with what the loop decides (`rows`, `round`, `seed`) where the step has such a field."""
        known = find_step(self.step).config.model_fields
        given = {k: v for k, v in budget.items() if k in known and k not in self.with_}
        return settings(self.step, {**given, **self.with_})


class Budget(Strict):
    rows: int = Field(700, ge=1)
    """Rows that each round's choice has."""

    tokens: int | None = Field(None, ge=1)
    """In the place of rows: tokens that each round's choice may hold."""

    rounds: int = Field(3, ge=1, le=50)
    """Most turns of the loop."""

    optimizer_steps: int = Field(150, ge=1)
    """Optimiser steps of every training run, the baselines' included."""

    stop_when_flat: bool = False
    """Stop when a round's gain on the validation rows is inside its 95 % interval."""

    grown: float | None = Field(None, ge=0, lt=1)
    """Largest share of a round's choice, in rows or in tokens, that grown rows may be; any, if not given."""

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if self.tokens and "rows" in self.model_fields_set:
            raise ValueError("give rows or tokens, not both")
        return self


class RoleModel(Strict):
    model: str | None = None
    """Model of this role; the loop's model if not given."""

    adapter: str | None = None
    """Folder of a PEFT adapter; `last-student` is the adapter of the round before, from the second round on."""

    engine: EngineSettings | None = None
    """Where this role's model runs; the loop's engine if not given."""


Roles = dict[Literal["judge", "candidate", "teacher", "embedder", "nli", "reward", "unieval"], RoleModel]


class Given(Strict):
    """What a run and a comparison are given alike: data, model, and how it is trained and tested."""

    name: str
    """Name of the run: the datasets of it are named after it."""

    pool: str
    """File of raw instruction data, relative to the config file."""

    heldout: str
    """File of held-out rows, read by the report alone."""

    spoilt: str | None = None
    """Where it is known which rows are wrong: JSON lines with `line`, which only the report reads."""

    model: str = "nano"
    """Base model that is tuned: `nano`, a folder or a hub name."""

    engine: EngineSettings = Local()
    """Where models run: local, vllm, or a server: `vllm`, or `{kind: vllm, tensor_parallel: 2}`."""

    roles: Roles = Field(default_factory=dict)
    """Models of the other roles (judge, candidate, teacher); the base with its `instruct` adapter if it has one."""

    ray: str | None = None
    """Cluster whose nodes share the work of a step: local, auto, host:port or ray://host:port; docs/cluster.md."""

    steps: list[str] = Field(default_factory=list)
    """Files with steps of your own, relative to the config file; docs/own-steps.md says how they look."""

    validation: float = Field(0.05, gt=0, lt=0.5)
    """Share of the pool that is kept for decisions and never trained on."""

    train: dict[str, Any] = Field(default_factory=dict)
    """Settings of the trainer other than its number of steps and its seed."""

    evaluate: dict[str, Any] = Field(default_factory=dict)
    """Settings of the `evaluate` step."""

    check: list[Use] = Field(default_factory=list)
    """Score steps that say after `evaluate` which answers are right: `judge-answers` with a threshold, or your own."""

    seeds: list[Annotated[int, Field(ge=0, strict=True)]] = Field([0], min_length=1)
    """One whole loop, or one training of every arm, for each."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed stands there twice, and says nothing new the second time")
        return seeds


class LoopConfig(Given):
    budget: Budget = Budget()
    score: list[Use] = Field(default_factory=list)
    """Steps that score, mark and correct the pool, in order, each round."""

    choose: Use = Use(step="kmeans-quality")
    """Step that chooses the rows of a round."""

    feedback: list[Use] = Field(default_factory=list)
    """Steps by which a round's results change the next."""

    approve: bool = False
    """Wait for a person to approve of corrected rows, in the UI or by `thresher approve`, before training on them."""

    baselines: bool = True
    """Also train on a random choice of the same size and on the full pool."""


def load(path: Path, changes: list[str] = ()) -> LoopConfig:
    """Read the config of a run; `changes` are `key=value` with dots, such as `budget.rounds=2`."""
    config = read(path, changes, LoopConfig)
    check_given(path, config)
    check_steps(path, config)
    return config


def read(path: Path, changes: list[str], kind: type[Strict]) -> Any:
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no config {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as why:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(why).split())}") from None
    if not isinstance(said, dict):
        raise ConfigError(f"{path} holds no keys; see examples/snips for one that works")
    said.setdefault("name", path.resolve().parent.name)
    apply_changes(said, changes)
    try:
        config = kind.model_validate(said)
    except ValidationError as wrong:
        raise ConfigError(f"{path}: {explain(wrong, kind)}") from None
    load_steps(path.parent / file for file in config.steps)
    return config


def check_given(path: Path, config: Given) -> None:
    if decided := {"optimizer_steps", "seed"} & set(config.train):
        raise ConfigError(f"{path}: train: {sorted(decided)} is said by `budget` and `seeds`, for all arms alike")
    train_settings(config.train)
    settings("evaluate", config.evaluate)
    _check_kinds(path, "check", ("score",), config.check)
    for use in config.check:
        if getattr(use.config(), "threshold", 1.0) is None:
            raise ConfigError(f"{path}: check: {use.step} without a threshold changes no verdict; give it one")
    for key in ("pool", "heldout", "spoilt"):
        if (file := getattr(config, key)) and not (path.parent / file).is_file():
            raise ConfigError(f"{path}: {key}: there is no file {path.parent / file}")


def check_steps(path: Path, said: Any, where: str = "") -> None:
    """Every step of a run or an arm is there, with settings that it has, in a place where its kind belongs."""
    for key, kinds, uses in (
        ("score", ("score", "filter", "revise"), said.score),
        ("choose", ("select",), [said.choose]),
        ("feedback", ("make", "table", "revise"), said.feedback),
    ):
        _check_kinds(path, f"{where}{key}", kinds, uses)
    if decided := {"rows", "tokens", "round", "seed"} & set(said.choose.with_):
        raise ConfigError(
            f"{path}: {where}choose: {sorted(decided)} is said by `budget` and `seeds`, for all arms alike"
        )
    _check_growth(path, f"{where}feedback", said.feedback)


def _check_growth(path: Path, where: str, uses: list[Use]) -> None:
    makes = [(use.step, use.from_) for use in uses if find_step(use.step).kind == "make"]
    if twice := [step for step, from_ in makes if makes.count((step, from_)) > 1]:
        raise ConfigError(f"{path}: {where}: {twice[0]} stands there twice, and would write the same rows twice")
    for use in (u for u in uses if u.from_):
        if find_step(use.step).kind != "make" or "results" in find_step(use.step).tables:
            raise ConfigError(f"{path}: {where}: {use.step} grows from rows of the pool; leave out `from`")
        if not (path.parent / use.from_).is_file():
            raise ConfigError(f"{path}: {where}: there is no file {path.parent / use.from_} to grow from")


def _check_kinds(path: Path, where: str, kinds: tuple[str, ...], uses: list[Use]) -> None:
    for use in uses:
        use.config()
        if use.from_ and not where.endswith("feedback"):
            raise ConfigError(f"{path}: {where}: {use.step}: `from` belongs under feedback, to a step that makes rows")
        if (kind := find_step(use.step).kind) not in kinds:
            raise ConfigError(
                f"{path}: {where}: {use.step} is a {kind} step; a {' or '.join(kinds)} step belongs there"
            )


def apply_changes(said: dict[str, Any], changes: list[str]) -> dict[str, Any]:
    """Settings with `key=value` (dots lead into what a key holds) written into them."""
    for change in changes:
        try:
            _change(said, change)
        except (ValueError, IndexError, yaml.YAMLError) as why:
            raise ConfigError(f"--set {change}: {' '.join(str(why).split())}") from None
    return said


def settings(step: str, said: dict[str, Any]) -> StepConfig:
    kind = find_step(step).config
    try:
        return kind.model_validate(said)
    except ValidationError as wrong:
        raise ConfigError(f"step {step}: {explain(wrong, kind)}") from None


def train_settings(said: Mapping[str, Any]) -> TrainConfig:
    return _checked("train", TrainConfig, said)


def prefer_settings(said: Mapping[str, Any]) -> PreferConfig:
    return _checked("prefer", PreferConfig, said)


def _checked(command: str, kind: type[BaseModel], said: Mapping[str, Any]) -> Any:
    try:
        return kind.model_validate(said)
    except ValidationError as wrong:
        raise ConfigError(f"{command}: {explain(wrong, kind)}") from None


def explain(wrong: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that is wrong, in one line, with what could have been meant."""
    told = wrong.errors()
    first = next(
        (e for e in told if e["type"] == "extra_forbidden"), told[0]
    )  # a misspelt key also lacks the right one
    where = ".".join(str(part) for part in first["loc"])
    if not where:  # settings that contradict each other
        return first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = sorted({name for kind in (model, *Strict.__subclasses__()) for name in kind.model_fields})
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(model.model_fields)}"
        return f"unknown key {where!r}{hint}"
    if first["type"] == "secret":  # what was given may be one, and is shown nobody
        return f"{where!r}: {first['msg']}"
    return f"{where!r}: {first['msg'][0].lower()}{first['msg'][1:]}, not {str(first.get('input'))[:60]!r}"


def _change(said: dict, change: str) -> None:
    key, equals, value = change.partition("=")
    if not equals:
        raise ConfigError(f"--set takes key=value, not {change!r}")
    *path, last = key.strip().split(".")
    for part in path:
        said = said[int(part)] if isinstance(said, list) else said.setdefault(part, {})
        if not isinstance(said, dict | list):
            raise ConfigError(f"--set {change}: {part!r} holds no keys")
    if isinstance(said, list):
        said[int(last)] = yaml.safe_load(value)
    else:
        said[last] = yaml.safe_load(value)
