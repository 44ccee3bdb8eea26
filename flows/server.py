"""The Prefect server that runs are recorded on: the one that is configured, else the store's own.

<store>/prefect/            PREFECT_HOME of the store's own server: its database, its settings
<store>/prefect/server.json pid, port and url of the server, valid while server.lock is held
<store>/prefect/server.log  what the server says
<store>/prefect/users.lock  held shared by every process that uses the server; see server_main.py
<store>/prefect/start.lock  held by the one process that looks for the server or starts it
"""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
from rich.console import Console

from storage.store import StoreError

START_SECONDS = 240  # a new database took 100 s on two cores with twelve busy processes
RECORD_SECONDS = 60
_OURS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # V2 breaks the cards' images and calls a host outside
}
_QUIET = {
    # The console only: runs still log to the server, and the command says in one line what went wrong.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}


class ServerError(StoreError):
    """The server cannot be had; the message names it and the remedy."""


@dataclass(frozen=True, slots=True)
class Server:
    url: str  # where a browser finds the UI, such as http://127.0.0.1:40123
    api: str
    own: bool  # kept with the store; false for one that the user configured
    started: bool  # by this process


@contextlib.contextmanager
def serving(store_root: Path, port: int | None = None) -> Iterator[Server]:
    """A server that answers, with this process's Prefect pointed at it. Leaves when the last process using it does."""
    if api := configured_api():
        if not _answers(api):
            raise ServerError(
                f"the Prefect server at {api} does not answer; start it, or unset PREFECT_API_URL (or choose another "
                "Prefect profile) to let Thresher start a server of its own"
            )
        with _environment({**_quiet(), "PREFECT_API_URL": api}):
            yield Server(api.removesuffix("/api"), api, own=False, started=False)
        return
    home = Path(store_root).absolute() / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    with _joined(home, port) as server, _environment({**_client_settings(home), "PREFECT_API_URL": server.api}):
        since = datetime.now(UTC).isoformat()
        try:
            yield server
        finally:
            _send_what_waits(since)


def configured_api() -> str | None:
    """The API that the environment or the active Prefect profile names, read without importing Prefect (2 s)."""
    if api := os.environ.get("PREFECT_API_URL"):
        return api.rstrip("/")
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser()
    if not path.exists():
        return None
    try:
        profiles = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ServerError(f"Prefect's profiles in {path} cannot be read: {error}; mend or remove the file") from error
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    api = profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")
    return api.rstrip("/") if api else None


@contextlib.contextmanager
def _joined(home: Path, port: int | None) -> Iterator[Server]:
    """Be one of the users of the store's server; start it if nobody runs it."""
    process = None
    with (home / "users.lock").open("a") as users:
        os.register_at_fork(after_in_child=users.close)  # a forked worker that outlives us must not hold our lock
        with (home / "start.lock").open("a") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            fcntl.flock(users, fcntl.LOCK_SH)  # waits for a server that is stopping to be gone
            if _held(home / "server.lock"):
                server = _wait(home, None)
            else:
                process = _spawn(home, port)
                server = _wait(home, process)
        if port and not server.url.endswith(f":{port}"):
            _say(f"The store's Prefect server already runs at {server.url}, not on port {port}; using it.")
        try:
            yield server
        finally:
            fcntl.flock(users, fcntl.LOCK_UN)
            if process:
                _stop_if_unused(users, process)


def _spawn(home: Path, port: int | None) -> subprocess.Popen[bytes]:
    log = home / "server.log"
    if log.exists():
        log.replace(home / "server.log.old")
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-P", Path(__file__).with_name("server_main.py"), home, str(port or 0)],
            env={**_without_profile(), **_OURS, "PREFECT_HOME": str(home)},
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,  # Ctrl-C is for us: others may be using the server
        )


def _wait(home: Path, process: subprocess.Popen[bytes] | None) -> Server:
    """The server once it answers; `process` is given when it was just started."""
    began = time.monotonic()
    with _console().status("Starting the store's Prefect server …" if process else "Waiting for the Prefect server …"):
        while time.monotonic() - began < START_SECONDS:
            if process and process.poll() is not None:
                said = (home / "server.log").read_text(errors="replace").strip().splitlines()
                raise ServerError(f"the Prefect server did not start: {(said or ['no reason given'])[-1]}")
            if (said := _read(home / "server.json")) and _held(home / "server.lock") and _answers(said["url"] + "/api"):
                if process:
                    _say(f"Prefect server at {said['url']}, started in {time.monotonic() - began:.1f} s")
                return Server(said["url"], said["url"] + "/api", own=True, started=process is not None)
            time.sleep(0.1)
    if process:
        process.kill()
    pid = (_read(home / "server.json") or {}).get("pid", "?")
    raise ServerError(
        f"the Prefect server of {home.parent} (process {pid}) did not answer within {START_SECONDS} s; "
        f"{home / 'server.log'} says why. Try again, or end that process if it still runs"
    )


def _stop_if_unused(users: object, process: subprocess.Popen[bytes]) -> None:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # others use it, or it has seen for itself that nobody does; it ends without us
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Prefect's settings for this process and its children, whether or not Prefect was imported before."""
    before = dict(os.environ)
    os.environ.update(settings)
    if "PREFECT_HOME" in settings:
        os.environ.pop("PREFECT_PROFILE", None)  # it names a profile of another home
    _refresh()
    try:
        yield
    finally:
        for name in {*settings, "PREFECT_PROFILE"}:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
        _refresh()


def _refresh() -> None:
    if "prefect.main" in sys.modules or "prefect.context" in sys.modules:
        from prefect.context import refresh_global_settings_context
        from prefect.logging.configuration import setup_logging

        refresh_global_settings_context()
        setup_logging()


def _client_settings(home: Path) -> dict[str, str]:
    skipped = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    direct = ",".join(dict.fromkeys([*filter(None, skipped.split(",")), "127.0.0.1", "localhost"]))
    return {**_quiet(), "PREFECT_HOME": str(home), "DO_NOT_TRACK": "1", "NO_PROXY": direct, "no_proxy": direct}


def _quiet() -> dict[str, str]:
    return {} if os.environ.get("THRESHER_DEBUG") else _QUIET


def _without_profile() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PREFECT_PROFILE"}


def _send_what_waits(since: str) -> None:
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
        with _console().status("Waiting for the Prefect server to write the run down …"):
            while (now := time.monotonic()) < min(began + RECORD_SECONDS, changed + (2 if not seen[1] else 8)):
                counts = [count("task_runs", started), count("task_runs", started | unfinished)]
                seen, changed = counts, now if counts != seen else changed
                time.sleep(0.2)


def _held(lock: Path) -> bool:
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _answers(api: str) -> bool:
    loopback = api.startswith(("http://127.0.0.1", "http://localhost"))
    try:
        return httpx.get(f"{api}/health", timeout=5, trust_env=not loopback).status_code < 500
    except httpx.HTTPError:
        return False


def _read(path: Path) -> dict[str, str] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _console() -> Console:
    return Console(stderr=True, highlight=False)


def _say(line: str) -> None:
    _console().print(line, markup=False, soft_wrap=True)
