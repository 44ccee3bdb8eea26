"""What Prefect records where there is a server for it, and does just so where there is none."""

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import httpx

from flows.progress import console

RECORD_SECONDS = 60
UNRECORDED = "THRESHER_UNRECORDED"  # in the environment, so that processes started from here know it too


def recording() -> bool:
    """Whether there is a server that this process and its children are recorded on."""
    return UNRECORDED not in os.environ


def if_recorded(made: Any) -> Callable[..., Any]:
    """A Prefect flow or task that is its plain function where nothing is recorded."""

    @functools.wraps(made.fn)
    def call(*given: Any, **named: Any) -> Any:
        return (made if recording() else made.fn)(*given, **named)

    call.fn = made.fn
    return call


def send_what_waits(since: str) -> None:
    """Logs and events that Prefect has not sent; without the server it would try for long, and complain."""
    if "prefect.main" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=10)
    EventsWorker.drain_all(timeout=10)
    _await_record(since)


def _await_record(since: str) -> None:
    """Until the task runs since then stand in the database. The server takes them up slower than a run makes them, and
    forgets what it has not written when it stops: of 60 quick tasks 26 were lost."""
    from prefect.client.orchestration import get_client

    started = {"start_time": {"after_": since}}
    unfinished = {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING"]}}}
    began = changed = time.monotonic()
    seen = [0, 0]
    with get_client(sync_client=True) as client, contextlib.suppress(httpx.HTTPError):  # the run itself is done

        def count(what: str, wanted: dict[str, object]) -> int:
            return client.request("POST", f"/{what}/count", json={what: wanted}).json()

        if not count("flow_runs", started):
            return
        with console.status("Waiting for the Prefect server to write the run down …"):
            while (now := time.monotonic()) < min(began + RECORD_SECONDS, changed + (2 if not seen[1] else 8)):
                counts = [count("task_runs", started), count("task_runs", started | unfinished)]
                seen, changed = counts, now if counts != seen else changed
                time.sleep(0.2)
