"""`thresher step NAME DATASET --setting value`: a command for each registered step, made from its config alone."""

import inspect
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import annotated_types
import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from curation.step import STEPS, Step
from flows import spending
from flows.command import AsJson, RayOption, StoreOption, open_store
from flows.config import settings
from flows.one_step import single_step, worked_on
from flows.progress import say
from flows.run import by_shard
from flows.server import joined_if_running


def options(model: type[BaseModel], leave_out: tuple[str, ...] = ()) -> list[inspect.Parameter]:
    """A command-line option for each setting, with its help text, bounds and default."""
    return [_option(name, info) for name, info in model.model_fields.items() if name not in leave_out]


def role_options(roles: Iterable[str]) -> list[inspect.Parameter]:
    """Options for the model of each role and, of a language model, its adapter."""
    keyword, roles = inspect.Parameter.KEYWORD_ONLY, list(roles)
    parameters = []
    for role in roles:
        about = typer.Option(f"--{role}", help=f"Model that is the {role}: nano, a folder or a hub name.")
        parameters.append(inspect.Parameter(role, keyword, annotation=Annotated[str | None, about], default=None))
        if role not in ("embedder", "nli", "reward", "unieval"):
            about = typer.Option(f"--{role}-adapter", help=f"Adapter of the {role}: a dataset or a folder.")
            parameters.append(
                inspect.Parameter(f"{role}_adapter", keyword, annotation=Annotated[str | None, about], default=None)
            )
    speaking = any(role not in ("embedder", "nli", "reward", "unieval") for role in roles)
    return parameters + (engine_options() if speaking else [])


def engine_options() -> list[inspect.Parameter]:
    """Options for where the language models run."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    kind = typer.Option("--engine", help="Where language models run: local, vllm or openai (any such server).")
    change = typer.Option("--engine-set", help="Setting of the engine, key=value: url=http://host:8000/v1")
    return [
        inspect.Parameter("engine", keyword, annotation=Annotated[str, kind], default="local"),
        inspect.Parameter("engine_set", keyword, annotation=Annotated[list[str], change], default=[]),
    ]


def add_options(command: Callable[..., None], more: Iterable[inspect.Parameter]) -> Callable[..., None]:
    """The command with more options, which it gets as its `**typed`."""
    signature = inspect.signature(command)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    command.__signature__ = signature.replace(parameters=[*own, *more])
    return command


def step_app() -> typer.Typer:
    """The `step` command with one sub-command per step."""
    app = typer.Typer(no_args_is_help=True, help="Run one curation or synthesis step on a dataset.")
    for name in sorted(STEPS):
        app.command(name, help=STEPS[name].help)(_command(STEPS[name]))
    return app


def _command(step: Step) -> Callable[..., None]:
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(
            "dataset",
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            annotation=Annotated[str, typer.Argument(help="Name or id of the dataset.")],
        ),
        *options(step.config),
    ]
    for table, needed in step.tables.items():
        about = typer.Option(f"--{table}", help=f"Name or id of the dataset with the {table}.")
        default = inspect.Parameter.empty if needed else None
        parameters.append(inspect.Parameter(table, keyword, annotation=Annotated[str | None, about], default=default))
    parameters += role_options(step.roles)
    if by_shard(step):
        parameters.append(inspect.Parameter("ray", keyword, annotation=RayOption, default=None))
    about = typer.Option("--name", help="Name for what is made; DATASET.STEP if not given.")
    parameters.append(inspect.Parameter("name", keyword, annotation=Annotated[str | None, about], default=None))
    parameters.append(inspect.Parameter("as_json", keyword, annotation=AsJson, default=False))
    parameters.append(inspect.Parameter("store", keyword, annotation=StoreOption, default=Path(".thresher")))

    def command(**typed: Any) -> None:
        _run(step, **typed)

    command.__signature__ = inspect.Signature(parameters)
    command.__name__ = step.name.replace("-", "_")
    return command


def _run(step: Step, dataset: str, store: Path, name: str | None, as_json: bool, **typed: Any) -> None:
    """A flow run, where a server is running; else Prefect, which takes seconds to load, is left out."""
    place = open_store(store)
    place.resolve(dataset)  # a misspelt name is no run of a server's
    config = settings(step.name, {k: typed[k] for k in step.config.model_fields})
    others = {k: v for k, v in typed.items() if k not in step.config.model_fields}
    with joined_if_running(place.root) as server:
        if server:
            from flows.step_flows import flow_of

            made = flow_of(step)(dataset=dataset, settings=config, name=name, root=place.root, **others)
        else:
            made = single_step(worked_on, place, step, config, dataset, name, others)
    name = name or f"{dataset}.{step.name}"
    say(f"{name}: {place.manifest(made).summary} ({made}) {spending.in_words(place.run_facts(made))}".strip())
    if as_json:
        typer.echo(json.dumps(spending.of_dataset(place, made, name), indent=1))


def _option(name: str, info: FieldInfo) -> inspect.Parameter:
    bounds = [_bound(m) for m in info.metadata]
    about = " ".join([info.description or "", *[f"[{b}]" for b in bounds if b]])
    flag = f"--{name.replace('_', '-')}"
    default = info.get_default(call_default_factory=True)
    if default is True:  # else there would be no way to turn it off
        flag += f"/--no-{name.replace('_', '-')}"
    required = default is PydanticUndefined
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[info.annotation, typer.Option(flag, help=" ".join(about.split()), show_default=True)],
        default=inspect.Parameter.empty if required else default,
    )


def _bound(metadata: Any) -> str:
    match metadata:
        case annotated_types.Ge(ge=bound):
            return f"{bound} or more"
        case annotated_types.Gt(gt=bound):
            return f"over {bound}"
        case annotated_types.Le(le=bound):
            return f"{bound} or less"
        case annotated_types.Lt(lt=bound):
            return f"under {bound}"
    return ""
