"""Prefect tasks: one import, one step, one training. Only names, settings and dataset ids cross their borders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import polars as pl
from prefect import State, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment

from curation.step import StepConfig, find_step
from flows import (
    cards,
    steps,  # noqa: F401  registers every step, in whatever process a flow is run
)
from flows.config import train_settings
from flows.engines import EngineSpec
from flows.one_step import stage, worked_on
from flows.own_steps import load_steps, own_files
from flows.progress import bar
from flows.recording import if_recorded, recording
from flows.run import run_step
from flows.training import train_adapter
from storage.importing import import_files
from storage.store import Store, StoreError

load_steps(own_files())  # and those of the user's own, as the process that began it knows them

_PLAIN = {"cache_policy": NO_CACHE, "persist_result": False, "task_run_name": "{label}"}


def _show(store: Store, dataset: str) -> None:
    if recording():
        cards.publish_soon(store, dataset)


@if_recorded
@task(**_PLAIN)
def bring_in(label: str, root: Path, file: Path, name: str) -> str:
    """Import a file under a name."""
    store = Store(root)
    with stage(label, store, name, _show) as done, bar(label) as progress:
        return done(import_files(store, [file], name, progress=progress).dataset)


def server_is_gone(task: Any, run: Any, state: State[Any]) -> bool:
    """Whether to ask again later: nobody watches this run, and the server of its models could not be reached."""
    if not deployment.id:
        return False
    try:
        state.result()
    except Exception as why:
        return isinstance(why.__cause__, httpx.ConnectError)
    return False


@if_recorded
@task(**_PLAIN, retries=2, retry_delay_seconds=[60, 300], retry_condition_fn=server_is_gone)
def run_one_step(
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
) -> str:
    """Run one step on a dataset and point a name at what it made."""
    return worked_on(label, root, step_name, settings, rows, tables, models, name, ray, run, _show)


@if_recorded
@task(**_PLAIN)
def train_one(
    label: str, root: Path, rows: str, heldout: str, model: str, settings: Mapping[str, Any], name: str
) -> str:
    """Train an adapter on a choice; stops the run if a row of the held-out set has reached it."""
    store, guard = Store(root), find_step("heldout-overlap")
    guarded = run_step(store, guard, guard.config(), rows, {"heldout": heldout})
    if store.manifest(guarded).counts.get(f"dropped by {guard.name}"):
        marked = pl.col("drop_reason").str.starts_with(f"{guard.name}: ")
        reached = store.read(guarded, ["id", "drop_reason"]).filter(marked)["id"].to_list()
        named = ", ".join(reached[:5]) + (" …" if len(reached) > 5 else "")
        raise StoreError(
            f"{len(reached)} rows of {rows} stand in the held-out set, and training on them is refused: {named}; "
            "`thresher explain` says where each came from"
        )
    with stage(label, store, name, _show) as done, bar(label) as progress:
        return done(train_adapter(store, rows, EngineSpec(model=model), train_settings(settings), progress))
