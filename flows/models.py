"""Which model plays which role."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from pydantic import TypeAdapter, ValidationError
from rich.markup import escape

from curation.bsdetector import contradiction
from curation.step import Step, StepConfig, find_step
from flows.cluster import check_address, elsewhere
from flows.config import ConfigError, LoopConfig, RoleModel, apply_changes
from flows.engine_settings import EngineSettings, Local, OpenAI, Vllm
from flows.engines import EngineError, EngineSpec, dataset_of, identity, leases, model_folder
from flows.progress import say
from flows.responses import Progress
from flows.rules import of_another_model, with_rule
from flows.run import Lease
from flows.trained import check_base, check_folder, result
from storage.store import Store

OF_LANGUAGE = ("judge", "candidate", "teacher")
OF_PAIRS = ("nli", "reward", "unieval")  # models that judge pairs of texts; none comes with the installation
EMBEDDER = "all-MiniLM-L6-v2"
NLI = "microsoft/deberta-large-mnli"  # BSDetector's
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def role_models(config: LoopConfig, store: Store, student: str | None) -> dict[str, EngineSpec]:
    """A model for every role. Judge, candidate and teacher are the base with its `instruct` adapter, if it has one."""
    known = (*OF_LANGUAGE, "embedder", *OF_PAIRS)
    if unknown := sorted(set(config.roles) - set(known)):
        raise ConfigError(f"roles: there is no role {unknown[0]!r}; there are {', '.join(known)}")
    embedder = config.roles.get("embedder", RoleModel()).model or EMBEDDER
    models = {role: _one(config, config.roles.get(role, RoleModel()), store, student) for role in OF_LANGUAGE}
    models["base"] = models["student"] = tuned(store, config.model, None, config.engine)
    models["embedder"] = EngineSpec(kind="sentence-transformers", model=embedder)
    named = {role: config.roles[role].model for role in ("reward", "unieval") if role in config.roles}
    models |= {role: EngineSpec(kind="classifier", model=model) for role, model in named.items() if model}
    return models | _nli(config.roles.get("nli", RoleModel()).model)


def check_models(config: LoopConfig, store: Store) -> None:
    """Find every model, and the cluster, before anything is run; EngineError names the one that cannot be had."""
    check_address(config.ray)
    models = role_models(config, store, None)
    for spec in models.values():
        identity(spec)
    uses = (*config.score, *config.feedback, *config.check)
    asked = [lend(find_step(use.step), use.config(), models, store)[0] for use in uses]
    base = tuned(store, config.model, None)  # what is trained, wherever it answers
    for told in dict.fromkeys(filter(None, (of_another_model(settings, base) for settings in asked))):
        say(f"[yellow]{escape(told)}[/yellow]")


def lend(
    step: Step,
    config: StepConfig,
    models: Mapping[str, EngineSpec],
    store: Store,
    progress: Progress = lambda done, total: None,
    run: str = "",
    ray: str | None = None,
) -> tuple[StepConfig, Lease]:
    """The settings with every `auto` decided, and the engines that they ask for; EngineError names one that is missing.
    With the address of a Ray cluster the shards are worked on there, where the step sees one at a time.

    It is decided by what is on this machine or named, and nothing is fetched for it: the same command does not turn out
    otherwise because a network is down.
    """
    config = with_rule(config.settled(models), store)
    models = {"nli": EngineSpec(kind="classifier", model=NLI)} | dict(models)
    if missing := [role for role in step.asks(config) if role not in models]:
        raise EngineError(
            f"{step.name} needs a model for {missing[0]}, and none comes with the installation; name a folder or a hub "
            f"name, under `roles` in a config or with --{missing[0]}"
        )
    asked = {role: models[role] for role in step.asks(config)}
    if "nli" in asked:
        _check_nli(asked["nli"].model)
    return config, replace(leases(asked, store, progress, run), elsewhere=elsewhere(ray, step, asked))


def _check_nli(model: str) -> None:
    said = model_folder(model) / "config.json"
    labels = list(map(str, json.loads(said.read_text()).get("id2label", {}).values())) if said.exists() else []
    if contradiction(labels) is None:
        raise EngineError(
            f"{model} is no NLI model: none of its classes {labels[:5]} is contradiction; name one such as {NLI}"
        )


def _nli(model: str | None) -> dict[str, EngineSpec]:
    """The NLI model that is named, or the default one where its files are on this machine already."""
    cached = {name for name in ("config.json", *WEIGHTS) if isinstance(try_to_load_from_cache(NLI, name), str)}
    here = "config.json" in cached and len(cached) > 1
    return {"nli": EngineSpec(kind="classifier", model=model or NLI)} if model or here else {}


def instruct_adapter(model: str) -> str | None:
    """The adapter for judging and teaching that lies beside a model's weights."""
    folder = model_folder(model) / "instruct"
    return str(folder) if folder.is_dir() else None


