"""The store's own Prefect server, as a process: `python -P server_main.py <home> <port, or 0 for any> <host>`.

It runs for as long as some process holds <home>/users.lock shared, and no longer. The kernel takes that lock from a
process that dies, however it dies, so no server is left behind; it is not a child's tie to one parent, because others
may have come to use the same server meanwhile.

This file is run by path and imports nothing of ours before somebody looks at /datasets: it must start fast.
"""

import fcntl
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"  # where this machine finds it, whatever else it listens on


def main() -> None:
    home, port, host = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    alive = (home / "server.lock").open("w")
    try:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("another process runs the Prefect server of this store")
    listener = _bind(home, port, host)
    shown = HOST if host in ("0.0.0.0", "localhost") else host
    url = f"http://{shown}:{listener.getsockname()[1]}"
    threading.Thread(target=_stop_when_unused, args=(home,), daemon=True).start()
    _put(home / "server.json", {"pid": os.getpid(), "port": listener.getsockname()[1], "url": url, "host": host})
    # Of pages that other machines open, the browser alone knows under which name it found them.
    os.environ["PREFECT_UI_API_URL"] = "/api" if host == "0.0.0.0" else f"{url}/api"
    # Prefect answers pages of any origin by default, so that any web page could read the rows out of the browser.
    os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = f"{url},{url.replace(HOST, 'localhost')}"
    _serve(listener, home.parent, host)


def _serve(listener: socket.socket, store: Path, host: str) -> None:
    import uvicorn
    from prefect.server.api.server import create_app

    # Prefect tries this note of a worker's poll five times and more, and each failure is a hundred lines of the log.
    logging.getLogger("docket.dependencies").addFilter(lambda said: "mark_deployments_ready" not in said.getMessage())
    both = guarded(_beside(create_app(final=True), store), host)
    config = uvicorn.Config(both, log_level="warning", timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listener])


def guarded(app: Callable[..., Awaitable[None]], host: str) -> Callable[..., Awaitable[None]]:
    """Answers only who calls a server on loopback by its own name: a web page of which the name was made to lead here
    could read all of it. Elsewhere it has names that we do not know, and asks for a password."""
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    names = (HOST, "localhost")
    return TrustedHostMiddleware(app, [*names], www_redirect=False) if host in names else app


def _beside(prefect: Callable[..., Awaitable[None]], store: Path) -> Callable[..., Awaitable[None]]:
    """Prefect, and under /datasets the browser of the store's datasets."""
    browser: list[Callable[..., Awaitable[None]]] = []
    one_at_a_time = threading.Lock()

    def load() -> None:
        with one_at_a_time:
            if not browser:
                from prefect.settings import get_current_settings

                sys.path.insert(0, str(Path(__file__).parents[1]))  # -P has left it out
                from flows.browser.app import browser as made

                auth = get_current_settings().server.api.auth_string
                browser.append(made(store, auth.get_secret_value() if auth else None))

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"].split("/")[1:2] != ["datasets"]:
            return await prefect(scope, receive, send)
        if not browser:
            from anyio.to_thread import run_sync

            await run_sync(load)  # in seconds, in which Prefect goes on answering
        await browser[0](scope, receive, send)

    return app


def _bind(home: Path, port: int, host: str) -> socket.socket:
    """The port asked for; else the one of the last time, so that open pages and bookmarks go on; else any."""
    try:
        last = json.loads((home / "server.json").read_text())["port"]
    except (OSError, ValueError, KeyError):
        last = 0
    for wanted in [port] if port else [last, 0]:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, wanted))
            return listener
        except OSError as error:
            refused = error
            listener.close()
    sys.exit(f"port {port} of {host} cannot be had ({refused.strerror}); choose another with --port")


def _stop_when_unused(home: Path) -> None:
    with (home / "users.lock").open("a") as users:
        while True:
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.5)
        # The lock is kept while stopping: who comes now waits for it, and then starts a server of its own.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(8)
        os._exit(1)


def _put(path: Path, content: dict[str, object]) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


if __name__ == "__main__":
    main()
