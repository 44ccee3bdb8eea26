"""The loop of a config file, curation, synthesis and training as flows of their own: what a deployment runs."""

from pathlib import Path

from prefect import flow

from curation.step import find_step
from flows import cards
from flows.assemble import taken
from flows.config import ConfigError, LoopConfig, Use, load
from flows.loop import improve
from flows.models import check_models, check_student, role_models
from flows.rules import tell_if_of_another_model
from flows.tasks import run_one_step, train_one
from storage.store import Store
from training.settings import TrainConfig


@flow(name="improve", persist_result=False)
def loop(config: Path, changes: list[str] = [], pool: str | None = None, root: Path = Path(".thresher")) -> str:  # noqa: B006
    """Run the loop of a config file as it is now, as `thresher run` does; returns where the report is.

    Args:
        config: YAML file of the loop, such as examples/snips/loop.yaml.
        changes: Settings other than in the file, key=value with dots: budget.rounds=2
        pool: Dataset of the store that is worked on in the place of the file's pool.
        root: Folder of the store.
    """
    if not config.is_file():
        raise ConfigError(
            f"there is no config {config} any more; put it back, or end its schedule (`thresher schedule --list`, "
            "`thresher schedule --remove NAME`)"
        )
    wanted, store = load(config, changes), Store(root)
    check_models(wanted, store)
    return str(improve.fn(wanted, config.resolve().parent, root, pool and store.resolve(pool)).path)


@flow(name="curate", persist_result=False)
def curate(
    dataset: str, steps: list[Use], root: Path = Path(".thresher"), model: str = "nano", heldout: str | None = None
) -> str:
    """Score, mark and choose: run steps one after another on a dataset; returns the id of the last one's.

    Args:
        dataset: Name or id of the dataset of rows.
        steps: Steps in their order, each with its settings, as in a config file.
        root: Folder of the store.
        model: Base model: nano, a folder or a hub name.
        heldout: Dataset of held-out rows, for the steps that compare with it.
    """
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
    root: Path = Path(".thresher"),
    model: str = "nano",
    heldout: str | None = None,
) -> str:
    """Write new rows from a dataset; returns the id of the dataset of new rows.

    Args:
        dataset: Name or id of the dataset of rows, or of the description of a task.
        results: Dataset with a student's results on these rows, where the generator wants them, as llm2llm does.
        generator: Step that makes rows, such as llm2llm, with its settings.
        root: Folder of the store.
        model: Base model: nano, a folder or a hub name.
        heldout: Dataset of held-out rows that no new row may be like.
    """
    if find_step(generator.step).kind != "make":
        raise ConfigError(f"{generator.step} makes no rows; use a step that does, such as llm2llm")
    rows = Store(root).resolve(dataset)
    with cards.publishing():
        tables = {"results": results, "heldout": heldout}
        return _step(generator, rows, root, model, tables, f"{dataset}.{generator.step}")


@flow(name="train", persist_result=False)
def train(
    dataset: str,
    heldout: str,
    root: Path = Path(".thresher"),
    settings: TrainConfig = TrainConfig(),  # noqa: B008  it cannot be changed
    model: str = "nano",
) -> str:
    """Train an adapter on the live rows of a dataset; returns the id of the adapter.

    Args:
        dataset: Name or id of a dataset of rows, or of a choice.
        heldout: Dataset of held-out rows; the run stops if one of them is to be trained on.
        root: Folder of the store.
        settings: Settings of the trainer.
        model: Base model: nano, a folder or a hub name.
    """
    store = Store(root)
    rows, held = store.resolve(dataset), store.resolve(heldout)
    if (chosen := store.manifest(rows)).kind == "choice":
        rows = taken(store, chosen.inputs["rows"], rows)
    with cards.publishing():
        return train_one(f"train {dataset}", root, rows, held, model, settings.model_dump(), f"{dataset}.adapter")


def _step(use: Use, rows: str, root: Path, model: str, tables: dict[str, str | None], name: str) -> str:
    store = Store(root)
    settings = use.config()
    check_student(find_step(use.step), {})
    given = {table: store.resolve(named) for table, named in tables.items() if named}
    models = role_models(LoopConfig(name="single", pool="", heldout="", model=model), store, None)
    tell_if_of_another_model(settings, models, store)
    return run_one_step(use.step, root, use.step, settings, rows, given, models, name)
