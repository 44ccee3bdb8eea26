"""Which model plays a role, where its files are, and one loaded copy of it for all who ask."""

import atexit
import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
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
from storage.responses import Responses
from storage.store import Store
from synthesis.fingerprint import EngineError, fingerprint, folder_digest, packaged_folder

__all__ = [
    "EngineError",
    "EngineSpec",
    "adapter_folder",
    "dataset_of",
    "identity",
    "leases",
    "model_folder",
    "release",
    "trained_on",
]

NANO = Path(__file__).resolve().parent.parent / "models" / "nano"
_VERSIONS = {
    "local": 4,
    "vllm": 3,
    "openai": 1,
    "sentence-transformers": 1,
    "classifier": 1,
}  # raised when an engine's code comes to answer differently
_WORDING = "worded-2"  # of prompts that are written here for a server; raised when they come to be written otherwise
PACKAGED = "all-MiniLM-L6-v2"
_OF_LANGUAGE = ("local", "vllm", "openai")
_SMALL = ("sentence-transformers", "classifier")
_ON_CARD = ("vllm", "local", *_SMALL)
_BATCH = {"local": 256}  # prompts that are asked together; the others take all, and tell each answer as it comes
_READS = ["*.json", "*.model", "*.txt", "*.jinja"]  # what a tokenizer needs
_WEIGHTS = ["*.safetensors"]
_OLD_WEIGHTS = ["pytorch_model*.bin"]  # where there are no others


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


def model_folder(name: str, weights: bool = True) -> Path:
    """Where the model's files are; what is not here yet is fetched from the hub, its weights where they are needed."""
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
    return _from_hub(name, weights)


def identity(spec: EngineSpec) -> str:
    """What decides the model's answers, as one line; reads files, loads nothing."""
    kind = f"{spec.kind}-{_VERSIONS[spec.kind]}"
    if isinstance(spec.settings, OpenAI):
        return ":".join([kind, spec.model, *_of_server(spec.settings), *_digest(adapter_folder(spec))])
    return fingerprint(kind, model_folder(spec.model), _dtype(spec), adapter_folder(spec))


def trained_on(base: EngineSpec) -> str:
    """What decides what a training makes of a model: its files, the precision here, its adapter; not the engine's code.

    "local-3" is how the first trainings called it; what they made is found by that.
    """
    return fingerprint("local-3", model_folder(base.model), _dtype(base), adapter_folder(base))


def _of_server(said: OpenAI) -> list[str]:
    """What decides a server's answers beside the model's name: who writes the prompt, and where it is cut."""
    where = said.revision or hashlib.sha256(said.url.encode()).hexdigest()[:12]
    written = said.tokenizer and [_WORDING, *_digest(model_folder(said.tokenizer, weights=False), weights=False)]
    return [where, *(written or []), *([f"thinks{said.reasoning_tokens}"] if said.reasoning_tokens is not None else [])]


def _digest(folder: Path | None, weights: bool = True) -> list[str]:
    return [folder_digest(folder, weights)] if folder else []


def leases(
    specs: Mapping[str, EngineSpec], store: Store, progress: Progress = lambda done, total: None, run: str = ""
) -> Lease:
    """The engines of a step by role. They stay loaded for the next step; `release` frees them.

    A `budget` is the run's of that name, and of all commands without one together.
    """
    identities = {role: identity(spec) for role, spec in specs.items()}
    devices(specs, _device())  # what cannot be is told before any work
    spent: dict[str, float] = {}
    made = {role: dataset_of(store, Path(spec.adapter or spec.model)) for role, spec in specs.items()}
    adapters = {role: dataset for role, dataset in made.items() if dataset}
    return Lease(identities, partial(lent, specs, identities, store, progress, spent, run), spent, adapters)


