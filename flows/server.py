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
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flows.access import (
    AUTH,
    EVERYWHERE,
    LOOPBACK,
    ServerError,
    check_access,
    check_configured,
    configured_api,
    credentials,
    health,
)
from flows.progress import console
from flows.recording import UNRECORDED, send_what_waits

START_SECONDS = 240  # a new database took 100 s on two cores with twelve busy processes
HEARTBEAT_SECONDS = 30  # of every run; see LOST_SECONDS
_OTHERWISE = "start it, or unset PREFECT_API_URL (or choose another Prefect profile) for a server of the store's own"
_END = "end the commands that use it (`thresher ui`, `thresher schedule --serve`, a run), then start this one again"
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


@dataclass(frozen=True, slots=True)
class Server:
    url: str  # where a browser finds the UI, such as http://127.0.0.1:40123
    api: str
    own: bool  # kept with the store; false for one that the user configured
    started: bool  # by this process
    host: str = LOOPBACK[0]  # that the store's own listens on


@contextlib.contextmanager
def serving(store_root: Path, port: int | None = None, host: str = "127.0.0.1", auth: bool = False) -> Iterator[Server]:
    """A server that answers, with this process's Prefect pointed at it. Leaves when the last process using it does.

    `auth` insists on one that asks for user and password.
    """
    if auth and not os.environ.get(AUTH):
        raise ServerError(f"{AUTH} is not set; --auth asks for the user and password that it holds, as user:password")
    if host not in LOOPBACK and not auth:
        raise ServerError(f"--host {host} lets other machines in, and takes --auth with {AUTH}=user:password")
    if api := configured_api():
        if health(api) == "silent":
            raise ServerError(f"{_silent(api)}; {_OTHERWISE}")
        if auth or host not in LOOPBACK:
            raise ServerError(f"--host and --auth are for a server of the store's own, and {api} is configured")
        with _pointed_at(api):
            yield Server(api.removesuffix("/api"), api, own=False, started=False)
        return
    home = Path(store_root).absolute() / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    with _joined(home, port, host) as server, _environment({**_client_settings(home), "PREFECT_API_URL": server.api}):
        _check(server, host, auth)
        since = datetime.now(UTC).isoformat()
        try:
            yield server
        finally:
            send_what_waits(since)


@contextlib.contextmanager
def recorded(store_root: Path) -> Iterator[Server | None]:
    """As `serving`; where the configured server is silent that is said, and what runs inside is recorded nowhere."""
    if (api := configured_api()) and health(api) == "silent":
        console.print(f"[yellow]{_silent(api)}, so nothing is recorded there; {_OTHERWISE}[/yellow]", soft_wrap=True)
        with _environment({UNRECORDED: "1"}):
            yield None
        return
    with serving(store_root) as server:
        yield server


@contextlib.contextmanager
def joined_if_running(store_root: Path) -> Iterator[Server | None]:
    """The server that is configured and answers, or the store's own where it runs; none is started for this."""
    if configured_api() or running_api(store_root):
        with recorded(store_root) as server:
            yield server
    else:
        yield None


def running_api(store_root: Path) -> str | None:
    """The API of the server that is configured, or of the store's own where it runs; it may still be silent."""
    home = Path(store_root).absolute() / "prefect"
    if api := configured_api():
        return api
    said = _read(home / "server.json")
    return f"{said['url']}/api" if said and _held(home / "server.lock") else None


@contextlib.contextmanager
def _pointed_at(api: str) -> Iterator[None]:
    with _environment({**_for_all_servers(), "PREFECT_API_URL": api}):
        check_configured(api)
        yield


def _check(server: Server, host: str, auth: bool) -> None:
    check_access(server.api, credentials())
    if auth and health(server.api) == "well":
        raise ServerError(f"the store's server at {server.url} asks nobody for a password; {_END}")
    if host not in LOOPBACK and server.host not in (host, *EVERYWHERE):
        raise ServerError(f"the store's server already runs, and listens on {server.host}, not on {host}; {_END}")


@contextlib.contextmanager
def _joined(home: Path, port: int | None, host: str) -> Iterator[Server]:
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
                process = _spawn(home, port, host)
                server = _wait(home, process)
        if port and not server.url.endswith(f":{port}"):
            _say(f"The store's Prefect server already runs at {server.url}, not on port {port}; using it.")
        try:
            yield server
        finally:
            fcntl.flock(users, fcntl.LOCK_UN)
            if process:
                _stop_if_unused(users, process)


def _spawn(home: Path, port: int | None, host: str) -> subprocess.Popen[bytes]:
    log = home / "server.log"
    if log.exists():
        log.replace(home / "server.log.old")
    asked = {"PREFECT_SERVER_API_AUTH_STRING": given} if (given := credentials()) else {}
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-P", Path(__file__).with_name("server_main.py"), home, str(port or 0), host],
            env={**_without_profile(), **_OURS, **asked, "PREFECT_HOME": str(home)},
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,  # Ctrl-C is for us: others may be using the server
        )


def _wait(home: Path, process: subprocess.Popen[bytes] | None) -> Server:
    """The server once it answers; `process` is given when it was just started."""
    began = time.monotonic()
    with console.status("Starting the store's Prefect server …" if process else "Waiting for the Prefect server …"):
        while time.monotonic() - began < START_SECONDS:
            if process and process.poll() is not None:
                said = (home / "server.log").read_text(errors="replace").strip().splitlines()
                raise ServerError(f"the Prefect server did not start: {(said or ['no reason given'])[-1]}")
            said = _read(home / "server.json")
            if said and _held(home / "server.lock") and health(said["url"] + "/api") != "silent":
                if process:
                    _say(f"Prefect server at {said['url']}, started in {time.monotonic() - began:.1f} s")
                listens = said.get("host", LOOPBACK[0])
                return Server(said["url"], said["url"] + "/api", own=True, started=process is not None, host=listens)
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
    given = credentials()
    return {
        **_for_all_servers(),
        **({"PREFECT_API_AUTH_STRING": given} if given else {}),
        "PREFECT_HOME": str(home),
        "DO_NOT_TRACK": "1",
    }


def _for_all_servers() -> dict[str, str]:
    """Past any proxy to a server on this machine, and a heartbeat that `automations.mark_the_lost` can count on."""
    skipped = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    direct = ",".join(dict.fromkeys([*filter(None, skipped.split(",")), *LOOPBACK]))
    beat = str(HEARTBEAT_SECONDS)
    return {**_quiet(), "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": beat, "NO_PROXY": direct, "no_proxy": direct}


def _silent(api: str) -> str:
    return f"the Prefect server at {api} does not answer"


def _quiet() -> dict[str, str]:
    return {} if os.environ.get("THRESHER_DEBUG") else _QUIET


def _without_profile() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PREFECT_PROFILE"}


def _held(lock: Path) -> bool:
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _read(path: Path) -> dict[str, str] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _say(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)
