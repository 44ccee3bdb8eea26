"""What a step is: a named, typed, pure function over rows, and the engine it may ask.

A step's parameters say what it needs, by name: `rows` and its config first, then engines by role (`judge`, `teacher`,
…) and tables by name (`results`, `weights`, …), such as

    @step("clear-filter", kind="filter", reads="clear_confidence")
    def drop_doubtful(rows: pl.DataFrame, cfg: ClearFilter) -> pl.DataFrame: ...
"""

import inspect
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, get_type_hints

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from storage.schema import CHOICE, ROW, Messages

Kind = Literal["score", "filter", "select", "make", "revise", "table"]
ROLES = ("judge", "candidate", "teacher", "student", "base", "embedder", "nli", "reward", "unieval")


_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")  # it stands in ids of datasets, commands and drop reasons


class StepError(Exception):
    """A step was asked for what it cannot do, or broke its promise; the message names both."""


class StepConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def columns(self) -> tuple[str, ...]:
        """Columns that a setting names: handed to the step where the dataset has them."""
        return ()

    def settled(self, models: Container[str]) -> Self:
        """With every `auto` decided, before anything is hashed or run; `models` are the roles whose model is here."""
        return self

    def unasked(self) -> tuple[str, ...]:
        """Roles of the step that these settings ask nothing of; it is given None for them."""
        return ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of a model; `error` says why there is none."""

    text: str
    logprobs: tuple[float, ...] = ()
    error: str | None = None
    tokens: int = 0
    """How many it took, with the one that ends it."""
    truncated: bool = False
    """It was cut at `max_tokens` or at the end of the context."""


@dataclass(frozen=True, slots=True)
class Failed:
    """In the place of numbers that could not be had: one failure never loses its neighbours."""

    error: str


class Engine(Protocol):
    """A language model with its adapter, as a step sees it. Lists in, lists out, same order.

    What cannot be answered is a value that says why, in its place. `used` counts what was really asked of the model:
    requests, failures, prompt_tokens, cached_tokens (of those, read from a prefix that was there), generated_tokens
    and seconds.
    """

    identity: str
    used: Counter[str]

    def generate(
        self,
        prompts: list[Messages],
        *,
        max_tokens: int,
        n: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        stop: Sequence[str] = (),
        choices: Sequence[str] = (),
        schema: dict[str, Any] | None = None,
        with_logprobs: bool = False,
    ) -> list[list[Completion]]:
        """n completions of each prompt; temperature 0 is greedy; seeded sampling repeats, each prompt by its own seed
        where there is a list of them. An answer ends before the first of `stop`, is one of `choices`, or is JSON of
        the schema. Completions have the log-probabilities of their tokens where these are asked for and told."""
        ...

    def logprobs(self, conversations: list[Messages]) -> list[list[float] | Failed]:
        """Log-probability of each token of the last message, given those before it."""
        ...

    def choose(self, prompts: list[Messages], answers: list[str]) -> list[list[float] | Failed]:
        """Probability of each answer (one token each) as the next token, not renormalised."""
        ...

    def count_tokens(self, texts: list[str]) -> list[int]: ...


class Embedder(Protocol):
    identity: str

    def embed(self, texts: list[str]) -> np.ndarray:
        """Unit vectors, float32, shape (texts, dimensions)."""
        ...


class Classifier(Protocol):
    """A model that judges a pair of texts: premise and hypothesis (NLI), question and answer (reward, UniEval)."""

    identity: str
    labels: tuple[str, ...]
    """Names of the classes, lower case, such as contradiction, neutral, entailment; or `score` alone."""

    def classify(self, pairs: list[tuple[str, str]]) -> list[list[float] | Failed]:
        """Probability of each class; for a model with one number, that number."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    kind: Kind
    scope: Literal["shard", "dataset"]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    roles: tuple[str, ...]
    tables: dict[str, bool]  # name: whether it must be given
    config: type[StepConfig]
    version: int
    fn: Callable[..., pl.DataFrame]
    good: dict[str, int] = field(default_factory=dict)  # column: 1 where high is good, -1 where low is
    takes: tuple[str, ...] = ()  # columns that it is handed where the dataset has them
    revives: str = ""  # a step whose dropped rows are handed over like live ones
    code: str = ""  # digest of the file of a user's own step, which is in the key; ours have versions
    without: tuple[str, ...] = ()  # columns of a row that it is not handed

    @property
    def help(self) -> str:
        return inspect.getdoc(self.fn) or ""

    @property
    def edition(self) -> int | list:
        """What of the code is in the key."""
        return [self.version, self.code] if self.code else self.version

    def asks(self, config: StepConfig) -> tuple[str, ...]:
        """The roles whose engines it needs with these settings."""
        return tuple(role for role in self.roles if role not in config.unasked())

    def __call__(
        self,
        rows: pl.DataFrame,
        config: StepConfig,
        engines: Mapping[str, Any] | None = None,
        tables: Mapping[str, pl.DataFrame] | None = None,
    ) -> pl.DataFrame:
        """Apply to live rows. Dropped rows are kept aside and put back, in their place."""
        engines, tables = engines or {}, tables or {}
        if missing := sorted(set(self.reads) - set(rows.columns)):
            raise StepError(f"{self.name} reads {missing}, which the dataset lacks; run the step that writes it first")
        asked = self.asks(config)
        if missing := [r for r in asked if r not in engines]:
            raise StepError(f"{self.name} needs an engine for {missing}")
        if missing := [t for t, needed in self.tables.items() if needed and t not in tables]:
            raise StepError(f"{self.name} needs the table {missing}")
        alive = pl.col("drop_reason").is_null()
        if self.revives:
            alive |= pl.col("drop_reason").str.starts_with(f"{self.revives}: ")
        # A filter copies, also where it leaves everything, and a dataset's embeddings are large.
        live = rows if rows["drop_reason"].null_count() == rows.height else rows.filter(alive)
        given = {r: engines[r] if r in asked else None for r in self.roles} | {t: tables.get(t) for t in self.tables}
        out = self.fn(live, config, **given)
        if self.kind == "revise":
            _check_new(self, live, out)
            new = out.slice(live.height)
            _check(self, live, out.head(live.height), new["parent_id"].to_list())
            return pl.concat([_put_back(self, rows, out.head(live.height)), new], how="diagonal_relaxed")
        _check(self, live, out)
        return _put_back(self, rows, out)


