import base64
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from flows.access import ServerError, check_access, configured_api, credentials
from flows.cli import app
from flows.recording import if_recorded, recording
from flows.server import Server, joined_if_running, recorded, serving
from storage.schema import ROW
from storage.store import Manifest, Store
from tests.flows.stores import small_store
from tests.rows import rows

CHROMIUM = "/usr/bin/chromium"
REPOSITORY = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from flows.server import serving
with serving(Path(sys.argv[1])) as server:
    print(server.url, server.started, flush=True)
    time.sleep(float(sys.argv[2]))
"""
TASKS = """
import sys
from pathlib import Path
from flows.server import serving
with serving(Path(sys.argv[1])):
    from prefect import flow, task
    quick = task(lambda i: i)
    flow(lambda: [quick(i) for i in range(60)], name="many")()
"""
UI = """
import sys
from pathlib import Path
from flows.ui import serve_ui
sys.exit(serve_ui(Path(sys.argv[1])))
"""


@pytest.fixture
def python() -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a process that knows of no server but its store's; what still runs at the end is killed."""
    started: list[subprocess.Popen] = []
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}

    def start(code: str, *arguments: object) -> subprocess.Popen:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, cwd=REPOSITORY, env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen, beginning: str = "http") -> str:
    for line in process.stdout:
        if line.startswith(beginning):
            return line
    raise AssertionError(f"ended with {process.wait()} and no line that begins with {beginning!r}")


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/api/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def within(seconds: float, true: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.2)
    return False


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return small_store(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Server]:
    with serving(store.root) as server:
        yield server


def test_a_configured_server_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(ServerError, match=r"http://127\.0\.0\.1:9/api does not answer"), serving(tmp_path):
        pass
    assert not (tmp_path / "prefect").exists()


def test_a_run_goes_on_unrecorded_where_the_configured_server_is_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    for joined in (recorded, joined_if_running):
        with joined(tmp_path) as server:
            assert server is None and not recording()
            assert if_recorded(Refusing())(3) == 4
        assert recording()
        said = " ".join(capsys.readouterr().err.split())
        assert "http://127.0.0.1:9/api does not answer, so nothing is recorded" in said and "unset PREFECT_API" in said


class Refusing:
    """As a Prefect task whose server is gone: its function can be called, it cannot."""

    @staticmethod
    def fn(i: int) -> int:
        return i + 1

    def __call__(self, i: int) -> int:
        raise AssertionError("Prefect was asked")


