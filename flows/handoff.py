"""The engines' processes have ended and their memory is back, measured before a training starts."""

import contextlib
import os
import time
from dataclasses import dataclass
from typing import Any

import psutil

from flows.gpus import accelerators
from storage.store import StoreError
from synthesis.vllm_process import forget, process_groups

PATIENCE = 60.0  # seconds that an engine may take to end
SLACK = 1 << 30  # bytes that a card may have in use besides, such as for this process's own context
_BEFORE: dict[str, int] = {}  # bytes in use on each card before the first engine since the last hand-off


@dataclass(frozen=True, slots=True)
class HandOff:
    """What was left of the engines: processes, and the most bytes that a card had in use over what it had before them.

    The bytes are None where no engine was started, or no NVML tells of a card.
    """

    processes: int
    gpu_bytes: int | None
    seconds: float


def before_engine() -> None:
    """To be called before an engine takes a card's memory: remembers what is in use."""
    if not _BEFORE:
        _BEFORE.update(used_memory())


def handed_off(
    patience: float | None = None,
    groups: set[int] | None = None,
    before: dict[str, int] | None = None,
    nvml: Any = None,
) -> HandOff:
    """Wait until the engines' process groups are empty and the cards' memory is back; StoreError says what is not.

    A group is asked, not the tree below this process: a part of an engine whose parent died still belongs to it.
    """
    started, patience = time.monotonic(), PATIENCE if patience is None else patience
    groups, before = process_groups() if groups is None else groups, _BEFORE if before is None else before
    while True:
        left, over = living(groups), _over(before, nvml)
        if not left and max(over.values(), default=0) <= SLACK:
            break
        if time.monotonic() - started > patience:
            raise StoreError(_still(left, over, patience))
        time.sleep(0.1)
    _BEFORE.clear()
    forget(groups)
    return HandOff(0, max(over.values(), default=None), round(time.monotonic() - started, 3))


def living(groups: set[int]) -> list[psutil.Process]:
    """Processes of the groups that have not ended."""
    found = []
    for process in psutil.process_iter() if groups else ():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) in groups and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def used_memory(nvml: Any = None) -> dict[str, int]:
    """Bytes in use on each card that this process may use, whoever uses them; without those that NVML cannot tell of.

    Such are all of them where there is no NVML, and a card whose memory it does not count, as where CPU and GPU share
    one.
    """
    if nvml is None:
        try:
            import pynvml as nvml

            nvml.nvmlInit()
        except Exception:  # no library, no driver, no GPU: each has its own error
            return {}
    by = {True: lambda card: nvml.nvmlDeviceGetHandleByIndex(int(card)), False: nvml.nvmlDeviceGetHandleByUUID}
    told = {}
    for card in accelerators():
        with contextlib.suppress(nvml.NVMLError):
            told[card] = nvml.nvmlDeviceGetMemoryInfo(by[card.isdigit()](card)).used
    return told


def _over(before: dict[str, int], nvml: Any) -> dict[str, int]:
    now = used_memory(nvml) if before else {}
    return {card: max(0, now[card] - used) for card, used in before.items() if card in now}


def _still(left: list[psutil.Process], over: dict[str, int], patience: float) -> str:
    if left:
        named = ", ".join(f"{p.pid} ({_words(p)[:60]})" for p in left[:3])
        what = f"{len(left)} engine processes have not ended after {patience:.0f} s: {named}; end them"
    else:
        card, more = max(over.items(), key=lambda kv: kv[1])
        what = (
            f"GPU {card} has {more / 2**30:.1f} GiB more in use than before the engine started, {patience:.0f} s "
            "after it ended; end what holds them (nvidia-smi names it)"
        )
    return f"{what}, and run the same command again"


def _words(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return "?"
