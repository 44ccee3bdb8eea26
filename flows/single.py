"""Curation, synthesis and training as flows of their own, to be scheduled or called one at a time."""

from pathlib import Path
from typing import Any

from prefect import flow

from curation.step import find_step
from flows import cards
from flows.assemble import taken
from flows.config import ConfigError, LoopConfig, Use
from flows.models import check_student, role_models
from flows.tasks import run_one_step, train_one
from storage.store import Store


@flow(name="curate", persist_result=False)
def curate(dataset: str, steps: list[Use], root: Path, model: str = "nano", heldout: str | None = None) -> str:
    """Score, mark and choose: run steps one after another on a dataset; returns the id of the last one's."""
    made = Store(root).resolve(dataset)
    with cards.publishing():
        for use in steps:
            made = _step(use, made, root, model, {"heldout": heldout}, f"{dataset}.{use.step}")
    return made


@flow(name="synthesise", persist_result=False)
def synthesise(
    dataset: str,
    results: str | None,
    generator: Use,
    root: Path,
    model: str = "nano",
    heldout: str | None = None,
) -> str:
    """Write new rows from a dataset, and a student's results on it where the generator wants them; returns the id of
    the dataset of new rows."""
    if find_step(generator.step).kind != "make":
        raise ConfigError(f"{generator.step} makes no rows; use a step that does, such as llm2llm")
    rows = Store(root).resolve(dataset)
    with cards.publishing():
        tables = {"results": results, "heldout": heldout}
        return _step(generator, rows, root, model, tables, f"{dataset}.{generator.step}")


@flow(name="train", persist_result=False)
def train(dataset: str, heldout: str, root: Path, settings: dict[str, Any] | None = None, model: str = "nano") -> str:
    """Train an adapter on the live rows of a dataset; returns the id of the adapter."""
    store = Store(root)
    rows, held = store.resolve(dataset), store.resolve(heldout)
    if (chosen := store.manifest(rows)).kind == "choice":
        rows = taken(store, chosen.inputs["rows"], rows)
    with cards.publishing():
        return train_one(f"train {dataset}", root, rows, held, model, settings or {}, f"{dataset}.adapter")


def _step(use: Use, rows: str, root: Path, model: str, tables: dict[str, str | None], name: str) -> str:
    store = Store(root)
    check_student(find_step(use.step), {})
    given = {table: store.resolve(named) for table, named in tables.items() if named}
    models = role_models(LoopConfig(name="single", pool="", heldout="", model=model), store, None)
    return run_one_step(use.step, root, use.step, use.config(), rows, given, models, name)
