"""Many trainings, stage by stage: one that fails says why and the others go on; several at a time if asked."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

from rich.markup import escape

from curation.step import StepError
from flows.config import ConfigError
from flows.engines import EngineError
from flows.progress import console, say
from flows.side_by_side import side_by_side
from storage.store import StoreError
from training.settings import TrainError


class Labelled(Protocol):
    """A frozen dataclass with what it has come to so far."""

    failed: str | None

    @property
    def label(self) -> str: ...


Cell = TypeVar("Cell", bound=Labelled)


def through(cells: list[Cell], what: str, stage: Callable[[Cell], Cell], workers: int = 1) -> list[Cell]:
    """The cells after a stage, in their order; one that failed before stays as it was."""
    started, out, attempt = time.monotonic(), list(cells), partial(_attempt, what=what, stage=stage)
    going = {i: cell for i, cell in enumerate(cells) if not cell.failed}
    here = ((i, attempt(cell)) for i, cell in going.items())
    for done, (i, cell) in enumerate(_elsewhere(going, attempt, workers) if workers > 1 else here, 1):
        out[i] = cell
        spent = time.monotonic() - started
        left = spent / done * (len(going) - done)
        if left > 30:
            say(f"[bold]{what} {done} of {len(going)}, about {left / 60:.1f} min left[/bold]")
    return out


def _attempt(cell: Cell, what: str, stage: Callable[[Cell], Cell]) -> Cell:
    """The cell after a stage; whatever goes wrong, the other cells go on, and the row of this one says it."""
    try:
        return stage(cell)
    except Exception as why:
        told = isinstance(why, StepError | StoreError | EngineError | ConfigError | TrainError)
        failed = str(why) if told else f"{type(why).__name__}: {why}"
        say(f"[red]{escape(cell.label)}could not be {what}: {escape(failed)}[/red]")
        if not told or os.environ.get("THRESHER_DEBUG"):
            console.print_exception()
        return replace(cell, failed=failed)


def _elsewhere(going: dict[int, Cell], attempt: Callable[[Cell], Cell], workers: int) -> Iterator[tuple[int, Cell]]:
    """The cells as processes end with them. If one takes its process down, each that is left gets one of its own."""
    left = dict(going)
    try:
        with side_by_side(workers) as executor:
            futures = {executor.submit(attempt, cell): i for i, cell in going.items()}
            for future in as_completed(futures):
                cell = future.result()
                left.pop(futures[future])
                yield futures[future], cell
    except BrokenProcessPool:
        for i, cell in left.items():
            try:
                with side_by_side(1) as executor:
                    yield i, executor.submit(attempt, cell).result()
            except BrokenProcessPool:
                yield i, replace(cell, failed="its process was ended from outside, for want of memory perhaps")