@contextmanager
def lent(
    specs: Mapping[str, EngineSpec],
    identities: Mapping[str, str],
    store: Store,
    progress: Progress = lambda done, total: None,
    spent: dict[str, float] | None = None,
    run: str = "",
) -> Iterator[Mapping[str, Any]]:
    """The engines of a step, loaded in this process; of the store they need its `answers` alone."""
    where = devices(specs, _device())
    keys = {role: _base_key(spec, where[role], store, run) for role, spec in specs.items()}
    spent = {} if spent is None else spent
    with _LOCK:
        if _device() == "cuda":
            _end_elsewhere()
        # vLLM takes what memory there is: only what this step needs stays beside it, and none of another step's
        crowded = _device() == "cuda" and any(spec.kind == "vllm" for spec in specs.values())
        _keep_only(set(keys.values()), _ON_CARD if crowded else ("vllm",))
        engines = {r: _engine(spec, identities[r], keys[r], where[r]) for r, spec in specs.items()}
    yield {role: _kept(engine, specs[role].kind, store, progress, spent) for role, engine in engines.items()}


def devices(specs: Mapping[str, EngineSpec], card: str) -> dict[str, str]:
    """Where the model of each role runs. Beside vLLM, which takes its share of a GPU whole, small models take the CPU.

    Raises EngineError where the engines of one step cannot share a GPU: one of the local engine takes as much of it as
    its longest batch comes to need, and vLLM has left it what happens to be over.
    """
    shares = {_base_key(spec, card): spec.settings.gpu_memory for spec in specs.values() if spec.kind == "vllm"}
    if card == "cuda" and sum(shares.values()) > 1:
        raise EngineError(
            f"the step needs {len(shares)} vLLM engines at once, and their gpu_memory is {sum(shares.values()):g} of a "
            "GPU in all: give each less, 1 in all, or give one of the roles a server or the same model"
        )
    if local := [role for role, spec in specs.items() if spec.kind == "local" and card == "cuda" and shares]:
        raise EngineError(
            f"the {local[0]} is on the local engine, and the same step has a role on vLLM, which takes its share of "
            "the GPU whole: give both to vLLM, one of them to a server, or both to the local engine"
        )
    return {role: "cpu" if shares and spec.kind in _SMALL else card for role, spec in specs.items()}


def _kept(engine: Any, kind: str, store: Store, progress: Progress, spent: dict[str, float]) -> Any:
    """The engine with its answers kept, where it has any that are worth it."""
    if kind in _OF_LANGUAGE:
        return Remembered(engine, store, _BATCH.get(kind), progress, spent)
    if kind == "classifier":
        return RememberedClasses(engine, store, progress=progress, spent=spent)
    return engine


def release() -> None:
    """Free every model, such as before training; raises EngineError, at the end, where one could not be left clean."""
    with _LOCK:
        _end_elsewhere()
        _keep_only(set())


def _end_elsewhere() -> None:
    """Engines on the machines of a cluster, of which this may be one, take the memory that is wanted here."""
    for end in ELSEWHERE:
        end()


ELSEWHERE: list[Callable[[], None]] = []  # what ends the engines that this process has in others
Key = tuple[str, ...]
# One loaded base for each model; the views of its adapters share it.
_LOADED: dict[Key, Any] = {}
_LOCK = threading.RLock()


def _engine(spec: EngineSpec, name: str, key: Key, device: str) -> Any:
    with _told(f"model {spec.model!r}"):
        if key not in _LOADED:
            _LOADED[key] = _base(spec, name, key, device)
        base = _LOADED[key]
        return base.with_adapter(adapter_folder(spec), name) if spec.kind in _OF_LANGUAGE else base


def _base(spec: EngineSpec, name: str, key: Key, device: str) -> Any:
    """The engine without an adapter, its weights not loaded twice. Each kind imports what it needs, and no more."""
    match spec.settings:
        case Vllm() as said:
            from synthesis.vllm_engine import VllmEngine

            before_engine()
            return VllmEngine(model_folder(spec.model), identity=name, **said.model_dump(exclude={"kind"}))
        case OpenAI() as said:
            from synthesis.openai_engine import OpenAIEngine

            settings = said.model_dump(exclude={"kind", "revision", "tokenizer"})
            tokenizer = model_folder(said.tokenizer, weights=False) if said.tokenizer else None
            ledger = partial(_paid, Responses(Path(key[2])), f"run {key[3]}: {spec.model} at {said.url}")
            return OpenAIEngine(spec.model, identity=name, tokenizer=tokenizer, ledger=ledger, **settings)
    folder = model_folder(spec.model)
    if spec.kind == "sentence-transformers":
        from synthesis.embedder import SentenceEmbedder

        return SentenceEmbedder(folder, identity=name, device=device)
    if spec.kind == "classifier":
        from synthesis.classifier import TextClassifier

        return TextClassifier(folder, identity=name, device=device)
    from synthesis.local_engine import LocalEngine

    return LocalEngine(folder, identity=name, device=device)


