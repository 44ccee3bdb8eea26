"""What a run leaves: a plain PEFT folder, or a model folder; its bytes depend on no machine. And what is made of it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from training.settings import TrainError

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def save_adapter(model: Any, out: Path, name: str) -> None:
    """A plain PEFT folder: sets sorted, the base by its name, no card."""
    model.save_pretrained(out, save_embedding_layers=False, selected_adapters=["default"])
    for stray in out.iterdir():
        if stray.name not in ADAPTER:
            stray.unlink()
    path = out / "adapter_config.json"
    said = json.loads(path.read_text())
    said["base_model_name_or_path"] = name
    if isinstance(said["target_modules"], list):
        said["target_modules"] = sorted(said["target_modules"])
    path.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")


def save_model(model: Any, base: str | Path, out: Path) -> None:
    """A model folder in the base's dtype, with the base's tokenizer and chat template as they came."""
    said = AutoConfig.from_pretrained(base, trust_remote_code=False)
    model.to(said.dtype or torch.float32).save_pretrained(out)
    AutoTokenizer.from_pretrained(base, trust_remote_code=False).save_pretrained(out)


@contextmanager
def written(out: Path) -> Iterator[None]:
    """Turns what a library says about a disk that takes no more into TrainError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainError(f"{out} could not be written ({error}); free the disk, then run the same command") from error


def merge(base: str | Path, adapter: Path, out: Path) -> None:
    """The base with the adapter in its weights, in the base's own dtype, as a folder that needs no PEFT.

    Raises TrainError where the adapter belongs to another base.
    """
    transformers_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", trust_remote_code=False)
    try:
        merged = PeftModel.from_pretrained(model.to(torch.float32), str(adapter)).merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError) as error:
        raise TrainError(f"{adapter} is no adapter of {base}: {str(error)[:300]}") from error
    with written(out):
        save_model(merged, base, out)
