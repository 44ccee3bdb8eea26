"""One step on one dataset: what `thresher step`, the step's form in the UI and every step of a loop have in common.

Free of Prefect, which takes seconds to load: where a server records, the work is done inside its task (`flows.tasks`).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from curation.step import Step, StepConfig, find_step
from flows.cluster import check_address
from flows.cost import cost
from flows.engines import EngineSpec
from flows.models import check_student, lend, typed_models
from flows.progress import bar, say
from flows.rules import tell_if_of_another_model
from flows.run import Progress, run_step
from flows.training_text import known
from storage.store import Store

Show = Callable[[Store, str], None]


def asked(store: Store, step: Step, settings: StepConfig, typed: Mapping[str, Any]) -> dict[str, EngineSpec]:
    """The models of a step that was asked for by itself, once all is checked that can be before any work; what is
    doubtful is said. `typed` are the options of its command, which are the parameters of its form."""
    check_address(typed.get("ray"))
    check_student(step, typed)
    models = typed_models(store, step.roles, typed)
    tell_if_of_another_model(settings, models, store)
    return models


def single_step(
    work: Callable[..., str],
    store: Store,
    step: Step,
    settings: StepConfig,
    dataset: str,
    name: str | None,
    typed: Mapping[str, Any],
) -> str:
    """Resolve what was typed and have `work` do it: `worked_on`, or Prefect's task of that. Returns the dataset made.

    What a server may be paid for it is of the budget that all commands without a run have together.
    """
    rows = store.resolve(dataset)
    tables = {table: store.resolve(typed[table]) for table in step.tables if typed.get(table)}
    models, called = asked(store, step, settings, typed), name or f"{dataset}.{step.name}"
    return work(step.name, store.root, step.name, settings, rows, tables, models, called, typed.get("ray"), run="")


def worked_on(
    label: str,
    root: Path,
    step_name: str,
    settings: StepConfig,
    rows: str,
    tables: Mapping[str, str],
    models: Mapping[str, EngineSpec],
    name: str,
    ray: str | None = None,
    run: str | None = None,
    show: Show = lambda store, dataset: None,
) -> str:
    """Run a step on a dataset and point a name at what it made; `run` has the budget, the name's first part if None."""
    store, account = Store(root), name.partition(".")[0] if run is None else run
    with stage(label, store, name, show) as done, bar(label) as progress:
        return done(made_by(store, find_step(step_name), settings, rows, tables, models, progress, account, ray))


def made_by(
    store: Store,
    step: Step,
    settings: StepConfig,
    rows: str,
    tables: Mapping[str, str],
    models: Mapping[str, EngineSpec],
    progress: Progress,
    run: str = "",
    ray: str | None = None,
) -> str:
    """The dataset that a step makes, by the models that its settings ask."""
    config, lease = lend(step, settings, models, store, progress, run, ray)
    return run_step(store, step, config, rows, known(store, step, models, tables), lease, progress)


@contextmanager
def stage(
    label: str, store: Store, name: str, show: Show = lambda store, dataset: None
) -> Iterator[Callable[[str], str]]:
    """Says on the terminal what was made and how long it took; names it, and shows it where it is new."""
    before, started = set(store.ids()), time.monotonic()

    def done(dataset: str) -> str:
        store.name(name, dataset)
        told = store.manifest(dataset).summary
        if dataset in before:
            say(f"[dim]{label}: already there ({told})[/dim]")
        else:
            took = f"{time.monotonic() - started:.1f} s"
            say(f"{label}: {told} [cyan]{', '.join(filter(None, [took, cost(store, dataset)]))}[/cyan]")
            show(store, dataset)
        return dataset

    yield done
