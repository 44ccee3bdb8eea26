"""The workers of this machine, kept running for as long as somebody serves, and what they leave behind put right."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
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
from prefect.states import AwaitingRetry, Cancelled, Crashed

from flows.access import ServerError, health
from flows.deployments import POOL, ensure_pool
from flows.gpus import accelerators, shares
from flows.progress import say
from flows.worker import end_processes

LOOK_SECONDS = 2
STOP_SECONDS = 20
SILENT_SECONDS = 60  # a busy server answers late
QUICK_SECONDS, QUICK_ENDS = 60, 3
_GO_ON = {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": "reschedule"}  # a run that is stopped does not call it a crash


@contextlib.contextmanager
def workers(root: Path, at_once: int | None = None) -> Iterator[Callable[[], None]]:
    """Workers for what is scheduled, as many as run at once; what this gives starts one again that died.

    At the end they are stopped, and what they were running is set to go on when a worker is there again. What they
    and their runs print is in prefect/worker.log of the store; ServerError where one cannot be kept running.
    """
    gpus = shares(accelerators(), ensure_pool(at_once))
    mark_dead()
    log = root / "prefect/worker.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    running = [_start(i, own, log) for i, own in enumerate(gpus)]
    began, quick = [time.monotonic()] * len(running), Counter[int]()

    def look() -> None:
        for i, process in enumerate(running):
            if process.poll() is None:
                continue
            ensure_pool()
            mark_dead(_name(i))
            quick[i] = quick[i] + 1 if time.monotonic() - began[i] < QUICK_SECONDS else 1
            if quick[i] == QUICK_ENDS:
                raise ServerError(f"a worker ended {QUICK_ENDS} times soon after its start; {log} says why")
            say(f"[yellow]a worker ended ({process.returncode}); starting it again. {log} has what it said[/yellow]")
            process.stdin.close()
            running[i], began[i] = _start(i, gpus[i], log), time.monotonic()

    try:
        yield look
    finally:
        _stop(running)


def until_ended(look: Callable[[], None]) -> None:
    """Look after the workers until Ctrl-C or SIGTERM; ServerError where the server has gone."""
    ended, heard = threading.Event(), time.monotonic()
    before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        while not ended.wait(LOOK_SECONDS):
            if _answers():
                heard = time.monotonic()
                with contextlib.suppress(httpx.TransportError):  # it went just now: the next look says so
                    look()
            elif time.monotonic() - heard > SILENT_SECONDS:
                raise ServerError(f"the Prefect server at {os.environ['PREFECT_API_URL']} has gone; start this again")
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def mark_dead(worker: str | None = None) -> list[str]:
    """Mark as crashed the runs of this machine's workers that no process executes any more; their ids.

    `worker` is one that is known to have ended: what it had taken up and not begun is dead too.
    """
    with get_client(sync_client=True) as client:
        lost = [run for run in _unfinished(client) if _dead(run, worker)]
        for run in lost:
            client.set_flow_run_state(run.id, Crashed(message="its process was killed, or its machine stopped"), True)
    return [str(run.id) for run in lost]


def _stop(running: list[subprocess.Popen[bytes]]) -> None:
    """End the workers, with a server or without, and then what they were running."""
    mine, cut = {_name(i) for i in range(len(running))}, list[FlowRun]()
    _if_it_answers(lambda client: cut.extend(run for run in _unfinished(client) if _worker(run) in mine))
    for process in running:
        process.terminate()
    for process in running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdin.close()
    for left in filter(None, map(_process, cut)):  # of a worker that was killed
        with contextlib.suppress(psutil.NoSuchProcess):
            end_processes([left, *left.children(recursive=True)])
    _if_it_answers(lambda client: _put_off(client, cut))


def _put_off(client: SyncPrefectClient, cut: list[FlowRun]) -> None:
    """What was cut short is run again when there is a worker; the store has what it had come to."""
    for before in cut:
        run = client.read_flow_run(before.id)
        if run.state_type in (StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED):
            continue
        if StateType.CANCELLING in (before.state_type, run.state_type):
            client.set_flow_run_state(run.id, Cancelled(message="its worker was stopped"), True)
        else:
            why = "its worker was stopped; it goes on when there is one again"
            client.set_flow_run_state(run.id, AwaitingRetry(message=why), True)


def _if_it_answers(do: Callable[[SyncPrefectClient], None]) -> None:
    """With failures let pass: a server that has gone must not keep workers from being ended."""
    with contextlib.suppress(httpx.HTTPError):
        if _answers():
            with get_client(sync_client=True) as client:
                do(client)


def _answers() -> bool:
    return health(os.environ["PREFECT_API_URL"]) != "silent"


def _unfinished(client: SyncPrefectClient) -> list[FlowRun]:
    states = [StateType.RUNNING, StateType.PENDING, StateType.PAUSED, StateType.CANCELLING]
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states))),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[POOL])),
    )


def _worker(run: FlowRun) -> str:
    return str(run.labels.get("prefect.worker.name", ""))


def _dead(run: FlowRun, gone: str | None) -> bool:
    host, _, server = _worker(run).rpartition("-")[0].rpartition("-")
    if host != socket.gethostname():
        return False  # another machine's: its own worker knows, and the heartbeats tell
    if not run.infrastructure_pid:
        return _worker(run) == gone or not psutil.pid_exists(int(server))
    return _process(run) is None


def _process(run: FlowRun) -> psutil.Process | None:
    """The process of this machine that executes a run; None where there is none any more."""
    with contextlib.suppress(psutil.Error, TypeError, ValueError):
        process = psutil.Process(int(run.infrastructure_pid))
        return process if "prefect" in " ".join(process.cmdline()) else None
    return None


def _name(number: int) -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{number}"


def _start(number: int, gpus: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.worker", POOL, _name(number)],
            env={"PREFECT_WORKER_QUERY_SECONDS": "5", **os.environ, "PYTHONPATH": path, **_GO_ON, **gpus},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=None if os.environ.get("THRESHER_DEBUG") else said,
            start_new_session=True,  # Ctrl-C is for us
        )
