"""A flow for every step, to be run by hand in the UI, by a schedule, or by `thresher step` where a server is running.

Made of the step's registration alone: its parameters are the command's options, its form has their help and bounds.
`flows.step_flows.clear_score` is the flow of `clear-score`, also of a step of the user's own.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import Flow, flow
from pydantic_core import PydanticUndefined

from curation.step import STEPS, Step, find_step
from flows import cards
from flows.one_step import single_step
from flows.run import by_shard
from flows.tasks import run_one_step
from storage.store import Store


def __getattr__(name: str) -> Flow[..., str]:
    if name.startswith("_") or name.replace("_", "-") not in STEPS:
        raise AttributeError(name)
    return flow_of(find_step(name.replace("_", "-")))


def flow_of(step: Step) -> Flow[..., str]:
    """The flow that runs a step on a dataset, names what it made and shows its card; returns its id."""
    made = flow(name="step", flow_run_name=f"{step.name} {{dataset}}", persist_result=False)
    return made(_function(step))


def _function(step: Step) -> Callable[..., str]:
    def run(dataset: str, settings: Any, name: str | None, root: Path, **typed: Any) -> str:
        with cards.publishing():
            return single_step(run_one_step, Store(root), step, settings, dataset, name, typed)

    run.__name__ = run.__qualname__ = step.name.replace("-", "_")
    parameters, told = _parameters(step)
    run.__signature__ = inspect.Signature(parameters, return_annotation=str)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__ = f"{step.help}\n\nArgs:\n" + "".join(f"    {name}: {about}\n" for name, about in told.items())
    return run


def _parameters(step: Step) -> tuple[list[inspect.Parameter], dict[str, str]]:
    """The parameters of the flow in the order of its form, and a line of help for each."""
    found: dict[str, tuple[Any, Any, str]] = {
        "dataset": (str, PydanticUndefined, "Name or id of the dataset of rows that it works on."),
        "settings": (step.config, _default(step), "Settings of the step; the defaults are the papers'."),
    }
    for table, needed in step.tables.items():
        kind = str if needed else str | None
        found[table] = (kind, PydanticUndefined if needed else None, f"Name or id of the dataset with the {table}.")
    for role in step.roles:
        found[role] = (str | None, None, f"Model that is the {role}: nano, a folder or a hub name.")
        if role not in ("embedder", "nli", "reward", "unieval"):
            found[f"{role}_adapter"] = (str | None, None, f"Adapter of the {role}: a dataset or a folder.")
    if any(f"{role}_adapter" in found for role in step.roles):
        found["engine"] = (str, "local", "Where language models run: local, vllm or openai (any such server).")
        found["engine_set"] = (list[str], [], "Settings of the engine, key=value: url=http://host:8000/v1")
    if by_shard(step):
        about = "Ray cluster whose nodes share the shards: local, auto, host:port or ray://host:port."
        found["ray"] = (str | None, None, about)
    found["name"] = (str | None, None, "Name for what is made; DATASET.STEP if not given.")
    found["root"] = (Path, Path(".thresher"), "Folder of the store.")
    kind = inspect.Parameter.KEYWORD_ONLY
    made = [
        inspect.Parameter(n, kind, annotation=a, default=inspect.Parameter.empty if d is PydanticUndefined else d)
        for n, (a, d, _) in found.items()
    ]
    return made, {name: about for name, (_, _, about) in found.items()}


def _default(step: Step) -> Any:
    """The settings as they are if nothing is said, where every one has a default."""
    fields = step.config.model_fields.values()
    return PydanticUndefined if any(field.is_required() for field in fields) else step.config()
