"""Which model plays which role."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from flows.config import ConfigError, LoopConfig, RoleModel, apply_changes
from flows.engine_settings import EngineSettings, Local, OpenAI, Vllm
from flows.engines import EngineSpec, identity, model_folder
from storage.store import Store

OF_LANGUAGE = ("judge", "candidate", "teacher")
OF_PAIRS = ("nli", "reward")  # models that judge pairs of texts; none comes with the installation
EMBEDDER = "all-MiniLM-L6-v2"


def role_models(config: LoopConfig, store: Store, student: str | None) -> dict[str, EngineSpec]:
    """A model for every role. Judge, candidate and teacher are the base with its `instruct` adapter, if it has one."""
    known = (*OF_LANGUAGE, "embedder", *OF_PAIRS)
    if unknown := sorted(set(config.roles) - set(known)):
        raise ConfigError(f"roles: there is no role {unknown[0]!r}; there are {', '.join(known)}")
    embedder = config.roles.get("embedder", RoleModel()).model or EMBEDDER
    models = {role: _one(config, config.roles.get(role, RoleModel()), store, student) for role in OF_LANGUAGE}
    models["base"] = models["student"] = tuned(store, config.model, None, config.engine)
    models["embedder"] = EngineSpec(kind="sentence-transformers", model=embedder)
    judging = {role: config.roles[role].model for role in OF_PAIRS if role in config.roles}
    return models | {role: EngineSpec(kind="classifier", model=model) for role, model in judging.items() if model}


def check_models(config: LoopConfig, store: Store) -> None:
    """Find every model before anything is run; raises EngineError naming the one that cannot be had."""
    for spec in role_models(config, store, None).values():
        identity(spec)


def instruct_adapter(model: str) -> str | None:
    """The adapter for judging and teaching that lies beside a model's weights."""
    folder = model_folder(model) / "instruct"
    return str(folder) if folder.is_dir() else None


def typed_models(store: Store, roles: Iterable[str], typed: Mapping[str, str | None]) -> dict[str, EngineSpec]:
    """A model for each role as a command has it: `judge` names the model, `judge_adapter` a dataset or a folder."""
    engine = typed_engine(typed.get("engine") or "local", typed.get("engine_set") or [])
    return {role: _typed(store, role, typed.get(role), typed.get(f"{role}_adapter"), engine) for role in roles}


def tuned(store: Store, model: str, trained: str | None, engine: Local | Vllm | OpenAI | None = None) -> EngineSpec:
    """What a training made of a model: the model with that adapter, or the model that a full run gave."""
    if trained is None:
        return EngineSpec(model=model, settings=engine)
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
        if model is None:
            raise ConfigError(f"no {role} model comes with the installation; name one with --{role} FOLDER_OR_HUB_NAME")
        return EngineSpec(kind="classifier", model=model)
    model = model or "nano"
    if adapter and not Path(adapter).is_dir():
        return tuned(store, model, store.resolve(adapter), engine)
    if adapter is None and role in OF_LANGUAGE and engine.kind != "openai":
        adapter = instruct_adapter(model)
    return EngineSpec(model=model, adapter=adapter, settings=engine)


def _one(config: LoopConfig, said: RoleModel, store: Store, student: str | None) -> EngineSpec:
    model, engine = said.model or config.model, said.engine or config.engine
    if said.adapter == "last-student" and student:
        return tuned(store, config.model, student, engine)
    adapter = said.adapter
    if adapter in (None, "last-student"):
        adapter = None if engine.kind == "openai" else instruct_adapter(model)
    return EngineSpec(model=model, adapter=adapter, settings=engine)