def check_student(step: Step, typed: Mapping[str, str | None]) -> None:
    """Refuse to correct rows with a student that nobody has tuned, unless it is named."""
    named = typed.get("student") or typed.get("student_adapter")
    if step.kind == "revise" and "student" in step.roles and not named:
        raise ConfigError(
            f"{step.name} wants a student tuned on these rows: `thresher train DATASET --name student` makes one, "
            "--student-adapter student takes it (or --student MODEL, for a model as it is)"
        )


def typed_models(store: Store, roles: Iterable[str], typed: Mapping[str, str | None]) -> dict[str, EngineSpec]:
    """A model for each role as a command has it: `judge` names the model, `judge_adapter` a dataset or a folder."""
    engine = typed_engine(typed.get("engine") or "local", typed.get("engine_set") or [])
    nli = _nli(typed.get("nli"))
    roles = [role for role in roles if role not in OF_PAIRS or typed.get(role) or role == "nli"]
    models = {r: _typed(store, r, typed.get(r), typed.get(f"{r}_adapter"), engine) for r in roles if r != "nli"}
    return models | (nli if "nli" in roles else {})


def tuned(store: Store, model: str, trained: str | None, engine: Local | Vllm | OpenAI | None = None) -> EngineSpec:
    """What a training made of a model: the model with that adapter, or the model that a full run gave.

    Raises StoreError where it was trained on another model, but for a server's, whose files are not here.
    """
    if trained is None:
        return EngineSpec(model=model, settings=engine)
    made = result(store, trained)
    if not isinstance(engine, OpenAI):
        check_base(made, model)
    folder = store.files(trained)
    if (folder / "adapter_config.json").exists():
        return EngineSpec(model=model, adapter=str(folder), settings=engine)
    return EngineSpec(model=str(folder), settings=engine)


def typed_engine(kind: str, changes: list[str]) -> Local | Vllm | OpenAI:
    """An engine's settings from `--engine` and `--engine-set key=value`."""
    said = apply_changes({"kind": kind}, changes)
    try:
        return TypeAdapter(EngineSettings).validate_python(said)
    except ValidationError as wrong:
        first = wrong.errors()[0]
        where = ".".join(map(str, first["loc"][1:])) or "--engine"
        raise ConfigError(f"engine {kind}: {where}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def _typed(
    store: Store, role: str, model: str | None, adapter: str | None, engine: Local | Vllm | OpenAI
) -> EngineSpec:
    """Where no adapter is typed, judge, candidate and teacher take the `instruct` adapter beside the model."""
    if role == "embedder":
        return EngineSpec(kind="sentence-transformers", model=model or EMBEDDER)
    if role in OF_PAIRS:
        return EngineSpec(kind="classifier", model=model)
    model = model or "nano"
    if adapter:
        return adapted(store, model, adapter, engine)
    if role in OF_LANGUAGE and engine.kind != "openai":
        adapter = instruct_adapter(model)
    return EngineSpec(model=model, adapter=adapter, settings=engine)


def adapted(store: Store, model: str, adapter: str, engine: Local | Vllm | OpenAI | None = None) -> EngineSpec:
    """A model with an adapter as a command names it, by a dataset or by a folder; StoreError where that is of another.

    A folder that the store holds, as `thresher train` prints it, is the dataset.
    """
    folder = Path(adapter)
    if not folder.is_dir():
        return tuned(store, model, store.resolve(adapter), engine)
    if dataset := dataset_of(store, folder):
        return tuned(store, model, dataset, engine)
    if not isinstance(engine, OpenAI):
        check_folder(folder, model)
    return EngineSpec(model=model, adapter=adapter, settings=engine)


def _one(config: LoopConfig, said: RoleModel, store: Store, student: str | None) -> EngineSpec:
    model, engine = said.model or config.model, said.engine or config.engine
    if said.adapter == "last-student" and student:
        return tuned(store, config.model, student, engine)
    adapter = said.adapter
    if adapter in (None, "last-student"):
        adapter = None if engine.kind == "openai" else instruct_adapter(model)
    elif Path(adapter).is_dir():
        return adapted(store, model, adapter, engine)
    return EngineSpec(model=model, adapter=adapter, settings=engine)
