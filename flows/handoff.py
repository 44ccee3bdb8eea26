"""The engines' processes have ended and their memory is back, measured before a training starts."""

import time
from dataclasses import dataclass

import psutil

from storage.store import StoreError

PATIENCE = 60.0  # seconds that an engine may take to end
_ENGINES = ("vllm", "spawn_main", "forkserver")  # in the command line of a process that holds a model
_NOT = "resource_tracker"


@dataclass(frozen=True, slots=True)
class HandOff:
    """What was left of the engines: processes, and bytes of GPU memory that these hold (None: no GPU is seen)."""

    processes: int
    gpu_bytes: int | None
    seconds: float


def handed_off(patience: float = PATIENCE) -> HandOff:
    """Wait until no process below this one holds a model; raises StoreError naming one that does not end."""
    started = time.monotonic()
    while left := engine_processes():
        if time.monotonic() - started > patience:
            named = ", ".join(f"{p.pid} ({' '.join(_words(p))[:60]})" for p in left[:3])
            raise StoreError(
                f"{len(left)} engine processes have not ended after {patience:.0f} s: {named}; "
                "end them, and run the same command again"
            )
        time.sleep(0.1)
    held = gpu_memory()
    if held:
        raise StoreError(f"processes below this one still hold {held / 2**30:.1f} GiB of GPU memory; end them first")
    return HandOff(0, held, round(time.monotonic() - started, 3))


def engine_processes() -> list[psutil.Process]:
    """Processes below this one that hold a model, living ones only."""
    found = []
    for process in psutil.Process().children(recursive=True):
        words = " ".join(_words(process))
        if any(e in words for e in _ENGINES) and _NOT not in words:
            found.append(process)
    return found


def gpu_memory() -> int | None:
    """Bytes of GPU memory that processes below this one hold, by NVML; None where there is no NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver, no GPU: each has its own error
        return None
    below = {p.pid for p in psutil.Process().children(recursive=True)}
    total = 0
    for i in range(pynvml.nvmlDeviceGetCount()):
        device = pynvml.nvmlDeviceGetHandleByIndex(i)
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(device):
            total += (process.usedGpuMemory or 0) if process.pid in below else 0
    return total


def _words(process: psutil.Process) -> list[str]:
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.Error:
        return []
