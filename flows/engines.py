"""Which model plays a role, where its files are, and one loaded copy of it for all who ask."""

import atexit
import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import httpx
from huggingface_hub import snapshot_download
from pydantic import BaseModel, ConfigDict, model_validator

from flows.engine_settings import Local, OpenAI, Vllm
from flows.handoff import before_engine
from flows.responses import Progress, Remembered, RememberedClasses
from flows.run import Lease
from storage.store import Store
from synthesis.fingerprint import EngineError, fingerprint, folder_digest, packaged_folder

__all__ = [
    "EngineError",
    "EngineSpec",
    "adapter_folder",
    "identity",
    "leases",
    "model_folder",
    "release",
    "trained_on",
]

NANO = Path(__file__).resolve().parent.parent / "models" / "nano"
_VERSIONS = {
    "local": 3,
    "vllm": 1,
    "openai": 1,
    "sentence-transformers": 1,
    "classifier": 1,
}  # raised when an engine's code comes to answer differently
PACKAGED = "all-MiniLM-L6-v2"
_OF_LANGUAGE = ("local", "vllm", "openai")
_BATCH = {"local": 256}  # prompts that are asked together; the others take all, and tell each answer as it comes
_FILES = ["*.json", "*.safetensors", "pytorch_model*.bin", "*.model", "*.txt", "*.jinja"]


class EngineSpec(BaseModel):
    """A model in a role, as a config or a command names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["local", "vllm", "openai", "sentence-transformers", "classifier"] = "local"
    """`local`, `vllm` and `openai` for language models, `sentence-transformers` for embeddings, `classifier` for models
    that judge pairs of texts."""

    model: str = "nano"
    """`nano`, a folder, or a name on the Hugging Face hub; for `openai`, what the server calls it."""

    adapter: str | None = None
    """Folder of a PEFT adapter, or the name of one that lies beside the model's weights."""

    settings: Local | Vllm | OpenAI | None = None
    """Of the engine, where it has any."""

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, said: dict[str, Any]) -> dict[str, Any]:
        """The settings and the kind say the same; either of them is enough."""
        if (settings := said.get("settings")) is not None:
            return said | {"kind": settings.kind}
        defaults = {"vllm": Vllm, "openai": OpenAI}
        return said | {"settings": defaults[said["kind"]]()} if said.get("kind") in defaults else said


def model_folder(name: str) -> Path:
    """Where the model's files are; what is not here yet is fetched from the hub."""
    if name == "nano":
        if not (NANO / "config.json").exists():
            raise EngineError(f"the embedded model is not in {NANO}; install Thresher from a full checkout")
        return NANO
    if name == PACKAGED:
        return packaged_folder()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise EngineError(f"there is no model folder {name}; give a folder, a hub name such as org/model, or nano")
    return _from_hub(name)


def identity(spec: EngineSpec) -> str:
    """What decides the model's answers, as one line; reads files, loads nothing."""
    kind = f"{spec.kind}-{_VERSIONS[spec.kind]}"
    if isinstance(spec.settings, OpenAI):
        where = spec.settings.revision or hashlib.sha256(spec.settings.url.encode()).hexdigest()[:12]
        adapter = adapter_folder(spec)
        return ":".join([kind, spec.model, where, *([folder_digest(adapter)] if adapter else [])])
    return fingerprint(kind, model_folder(spec.model), _dtype(spec), adapter_folder(spec))


def trained_on(base: EngineSpec) -> str:
    """What decides what a training makes of a model: its files, the precision here, its adapter; not the engine's code.

    "local-3" is how the first trainings called it; what they made is found by that.
    """
    return fingerprint("local-3", model_folder(base.model), _dtype(base), adapter_folder(base))


def leases(specs: Mapping[str, EngineSpec], store: Store, progress: Progress = lambda done, total: None) -> Lease:
    """The engines of a step by role. They stay loaded for the next step; `release` frees them."""
    identities = {role: identity(spec) for role, spec in specs.items()}
    spent: dict[str, float] = {}

    @contextmanager
    def open_() -> Iterator[Mapping[str, Any]]:
        with _LOCK:
            # of vLLM's, which take what memory there is, only those of this step stay
            _keep_only({_base_key(spec) for spec in specs.values()}, ("vllm",))
            engines = {role: _engine(spec, identities[role]) for role, spec in specs.items()}
        yield {role: _kept(engine, specs[role].kind, store, progress, spent) for role, engine in engines.items()}

    adapters = {role: dataset for role, spec in specs.items() if (dataset := _dataset_of(spec, store))}
    return Lease(identities, open_, spent, adapters)


def _kept(engine: Any, kind: str, store: Store, progress: Progress, spent: dict[str, float]) -> Any:
    """The engine with its answers kept, where it has any that are worth it."""
    if kind in _OF_LANGUAGE:
        return Remembered(engine, store, _BATCH.get(kind), progress, spent)
    if kind == "classifier":
        return RememberedClasses(engine, store, progress=progress, spent=spent)
    return engine


