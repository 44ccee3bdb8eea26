"""`thresher self-guide`: a model teaches itself tasks from a few examples of each."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.command import FAILED, AsJson, StoreOption, open_store
from flows.gpus import accelerators
from flows.models import check_models
from flows.self_guide_config import load_self_guide

growing = typer.Typer()


@growing.command("self-guide")
def self_guide(
    config: Annotated[Path, typer.Argument(help="YAML file, such as examples/self_guide/self-guide.yaml.")],
    set_: Annotated[list[str], typer.Option("--set", help="key=value, with dots: search.settings=4")] = [],  # noqa: B006
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trainings side by side; one per accelerator if not given.")
    ] = None,
    as_json: AsJson = False,
    store: StoreOption = Path(".thresher"),
) -> None:
    """Let a model write its own training rows for a task, train it on them, and compare that with prompting it.

    For each task of the config: the model writes inputs and answers from a few examples, its own rows train it, and
    the held-out rows are answered by the untuned model, by the untuned model shown examples, and by the student. With
    `search`, settings are tried on validation rows first (docs/self-guide.md). What was written or trained before is
    not written or trained again.
    """
    wanted, place = load_self_guide(config, set_), open_store(store)
    for task in wanted.tasks:
        check_models(wanted.loop(task), place)
    from flows.server import recorded

    with recorded(place.root):
        from flows.self_guide_flow import self_guide as flow
        from flows.self_guide_page import terminal

        many = workers or max(1, len(accelerators()))
        said = flow(wanted, config.resolve().parent, place.root, many)
        typer.echo(json.dumps(said, indent=1) if as_json else terminal(said))
    if said["failed"]:
        raise typer.Exit(FAILED)