def _paid(kept: Responses, account: str, cost: float) -> float:
    return kept.add(account, {"cost": cost})["cost"]


def _keep_only(keys: set[Key], kinds: tuple[str, ...] | None = None) -> None:
    """Close all others, each even if another cannot be, and raise what the first of these said."""
    wrong: list[EngineError] = []
    for key in [k for k in _LOADED if k not in keys and (kinds is None or k[0] in kinds)]:
        engine = _LOADED.pop(key)
        try:
            engine.close()
        except EngineError as why:
            wrong.append(why)
    if wrong:
        raise wrong[0]


def _base_key(spec: EngineSpec, device: str, store: Store | None = None, run: str = "") -> Key:
    """By content: weights that were replaced in their place are another model. A server's has its purse: the run's."""
    said = spec.settings.model_dump_json() if isinstance(spec.settings, Vllm | OpenAI) else ""
    if spec.kind == "openai":
        return spec.kind, spec.model + said, *([str(store.answers.path), run] if store else [])
    return spec.kind, fingerprint(spec.kind, model_folder(spec.model), _dtype(spec)) + said, device


def adapter_folder(spec: EngineSpec) -> Path | None:
    """Where the adapter's files are, if it has one: in a folder, or beside the model's weights by name."""
    if spec.adapter is None:
        return None
    beside = [] if spec.kind == "openai" else [model_folder(spec.model) / spec.adapter]
    for folder in (Path(spec.adapter).expanduser(), *beside):
        if (folder / "adapter_config.json").exists():
            return folder
    raise EngineError(f"there is no adapter in {spec.adapter}; give a folder that holds adapter_config.json")


def dataset_of(store: Store, files: Path) -> str | None:
    """The dataset whose files these are, an adapter's or a model's, where a training in this store made it."""
    dataset = files.parent.name
    return dataset if dataset and store.files(dataset) == files and store.exists(dataset) else None


def _dtype(spec: EngineSpec) -> str:
    if isinstance(spec.settings, Vllm):
        said = spec.settings
        longest = f"context{said.context}" if said.context else None  # where an answer is cut
        return "+".join(filter(None, [said.dtype, said.quantization, longest]))
    return "bfloat16" if spec.kind == "local" and _device() == "cuda" else "float32"


@functools.cache
def _device() -> str:
    """Where models run, told without torch: importing it takes longer than most commands."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    return "cuda" if has_card() and not hidden and not metadata.version("torch").endswith("+cpu") else "cpu"


def has_card(devices: Path = Path("/dev")) -> bool:
    """Whether a GPU is there; a container may have been given another than the first."""
    return any(devices.glob("nvidia[0-9]*")) or (devices / "dxg").exists()


@functools.cache
def _from_hub(name: str, weights: bool) -> Path:
    with _told(f"model {name!r}"):
        folder = Path(snapshot_download(name, allow_patterns=_READS + _WEIGHTS * weights))
        if weights and not any(folder.rglob(_WEIGHTS[0])):
            snapshot_download(name, allow_patterns=_OLD_WEIGHTS)
        return folder


@contextmanager
def _told(what: str) -> Iterator[None]:
    """One line that names the model, in the place of a library's page."""
    try:
        yield
    except EngineError:
        raise
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        why = " ".join(str(error).split())[:160]
        raise EngineError(
            f"{what} could not be loaded ({why}); check the name and the network, or give a folder"
        ) from error


atexit.register(release)  # a process of vLLM's must not outlive ours, nor an adapter on a server