STEPS: dict[str, Step] = {}


def step(
    name: str,
    kind: Kind,
    *,
    reads: str = "",
    writes: str = "",
    scope: Literal["shard", "dataset"] = "shard",
    version: int = 1,
    good: str = "",
    takes: str = "",
    revives: str = "",
    without: str = "",
) -> Callable[[Callable[..., pl.DataFrame]], Step]:
    """Register a function as a step.

    `reads` and `writes` are space-separated column names, `takes` those that it can do without; the columns of a row
    need no naming. Raise `version` when the same input and config would now give a different result: it is part of
    the key.

    `good` names, the foremost first, the columns by which the method tells how good a row's answer is, with a minus
    sign where lower is better: "clear_confidence" or "-base_nll". It changes no result; `noise-bench` holds it to it.

    A `revise` step gives back the rows it was given, in their order, and then the new ones; `revives` names the filter
    whose dropped rows it is given too.

    `without` names columns of a row that the step does not look at. A step of the scope `dataset` that needs no text
    says `without="messages"`, or the text of the whole pool is read into memory for it.
    """
    if not _NAME.fullmatch(name):
        raise StepError(f"step {name!r}: a name is of small letters and digits, with dashes between, as `my-filter` is")
    if stray := sorted(c for c in _signed(good) if kind != "score" or c not in writes.split()):
        raise StepError(f"step {name}: good names {stray}; only a score step can tell, by a column that it writes")

    def register(fn: Callable[..., pl.DataFrame]) -> Step:
        parameters = inspect.signature(fn).parameters
        names = list(parameters)
        made = Step(
            name=name,
            kind=kind,
            scope=scope,
            reads=tuple(reads.split()),
            writes=tuple(writes.split()),
            roles=tuple(n for n in names[2:] if n in ROLES),
            tables={n: parameters[n].default is inspect.Parameter.empty for n in names[2:] if n not in ROLES},
            config=get_type_hints(fn)[names[1]],
            version=version,
            fn=fn,
            good=_signed(good),
            takes=tuple(takes.split()),
            revives=revives,
            without=tuple(without.split()),
        )
        if STEPS.setdefault(name, made) is not made:
            raise StepError(f"two steps are named {name!r}")
        return made

    return register


