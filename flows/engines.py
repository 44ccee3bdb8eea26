"""Which model plays a role, where its files are, and one loaded copy of it for all who ask."""

import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import httpx
from huggingface_hub import snapshot_download
from pydantic import BaseModel, ConfigDict

from flows.responses import Progress, Remembered, RememberedClasses
from flows.run import Lease
from storage.store import Store
from synthesis.fingerprint import EngineError, fingerprint, packaged_folder

__all__ = ["EngineError", "EngineSpec", "identity", "leases", "model_folder", "release"]

NANO = Path(__file__).resolve().parent.parent / "models" / "nano"
_VERSIONS = {
    "local": 3,
    "sentence-transformers": 1,
    "cross-encoder": 1,
}  # raised when an engine's code comes to answer differently
PACKAGED = "all-MiniLM-L6-v2"
_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


class EngineSpec(BaseModel):
    """A model in a role, as a config or a command names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["local", "sentence-transformers", "cross-encoder"] = "local"
    """`local` for language models, `sentence-transformers` for embeddings, `cross-encoder` for pairs of texts (NLI)."""

    model: str = "nano"
    """`nano`, a folder, or a name on the Hugging Face hub."""

    adapter: str | None = None
    """Folder of a PEFT adapter, or the name of one that lies beside the model's weights."""


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
    return fingerprint(kind, model_folder(spec.model), _dtype(spec), _adapter_folder(spec))


def leases(specs: Mapping[str, EngineSpec], store: Store, progress: Progress = lambda done, total: None) -> Lease:
    """The engines of a step by role. They stay loaded for the next step; `release` frees them."""
    identities = {role: identity(spec) for role, spec in specs.items()}
    spent: dict[str, int] = {}

    @contextmanager
    def open_() -> Iterator[Mapping[str, Any]]:
        with _LOCK:
            engines = {role: _engine(spec, identities[role]) for role, spec in specs.items()}
        kept = {"local": Remembered, "cross-encoder": RememberedClasses}
        yield {
            role: kept[specs[role].kind](engine, store, progress=progress, spent=spent)
            if specs[role].kind in kept
            else engine
            for role, engine in engines.items()
        }

    adapters = {role: dataset for role, spec in specs.items() if (dataset := _dataset_of(spec, store))}
    return Lease(identities, open_, spent, adapters)


def release() -> None:
    """Free every model, such as before training."""
    with _LOCK:
        _keep_only(set())


# One loaded base for each model; the views of its adapters share it.
_LOADED: dict[tuple[str, str], Any] = {}
_LOCK = threading.RLock()


def _engine(spec: EngineSpec, name: str) -> Any:
    key, folder = _base_key(spec), model_folder(spec.model)
    with _told(f"model {spec.model!r}"):
        if spec.kind == "sentence-transformers":
            from synthesis.embedder import SentenceEmbedder

            return _loaded(key, lambda: SentenceEmbedder(folder, identity=name, device=_device()))
        if spec.kind == "cross-encoder":
            from synthesis.nli import CrossEncoder

            return _loaded(key, lambda: CrossEncoder(folder, identity=name, device=_device()))
        from synthesis.local_engine import LocalEngine

        base: LocalEngine = _loaded(key, lambda: LocalEngine(folder, identity=name, device=_device()))
        return base.with_adapter(_adapter_folder(spec), name)


def _loaded(key: tuple[str, str], load: Callable[[], Any]) -> Any:
    if key not in _LOADED:
        _LOADED[key] = load()
    return _LOADED[key]


def _keep_only(keys: set[tuple[str, str]]) -> None:
    for key in [k for k in _LOADED if k not in keys]:
        engine = _LOADED.pop(key)
        if key[0] == "local":
            engine.close()


def _base_key(spec: EngineSpec) -> tuple[str, str]:
    """By content: weights that were replaced in their place are another model."""
    return spec.kind, fingerprint(spec.kind, model_folder(spec.model), _dtype(spec))


def _adapter_folder(spec: EngineSpec) -> Path | None:
    if spec.adapter is None:
        return None
    for folder in (Path(spec.adapter).expanduser(), model_folder(spec.model) / spec.adapter):
        if (folder / "adapter_config.json").exists():
            return folder
    raise EngineError(f"there is no adapter in {spec.adapter}; give a folder that holds adapter_config.json")


def _dataset_of(spec: EngineSpec, store: Store) -> str | None:
    """The dataset whose files the adapter is, or the model, where a training in this store made it."""
    files = Path(spec.adapter or spec.model)
    dataset = files.parent.name
    return dataset if dataset and store.files(dataset) == files and store.exists(dataset) else None


def _dtype(spec: EngineSpec) -> str:
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
