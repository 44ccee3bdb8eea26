"""`thresher merge`, `export-adapter`, `serve` and `harness`: what comes after a training."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from flows.command import AsJson, StoreOption, open_store
from flows.progress import say

adapters = typer.Typer()
_Trained = Annotated[str, typer.Argument(help="Name or id of what `thresher train` made.")]
_Model = Annotated[str, typer.Option(help="Base model that it was trained on: nano, a folder or a hub name.")]
_Folder = Annotated[Path, typer.Argument(help="Folder to write; it must not be there yet.")]


@adapters.command()
def merge(adapter: _Trained, folder: _Folder, model: _Model = "nano", store: StoreOption = Path(".thresher")) -> None:
    """Write the base model with an adapter in its weights, which needs no PEFT."""
    from flows.adapters import merged

    place = open_store(store)
    merged(place, place.resolve(adapter), model, folder)
    say(f"{folder}: a model by itself, with its card")


@adapters.command("export-adapter")
def export_adapter(
    adapter: _Trained, folder: _Folder, model: _Model = "nano", store: StoreOption = Path(".thresher")
) -> None:
    """Write an adapter with tokenizer, chat template and a model card that names its data by key."""
    from flows.adapters import exported

    place = open_store(store)
    exported(place, place.resolve(adapter), model, folder)
    say(f"{folder}: a plain PEFT folder, with its card")


@adapters.command()
def serve(
    adapter: _Trained,
    model: _Model = "nano",
    port: Annotated[int, typer.Option(help="Port to serve on.")] = 8000,
    store: StoreOption = Path(".thresher"),
) -> None:
    """Print the command that serves an adapter with vLLM, as `--model NAME` of OpenAI's protocol."""
    from flows.adapters import serve_command

    place = open_store(store)
    typer.echo(shlex.join(serve_command(place, place.resolve(adapter), model, adapter, port)))


@adapters.command("harness")
def harness_(
    tasks: Annotated[str, typer.Argument(help="Tasks of lm-eval, with commas between: gsm8k,arc_easy.")],
    adapter: Annotated[str | None, typer.Option(help="What was trained; none is the untuned model.")] = None,
    model: Annotated[str, typer.Option(help="Base model: nano, a folder or a hub name.")] = "nano",
    limit: Annotated[int | None, typer.Option(help="Rows of each task; all if not given.", min=1)] = None,
    include: Annotated[Path | None, typer.Option(help="Folder with tasks of your own.")] = None,
    as_json: AsJson = False,
    store: StoreOption = Path(".thresher"),
) -> None:
    """Run benchmarks of lm-eval, which is installed apart: `pip install lm-eval`."""
    from flows.harness import harness

    place = open_store(store)
    found = harness(place, place.resolve(adapter) if adapter else None, model, tasks, limit, include)
    if as_json:
        return typer.echo(json.dumps(found, indent=1))
    for task, told in found.items():
        typer.echo(f"{task}: " + ", ".join(f"{name} {value:.4g}" for name, value in told.items()))
