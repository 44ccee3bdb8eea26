"""What a Prefect server is told of who asks, whether it is configured or the store's own; asked over HTTP."""

import asyncio
import base64
import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from flows.access import ServerError
from flows.cli import app
from flows.command import REJECTED
from flows.server import HEARTBEAT_SECONDS, serving
from flows.server_main import guarded


def basic(said: str) -> str:
    return f"Basic {base64.b64encode(said.encode()).decode()}"


OURS = basic("me:opensesame")


class Door(ThreadingHTTPServer):
    """Answers as Prefect's API does as far as it is asked here, and writes down by whom; `wants` is who is let in."""

    def __init__(self) -> None:
        self.wants, self.heard = None, []
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.heard]


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.heard.append((self.path, self.headers.get("Authorization")))
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        well = self.path == "/api/health" or self.server.wants in (None, self.headers.get("Authorization"))
        said = b"0" if well else b"{}"
        self.send_response(401 if not well else 404 if "csrf" in self.path else 200)
        self.send_header("Content-Length", str(len(said)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(said)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """A server; and an environment in which a proxy that is gone stands before everything that is not on loopback."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")] + ["NO_PROXY", "no_proxy"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("THRESHER_AUTH", "me:opensesame")
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Door() as made:
        threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
        yield made
        made.shutdown()


def configure(door: Door, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, profile: bool, **settings: str) -> None:
    settings |= {"PREFECT_API_URL": f"{door.url}/api"}
    if profile:
        (tmp_path / "home").mkdir()
        lines = ['active = "a"', "[profiles.a]", *[f"{name} = {json.dumps(said)}" for name, said in settings.items()]]
        (tmp_path / "home/profiles.toml").write_text("\n".join(lines))
    for name, said in settings.items() if not profile else ():
        monkeypatch.setenv(name, said)


@contextlib.contextmanager
def own(door: Door, root: Path, **more: str) -> Iterator[None]:
    """As if the store's own server ran there."""
    (root / "prefect").mkdir(parents=True)
    (root / "prefect/server.json").write_text(json.dumps({"url": door.url, "port": door.server_port, **more}))
    with (root / "prefect/server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def bring_in(folder: Path, lines: str = "") -> tuple[int, str]:
    (folder / "raw.jsonl").write_text('{"instruction": "Say it.", "output": "It."}\n' + lines)
    words = ["import", folder / "raw.jsonl", "--name", "pool", "--store", folder / "store"]
    found = CliRunner().invoke(app, [*map(str, words)])
    return found.exit_code, " ".join(found.output.split())


@pytest.mark.parametrize("profile", [False, True])
@pytest.mark.parametrize(
    "settings, told",
    [({"PREFECT_API_KEY": "pnu_1"}, "Bearer pnu_1"), ({"PREFECT_API_AUTH_STRING": "ada:b"}, basic("ada:b"))],
)
def test_a_configured_server_is_told_what_prefect_s_settings_say(door, settings, told, profile, tmp_path, monkeypatch):
    door.wants = told
    configure(door, monkeypatch, tmp_path, profile, **settings)
    with serving(tmp_path / "store") as server:
        assert (server.own, server.api) == (False, f"{door.url}/api")
        from prefect.settings import get_current_settings

        from flows.automations import LOST_SECONDS

        beat = get_current_settings().flows.heartbeat_frequency
        assert beat == HEARTBEAT_SECONDS and 3 * beat <= LOST_SECONDS
        assert "/api/flow_runs/count" in door.paths()
    assert bring_in(tmp_path)[0] == 0
    assert ("/api/events", told) in door.heard
    assert OURS not in [said for _, said in door.heard], "the password of the store's own server"


def test_a_configured_server_that_lets_nobody_in_is_named_and_not_told_the_store_s_password(
    door, tmp_path, monkeypatch
):
    door.wants = OURS
    configure(door, monkeypatch, tmp_path, False)
    told = r"refuses what Prefect's settings say.*PREFECT_API_KEY"
    with pytest.raises(ServerError, match=told), serving(tmp_path / "store"):
        pass
    code, said = bring_in(tmp_path)
    assert code == 0 and "answered 401" in said and "nobody was told of the import" in said
    assert {said for _, said in door.heard} == {None}


def test_the_store_s_own_server_hears_of_an_import_past_any_proxy(door, tmp_path):
    door.wants = OURS
    with own(door, tmp_path / "store"):
        code, said = bring_in(tmp_path)
    assert (code, door.heard) == (0, [("/api/events", OURS)]), said


@pytest.mark.parametrize(
    "lines, exit_code", [pytest.param("", 0, id="whole"), pytest.param("bad\n", REJECTED, id="rejected")]
)
@pytest.mark.parametrize("broken", ["password", "form", "gone", "profiles"])
def test_an_import_that_is_done_fails_for_no_server(door, broken, lines, exit_code, tmp_path, monkeypatch):
    door.wants = basic("me:other")
    monkeypatch.setenv("THRESHER_AUTH", "opensesame" if broken == "form" else "me:opensesame")
    if broken == "profiles":
        (tmp_path / "home").mkdir()
        (tmp_path / "home/profiles.toml").write_bytes(b"active = \xff")
    if broken == "gone":
        monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with own(door, tmp_path / "store"):
        code, said = bring_in(tmp_path, lines)
    why = {"password": "answered 401", "form": "is user:password", "gone": "not be reached", "profiles": "mend or rem"}
    assert code == exit_code and f"pool: 1 rows, {len(lines) // 4} rejected" in said
    assert "nobody was told of the import" in said and why[broken] in said and "opensesame" not in said


def test_a_server_that_listens_on_loopback_is_not_taken_for_one_that_lets_others_in(door, tmp_path):
    door.wants = OURS
    root = tmp_path / "store"
    for said, host in (({}, "0.0.0.0"), ({"host": "127.0.0.1"}, "0.0.0.0"), ({"host": "10.0.0.1"}, "10.0.0.2")):
        told = f"listens on .*, not on {host}; end the commands that use it"
        with own(door, root, **said), pytest.raises(ServerError, match=told), serving(root, None, host, auth=True):
            pass
        for file in (root / "prefect").iterdir():
            file.unlink()
        (root / "prefect").rmdir()


@pytest.mark.parametrize(
    "listens, host, status",
    [
        ("127.0.0.1", "127.0.0.1:4200", 200),
        ("localhost", "localhost:8080", 200),
        ("127.0.0.1", "LOCALHOST", 200),
        ("127.0.0.1", "rebound.example:4200", 400),
        ("127.0.0.1", "127.0.0.1.rebound.example", 400),
        ("localhost", "", 400),
        ("0.0.0.0", "gpu.example:4200", 200),  # which asks for a password
    ],
)
def test_a_page_under_whose_name_loopback_was_put_gets_nothing(listens, host, status):
    async def rows(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"rows"})

    async def asked() -> httpx.Response:
        door = httpx.ASGITransport(guarded(rows, listens))
        async with httpx.AsyncClient(transport=door, base_url="http://127.0.0.1:4200") as client:
            return await client.get("/datasets", headers={"Host": host})

    said = asyncio.run(asked())
    assert said.status_code == status and (said.text == "rows") == (status == 200)
