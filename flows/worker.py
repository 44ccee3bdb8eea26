"""The worker that executes what is scheduled, as a process: `python -m flows.worker <pool> <name>`.

A run at a time, each in a process of its own. It ends by SIGTERM, and with the process that started it, however that
one ends: its standard input has an end then. What it was running is stopped with it.
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from typing import Any

import psutil
from prefect.utilities.processutils import command_from_string, command_to_string
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from flows.gpus import OFFERED

STOP_SECONDS = 8


class _Job(ProcessJobConfiguration):
    """A run that waits for GPUs of its own, where the machine has any. Prefect asks for a class to change a command."""

    def prepare_for_flow_run(self, *given: Any, **named: Any) -> None:
        super().prepare_for_flow_run(*given, **named)
        if OFFERED in os.environ:
            self.command = command_to_string([sys.executable, "-m", "flows.gpus", *command_from_string(self.command)])


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pool, name = sys.argv[1:]
    try:
        asyncio.run(_work(pool, name))
    finally:
        end_processes(psutil.Process().children(recursive=True))


async def _work(pool: str, name: str) -> None:
    worker = ProcessWorker(work_pool_name=pool, name=name, limit=1, create_pool_if_not_found=False)
    worker.job_configuration = _Job
    working = asyncio.ensure_future(worker.start(printer=lambda *_: None))

    def stop() -> None:
        end_processes(psutil.Process().children(recursive=True))
        working.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    with contextlib.suppress(asyncio.CancelledError):
        await working


def end_processes(processes: list[psutil.Process]) -> None:
    """SIGTERM, and SIGKILL for what has not ended some seconds later."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, STOP_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing is ever written there: it returns once nobody holds the other end
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
