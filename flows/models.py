"""Which model plays which role."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from flows.config import ConfigError, LoopConfig, RoleModel
from flows.engines import EngineSpec, identity, model_folder
from storage.store import Store

OF_LANGUAGE = ("judge", "candidate", "teacher")
EMBEDDER = "all-MiniLM-L6-v2"


def role_models(config: LoopConfig, store: Store, student: str | None) -> dict[str, EngineSpec]:
    """A model for every role. Judge, candidate and teacher are the base with its `instruct` adapter, if it has one."""
    known = (*OF_LANGUAGE, "embedder")
    if unknown := sorted(set(config.roles) - set(known)):
        raise ConfigError(f"roles: there is no role {unknown[0]!r}; there are {', '.join(known)}")
    embedder = config.roles.get("embedder", RoleModel()).model or EMBEDDER
    models = {role: _one(config, config.roles.get(role, RoleModel()), store, student) for role in OF_LANGUAGE}
    models["base"] = models["student"] = EngineSpec(model=config.model)
    models["embedder"] = EngineSpec(kind="sentence-transformers", model=embedder)
    return models


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
    return {role: _typed(store, role, typed.get(role), typed.get(f"{role}_adapter")) for role in roles}


def tuned(store: Store, model: str, trained: str | None) -> EngineSpec:
    """What a training made of a model: the model with that adapter, or the model that a full run gave."""
    if trained is None:
        return EngineSpec(model=model)
    folder = store.files(trained)
    if (folder / "adapter_config.json").exists():
        return EngineSpec(model=model, adapter=str(folder))
    return EngineSpec(model=str(folder))


def _typed(store: Store, role: str, model: str | None, adapter: str | None) -> EngineSpec:
    """Where no adapter is typed, judge, candidate and teacher take the `instruct` adapter beside the model."""
    if role == "embedder":
        return EngineSpec(kind="sentence-transformers", model=model or EMBEDDER)
    model = model or "nano"
    if adapter and not Path(adapter).is_dir():
        return tuned(store, model, store.resolve(adapter))
    if adapter is None and role in OF_LANGUAGE:
        adapter = instruct_adapter(model)
    return EngineSpec(model=model, adapter=adapter)


def _one(config: LoopConfig, said: RoleModel, store: Store, student: str | None) -> EngineSpec:
    model = said.model or config.model
    if said.adapter == "last-student" and student:
        return tuned(store, config.model, student)
    adapter = instruct_adapter(model) if said.adapter in (None, "last-student") else said.adapter
    return EngineSpec(model=model, adapter=adapter)