def test_a_command_that_needs_no_server_starts_none(tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with joined_if_running(tmp_path) as server:
        assert server is None and recording()
    assert not (tmp_path / "prefect").exists()


@pytest.mark.parametrize(
    "host, auth, said, told",
    [
        ("0.0.0.0", False, "me:secret", r"--host 0\.0\.0\.0 lets other machines in, and takes --auth"),
        ("127.0.0.1", True, "", "THRESHER_AUTH is not set"),
        ("127.0.0.1", True, "secret", "THRESHER_AUTH is user:password"),
    ],
)
def test_other_machines_are_let_in_with_a_password_alone(host, auth, said, told, tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("THRESHER_AUTH", said)
    with pytest.raises(ServerError, match=told) as refused, serving(tmp_path, None, host, auth):
        pass
    assert "secret" not in str(refused.value)


@pytest.mark.real
def test_a_server_with_a_password_refuses_who_has_none_and_writes_it_nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.setenv("THRESHER_AUTH", "me:opensesame")
    with serving(tmp_path, None, "0.0.0.0", auth=True) as server:
        assert httpx.get(f"{server.api}/admin/version").status_code == 401
        check_access(server.api, credentials())
        with pytest.raises(ServerError, match="THRESHER_AUTH is not set; set THRESHER_AUTH=user:password"):
            check_access(server.api, None)
        with pytest.raises(ServerError, match="refuses what THRESHER_AUTH says"):
            check_access(server.api, "me:other")
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            assert client.read_flows() == []
        said = json.loads((tmp_path / "prefect/server.json").read_text())
        assert said["host"] == "0.0.0.0"
        command = Path(f"/proc/{said['pid']}/cmdline").read_text()
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    for secret in ("opensesame", base64.b64encode(b"me:opensesame").decode()):
        assert secret.encode() not in written and secret not in command


def test_the_active_profile_names_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    assert configured_api() is None
    (tmp_path / "profiles.toml").write_text(
        'active = "a"\n[profiles.a]\nPREFECT_API_URL = "http://h/api/"\n[profiles.b]\n'
    )
    assert configured_api() == "http://h/api"
    monkeypatch.setenv("PREFECT_PROFILE", "b")
    assert configured_api() is None


@pytest.mark.real
def test_a_second_process_finds_the_server_and_leaves_it_running(store: Store, server: Server, python):
    assert server.started and answers(server.url)
    second = python(HOLD, store.root, 0)
    assert first_line(second).split() == [server.url, "False"]
    assert second.wait(20) == 0
    assert answers(server.url)


@pytest.mark.real
def test_a_web_page_cannot_reach_the_server_by_a_name_of_its_own(server: Server):
    for page in ("/api/health", "/datasets", "/api/admin/version"):
        found = [
            httpx.get(server.url + page, headers=named, timeout=120) for named in ({}, {"Host": "rebound.example"})
        ]
        assert [said.status_code for said in found] == [200, 400], page


@pytest.mark.real
def test_an_import_is_an_event_of_the_server_whatever_proxy_is_set(server: Server, tmp_path: Path, monkeypatch):
    (tmp_path / "raw.jsonl").write_text('{"instruction": "Say it.", "output": "It."}')
    with monkeypatch.context() as behind:
        for name in ("HTTP_PROXY", "http_proxy"):
            behind.setenv(name, "http://127.0.0.1:9")
        for name in ("NO_PROXY", "no_proxy"):
            behind.delenv(name, raising=False)
        words = ["import", tmp_path / "raw.jsonl", "--name", "heard", "--store", tmp_path / "store"]
        found = CliRunner().invoke(app, [*map(str, words)])
    assert found.exit_code == 0 and "nobody was told" not in found.output
    wanted = {"filter": {"event": {"name": ["thresher.dataset.imported"]}}}

    def heard() -> list[dict]:
        return httpx.post(f"{server.api}/events/filter", json=wanted, timeout=60).json()["events"]

    assert within(120, lambda: bool(heard()))
    (event,) = heard()
    store = Store(tmp_path / "store")
    assert event["payload"] == {"name": "heard", "dataset": store.resolve("heard")}
    assert event["resource"]["thresher.store"] == str(store.root)


@pytest.mark.real
def test_a_part_that_cannot_be_read_costs_its_own_card_alone(server: Server, tmp_path: Path, capsys):
    from flows import cards

    store = Store(tmp_path)
    for dataset in ("torn", "whole"):
        part = store.put_part(dataset, rows((dataset, "a")), ROW)
        store.seal(Manifest(dataset, "rows", dataset, 1, {}, {}, {}, ((part,),), counts={"rows": 1, "live": 1}))
    (tmp_path / store.manifest("torn").shards[0][0].file).write_bytes(b"no parquet")
    assert cards.publish_missing(store) == ["whole"]
    said = " ".join(capsys.readouterr().err.split())
    assert "torn has no card, it could not be read" in said and "whole has no card" not in said
    assert cards.card_url("whole") and not cards.card_url("torn")


@pytest.mark.real
def test_no_server_outlives_its_last_user_however_that_ends(tmp_path: Path, python):
    both = [python(HOLD, tmp_path, 300) for _ in range(2)]  # at once, on a store that has no server yet
    said = [first_line(process).split() for process in both]
    assert sorted(started for _, started in said) == ["False", "True"]
    ((url, _), (other, _)) = said
    assert url == other
    pid = json.loads((tmp_path / "prefect/server.json").read_text())["pid"]
    owner, guest = both if said[0][1] == "True" else reversed(both)
    os.kill(owner.pid, signal.SIGKILL)
    assert owner.wait(5) == -signal.SIGKILL
    time.sleep(3)
    assert answers(url), "the guest still needs it"
    os.kill(guest.pid, signal.SIGKILL)
    assert within(12, lambda: gone(pid))
    assert not answers(url)


@pytest.mark.real
def test_what_ran_is_written_down_before_the_server_stops(tmp_path: Path, python):
    process = python(TASKS, tmp_path)
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    with contextlib.closing(sqlite3.connect(tmp_path / "prefect/prefect.db")) as database:
        found = database.execute("select state_type, count(*) from task_run group by 1").fetchall()
    assert found == [("COMPLETED", 60)]


@pytest.mark.real
def test_a_port_in_use_is_named(tmp_path: Path, server: Server):
    with pytest.raises(ServerError, match=r"port \d+ of 127\.0\.0\.1 cannot be had .*--port"):
        serve_beside(tmp_path, int(server.url.rsplit(":", 1)[1]))


def serve_beside(root: Path, port: int) -> None:
    """Another store's server, although this process has one configured by now."""
    configured = os.environ.pop("PREFECT_API_URL")
    try:
        with serving(root, port):
            pass
    finally:
        os.environ["PREFECT_API_URL"] = configured


@pytest.mark.real
def test_publishing_again_adds_nothing(store: Store, server: Server):
    from flows import cards

    store.name("seed", "import-000000000001")
    cards.publish_missing(store)
    before = artifacts(server)
    assert cards.publish_missing(store) == []
    assert cards.publish(store, store.resolve("seed")) == cards.card_url(store.resolve("seed"))
    assert artifacts(server) == before
    store.name("seed", "import-000000000006")  # the name moved: its card follows, and so does the older one's
    assert cards.publish_missing(store) == ["import-000000000001", "import-000000000006"]
    store.name("seed", "import-000000000001")
    assert cards.publish_missing(store) == ["import-000000000001"]
    assert cards.publish_missing(store) == []


def artifacts(server: Server) -> int:
    return httpx.post(f"{server.api}/artifacts/count", json={}).json()


@pytest.mark.real
def test_a_card_made_in_a_task_belongs_to_its_run(store: Store, server: Server):
    from prefect import flow, task

    from flows import cards

    @task
    def show(dataset: str) -> None:
        cards.publish_soon(store, dataset)

    @flow
    def once() -> str:
        from prefect.runtime import flow_run

        with cards.publishing():
            show(store.resolve("student"))
            show(store.resolve("student"))
        return flow_run.id

    run = once()
    found = httpx.post(f"{server.api}/artifacts/filter", json={"artifacts": {"flow_run_id": {"any_": [run]}}}).json()
    assert sorted(a["type"] for a in found) == ["markdown", "table"]
    assert {a["description"] for a in found} == {"train-000000000005"}


@pytest.mark.real
def test_keys_are_safe_and_stay_apart():
    from flows.cards import safe_key

    assert safe_key("seed") == "seed"
    made = [safe_key(name) for name in ("Seed", "se.ed", "se_ed", "se-ed", "9.")]
    assert len(set(made)) == 5
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for key in made)


@pytest.mark.real
def test_the_ui_prints_its_addresses_and_ends_well_on_ctrl_c(store: Store, server: Server, python):
    ui = python(UI, store.root)
    said = first_line(ui, "dashboard") + first_line(ui, "student")
    ui.send_signal(signal.SIGINT)
    rest, _ = ui.communicate(timeout=20)
    assert ui.returncode == 0, rest
    assert "Traceback" not in rest
    assert f"{server.url}/dashboard" in said
    assert f"{server.url}/artifacts/artifact/" in said


@pytest.mark.real
def test_a_browser_draws_the_card_and_nothing_in_a_row_can_act(store: Store, server: Server, tmp_path: Path):
    from playwright.sync_api import sync_playwright

    from flows import cards

    cards.publish_missing(store)
    address = cards.publish(store, "clear-score-000000000002")
    asked: list[str] = []
    with sync_playwright() as play:
        quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = play.chromium.launch(executable_path=CHROMIUM, args=quiet)
        context = browser.new_context(viewport={"width": 1300, "height": 1000})
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("img[alt='histogram of clear_confidence']", timeout=60_000)
        page.wait_for_timeout(500)
        images = page.evaluate("[...document.images].map(i => [i.alt, i.naturalWidth, i.src.slice(0, 19)])")
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        page.screenshot(path=tmp_path / "card.png", full_page=True)
        shown = page.inner_text("body")
        links = page.evaluate("[...document.querySelectorAll('a')].map(a => a.href)")
        page.click("a:has-text('More rows, as a table')")
        page.wait_for_selector("text=What is 0 plus 0?", timeout=60_000)
        page.fill("input[type=text], input[type=search], .p-text-input input, input", "r59")
        cell = page.wait_for_selector("td:has-text('onerror')", timeout=60_000).inner_text()
        links += page.evaluate("[...document.querySelectorAll('a')].map(a => a.href)")
        injected = page.evaluate("window.injected")
        browser.close()
    assert [alt for alt, _, _ in images] == [
        "histogram of clear_confidence",
        "histogram of clear_consistency",
        "lineage",
    ]
    assert all(width > 0 and source == "data:image/svg+xml;" for _, width, source in images)
    assert "What is 0 plus 0?" in shown
    assert "[press me](javascript:window.injected=3) ![pixel](http://203.0.113.7/b.png)" in shown
    assert '<img src="http://203.0.113.7/a.png" onerror="window.injected=1">' in shown
    assert cell.startswith(
        '``` </code></pre></details></td></table> <img src="http://203.0.113.7/a.png" onerror="window'
    )
    assert injected is None
    assert all(link.startswith(server.url) for link in links)
    outside = [url for url in asked if not url.startswith((server.url, "data:", f"blob:{server.url}"))]
    assert not outside
