"""The workers of this machine, kept running for as long as somebody serves, and what they leave behind put right."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import AwaitingRetry, Crashed

from flows.deployments import POOL, ensure_pool
from flows.progress import say
from flows.side_by_side import accelerators

STOP_SECONDS = 20
_GO_ON = {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule"}  # a run that is stopped does not call it a crash


def shares(cards: list[str], at_once: int) -> list[list[str]]:
    """The cards that each of so many workers has: dealt out in turn; two may have to share one."""
    if not cards:
        return [[]] * at_once
    return [cards[i::at_once] or [cards[i % len(cards)]] for i in range(at_once)]


@contextlib.contextmanager
def workers(at_once: int | None = None) -> Iterator[Callable[[], None]]:
    """Workers for what is scheduled, as many as run at once; what this gives starts one again that died.

    At the end they are stopped, and what they were running is set to go on when a worker is there again.
    """
    cards = shares(accelerators(), ensure_pool(at_once))
    mark_dead()
    running = [_start(i, own) for i, own in enumerate(cards)]

    def look() -> None:
        for i, process in enumerate(running):
            if process.poll() is not None:
                say(f"[yellow]a worker ended ({process.returncode}); starting it again[/yellow]")
                ensure_pool()
                mark_dead()
                running[i] = _start(i, cards[i])

    try:
        yield look
    finally:
        _stop(running)


def until_ended(look: Callable[[], None]) -> None:
    """Look after the workers until Ctrl-C or SIGTERM."""
    ended = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        while not ended.wait(2):
            look()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def mark_dead() -> list[str]:
    """Mark as crashed the runs of this machine's workers that no process executes any more; their ids."""
    with get_client(sync_client=True) as client:
        lost = [run for run in _unfinished(client) if _dead(run)]
        for run in lost:
            client.set_flow_run_state(run.id, Crashed(message="its process was killed, or its machine stopped"), True)
    return [str(run.id) for run in lost]


def _stop(running: list[subprocess.Popen[bytes]]) -> None:
    """End the workers. What they were running is run again when there is one; the store has what it had come to."""
    mine = f"{socket.gethostname()}-{os.getpid()}-"
    with get_client(sync_client=True) as client:
        cut = [run.id for run in _unfinished(client) if _worker(run).startswith(mine)]
        for process in running:
            process.terminate()
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdin.close()
        for run in map(client.read_flow_run, cut):
            if run.state_type not in (StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED):
                why = "its worker was stopped; it goes on when there is one again"
                client.set_flow_run_state(run.id, AwaitingRetry(message=why), True)


def _unfinished(client: SyncPrefectClient) -> list[FlowRun]:
    states = [StateType.RUNNING, StateType.PENDING, StateType.PAUSED, StateType.CANCELLING]
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states))),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
    )


def _worker(run: FlowRun) -> str:
    return str(run.labels.get("prefect.worker.name", ""))


def _dead(run: FlowRun) -> bool:
    host, _, rest = _worker(run).rpartition("-")[0].rpartition("-")
    if host != socket.gethostname():
        return False  # another machine's: its own worker knows, and the heartbeats tell
    if not run.infrastructure_pid:
        return not psutil.pid_exists(int(rest))
    with contextlib.suppress(psutil.Error, ValueError):
        return "prefect" not in " ".join(psutil.Process(int(run.infrastructure_pid)).cmdline())
    return True


def _start(number: int, cards: list[str]) -> subprocess.Popen[bytes]:
    named = f"{socket.gethostname()}-{os.getpid()}-{number}"
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "flows.worker", POOL, named],
        env={**os.environ, "PYTHONPATH": path, "PREFECT_WORKER_QUERY_SECONDS": "5", **_GO_ON}
        | ({"CUDA_VISIBLE_DEVICES": ",".join(cards)} if cards else {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=None if os.environ.get("THRESHER_DEBUG") else subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us
    )