def _signed(columns: str) -> dict[str, int]:
    return {c.removeprefix("-"): -1 if c.startswith("-") else 1 for c in columns.split()}


def find_step(name: str) -> Step:
    if name not in STEPS:
        raise StepError(f"there is no step {name!r}; there are {', '.join(sorted(STEPS))}")
    return STEPS[name]


def _check(step: Step, before: pl.DataFrame, after: pl.DataFrame, parents: Iterable[str] = ()) -> None:
    """Hold a step to the promise of its kind; `parents` are the rows that it revised."""

    def refuse(what: str) -> None:
        raise StepError(f"{step.name} is a {step.kind} step: {what}")

    changed = [c for c in after.columns if c not in before.columns or not after[c].equals(before[c], null_equal=True)]
    match step.kind:
        case "score" | "filter" | "revise":
            if not after["id"].equals(before["id"]):
                refuse("it may not add, drop or reorder rows")
            allowed = set(step.writes) if step.kind == "score" else {*step.writes, "drop_reason"}
            if stray := sorted(set(changed) - allowed):
                refuse(f"it may not change {stray}")
            if lost := sorted(set(step.writes) - set(after.columns)):
                refuse(f"it promised {lost}")
            if gone := sorted(set(before.columns) - set(after.columns)):
                refuse(f"it may not remove {gone}")
            marked = after["drop_reason"].cast(pl.String).str.starts_with(f"{step.name}: ").fill_null(False)
            if step.kind == "revise" and set(after.filter(marked)["id"]) != set(parents):
                refuse("it marks the parents of its new rows, and no other")
            moved = after["drop_reason"].ne_missing(before["drop_reason"])
            if step.kind == "revise" and (moved & ~marked).any():
                refuse("it may not change what another step said of a row that it leaves as it is")
            if step.kind == "filter" and (moved & ~marked & after["drop_reason"].is_not_null()).any():
                refuse(f"its drop_reason says who dropped the row and why: '{step.name}: …'")
        case "select":
            if lost := sorted(set(CHOICE.names) - set(after.columns)):
                refuse(f"a choice has {lost}")
            if not after["id"].is_in(before["id"].to_list()).all() or after["id"].n_unique() != after.height:
                refuse("it may choose each live row once, and no other")
        case "make":
            _check_new(step, before, after, 0)
        case "table":
            if set(after.columns) != set(step.writes):
                refuse(f"it promised a table of {sorted(step.writes)}, not {sorted(after.columns)}")


def _check_new(step: Step, before: pl.DataFrame, after: pl.DataFrame, given: int | None = None) -> None:
    """New rows, after as many as were given back, are whole, new, and of parents that were given."""
    new = after.slice(before.height if given is None else given)
    what = None
    if lost := sorted(set(ROW.names) - set(new.columns)):
        what = f"a row has {lost}"
    elif new["parent_id"].null_count() or not new["parent_id"].is_in(before["id"].to_list()).all():
        what = "every new row names a parent that it was given"
    elif new["id"].is_in(before["id"].to_list()).any() or new["id"].n_unique() != new.height:
        what = "every row it gives is new, with an id of its own"
    if what:
        raise StepError(f"{step.name} is a {step.kind} step: {what}")


def _put_back(step: Step, rows: pl.DataFrame, out: pl.DataFrame) -> pl.DataFrame:
    if step.kind not in ("score", "filter", "revise"):
        return out
    own = list(step.writes) if step.kind == "score" else [*step.writes, "drop_reason"]
    mine = out.select("id", *own)
    if out["id"].equals(rows["id"]) and out["id"].n_unique() == rows.height:  # nothing to put back
        joined = rows.with_columns(mine.drop("id"))
    else:
        joined = rows.drop(own, strict=False).join(mine, on="id", how="left", maintain_order="left")
    if joined.height != rows.height:
        raise StepError(f"{step.name}: two rows of its input have the same id")
    if step.kind == "filter":
        joined = joined.with_columns(drop_reason=rows["drop_reason"].fill_null(joined["drop_reason"]))
    elif step.kind == "revise":  # what it was not given keeps its mark
        joined = joined.with_columns(drop_reason=joined["drop_reason"].fill_null(rows["drop_reason"]))
    return joined