def release() -> None:
    """Free every model, such as before training."""
    with _LOCK:
        _keep_only(set())


# One loaded base for each model; the views of its adapters share it.
_LOADED: dict[tuple[str, str], Any] = {}
_LOCK = threading.RLock()


def _engine(spec: EngineSpec, name: str) -> Any:
    with _told(f"model {spec.model!r}"):
        base = _loaded(_base_key(spec), lambda: _base(spec, name))
        return base.with_adapter(adapter_folder(spec), name) if spec.kind in _OF_LANGUAGE else base


def _base(spec: EngineSpec, name: str) -> Any:
    """The engine without an adapter, its weights not loaded twice. Each kind imports what it needs, and no more."""
    match spec.settings:
        case Vllm() as said:
            from synthesis.vllm_engine import VllmEngine

            before_engine()
            return VllmEngine(model_folder(spec.model), identity=name, **said.model_dump(exclude={"kind"}))
        case OpenAI() as said:
            from synthesis.openai_engine import OpenAIEngine

            settings = said.model_dump(exclude={"kind", "revision", "tokenizer"})
            tokenizer = model_folder(said.tokenizer) if said.tokenizer else None
            return OpenAIEngine(spec.model, identity=name, tokenizer=tokenizer, **settings)
    folder = model_folder(spec.model)
    if spec.kind == "sentence-transformers":
        from synthesis.embedder import SentenceEmbedder

        return SentenceEmbedder(folder, identity=name, device=_device())
    if spec.kind == "classifier":
        from synthesis.classifier import TextClassifier

        return TextClassifier(folder, identity=name, device=_device())
    from synthesis.local_engine import LocalEngine

    return LocalEngine(folder, identity=name, device=_device())


def _loaded(key: tuple[str, str], load: Callable[[], Any]) -> Any:
    if key not in _LOADED:
        _LOADED[key] = load()
    return _LOADED[key]


def _keep_only(keys: set[tuple[str, str]], kinds: tuple[str, ...] | None = None) -> None:
    for key in [k for k in _LOADED if k not in keys and (kinds is None or k[0] in kinds)]:
        engine = _LOADED.pop(key)
        if key[0] in _OF_LANGUAGE:
            engine.close()


def _base_key(spec: EngineSpec) -> tuple[str, str]:
    """By content: weights that were replaced in their place are another model."""
    said = spec.settings.model_dump_json() if isinstance(spec.settings, Vllm | OpenAI) else ""
    if spec.kind == "openai":
        return spec.kind, spec.model + said
    return spec.kind, fingerprint(spec.kind, model_folder(spec.model), _dtype(spec)) + said


def adapter_folder(spec: EngineSpec) -> Path | None:
    """Where the adapter's files are, if it has one: in a folder, or beside the model's weights by name."""
    if spec.adapter is None:
        return None
    beside = [] if spec.kind == "openai" else [model_folder(spec.model) / spec.adapter]
    for folder in (Path(spec.adapter).expanduser(), *beside):
        if (folder / "adapter_config.json").exists():
            return folder
    raise EngineError(f"there is no adapter in {spec.adapter}; give a folder that holds adapter_config.json")


def _dataset_of(spec: EngineSpec, store: Store) -> str | None:
    """The dataset whose files the adapter is, or the model, where a training in this store made it."""
    files = Path(spec.adapter or spec.model)
    dataset = files.parent.name
    return dataset if dataset and store.files(dataset) == files and store.exists(dataset) else None


def _dtype(spec: EngineSpec) -> str:
    if isinstance(spec.settings, Vllm):
        return "+".join(filter(None, [spec.settings.dtype, spec.settings.quantization]))
    return "bfloat16" if spec.kind == "local" and _device() == "cuda" else "float32"


@functools.cache
def _device() -> str:
    """Where models run, told without torch: importing it takes longer than most commands."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    card = any(Path(p).exists() for p in ("/dev/nvidia0", "/dev/dxg"))
    return "cuda" if card and not hidden and not metadata.version("torch").endswith("+cpu") else "cpu"


@functools.cache
def _from_hub(name: str) -> Path:
    with _told(f"model {name!r}"):
        return Path(snapshot_download(name, allow_patterns=_FILES))


@contextmanager
def _told(what: str) -> Iterator[None]:
    """One line that names the model, in the place of a library's page."""
    try:
        yield
    except EngineError:
        raise
    except (OSError, ValueError, httpx.HTTPError) as error:
        why = " ".join(str(error).split())[:160]
        raise EngineError(
            f"{what} could not be loaded ({why}); check the name and the network, or give a folder"
        ) from error


atexit.register(release)  # a process of vLLM's must not outlive ours, nor an adapter on a server
