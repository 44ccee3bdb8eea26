"""Schedules as they run: a real server, worker and loop, of which several things are watched one after another."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolUpdate
from prefect.deployments import run_deployment
from prefect.states import Cancelling, Pending, Running, Scheduled, State
from typer.testing import CliRunner

from curation.step import find_step
from flows import automations, deployments, serve
from flows.access import ServerError
from flows.events import tell_imported
from flows.schedule import scheduling
from flows.server import serving
from storage.store import Store

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
HASTE = {
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_MAX_RUNS": "4",
}
SECONDS = 400  # that a run may take to come about, where the machine is busy


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A loop that trains for one step on eight of forty rows."""
    made = tmp_path_factory.mktemp("scheduled")
    for name, every, most in (("raw", 1, 40), ("test", 60, 12)):
        lines = (ROOT / f"examples/snips/{name}.jsonl").read_bytes().splitlines(keepends=True)
        (made / f"{name}.jsonl").write_bytes(b"".join(lines[::every][:most]))
    config = {
        **{"name": "tiny", "pool": "raw.jsonl", "heldout": "test.jsonl", "choose": {"step": "random"}},
        **{"budget": {"rows": 8, "rounds": 1, "optimizer_steps": 1}, "baselines": False},
        **{"train": {"batch_size": 4}, "evaluate": {"max_tokens": 2}},
    }
    for name in ("loop", "other"):
        (made / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return made


@pytest.fixture(scope="module")
def served(folder) -> Iterator[tuple[subprocess.Popen, Store]]:
    """`thresher schedule … --serve` with a cron line every twenty seconds, and this process on the same server."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | HASTE
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = ["schedule", folder / "loop.yaml", "--cron", "* * * * * */20", "--serve", "--store", folder / "store"]
    command = [sys.executable, "-m", "flows.cli", *map(str, words)]
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=(folder / "said").open("w"))
    try:
        with pytest.MonkeyPatch.context() as ours:  # whichever of the two starts the server
            for name, value in HASTE.items():
                ours.setenv(name, value)
            with serving(folder / "store"):
                awaited(lambda: "running what is scheduled" in (folder / "said").read_text())
                yield process, Store(folder / "store")
    finally:
        process.kill()
        process.wait()


def runs(**wanted: object) -> list[dict]:
    asked = {"sort": "START_TIME_DESC", **wanted}
    found = httpx.post(f"{os.environ['PREFECT_API_URL']}/flow_runs/filter", json=asked, timeout=60).json()
    return [run for run in found if run["start_time"] or run["state_type"] in ("FAILED", "CRASHED")]


def of(deployment: str) -> list[dict]:
    return runs(deployments={"name": {"any_": [deployment]}})


def ended(deployment: str, state: str) -> Callable[[], list[dict]]:
    return lambda: [run for run in of(deployment) if run["state_type"] == state]


def awaited(what: Callable[[], object]) -> object:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.5)
    raise AssertionError(f"not within {SECONDS} s; runs: {[(r['name'], r['state']) for r in runs()]}")


def test_a_cron_run_completes_and_leaves_its_report_and_its_cards(served, folder):
    api = os.environ["PREFECT_API_URL"]
    awaited(lambda: of("tiny"))
    made = httpx.get(f"{api}/deployments/name/improve/tiny", timeout=60).json()["id"]
    assert httpx.post(f"{api}/deployments/{made}/pause_deployment", timeout=60).is_success  # one is enough
    run = awaited(ended("tiny", "COMPLETED"))[-1]
    assert run["auto_scheduled"] and "prefect.worker.name" in run["labels"]
    assert (folder / "store/reports/tiny.md").read_text().startswith("# What the curation of tiny was worth")
    wanted = {"flow_runs": {"id": {"any_": [run["id"]]}}, "limit": 200}
    tasks = httpx.post(f"{api}/task_runs/filter", json=wanted, timeout=60).json()
    assert "round 1: train" in {task["name"] for task in tasks}
    assert [d.schedules for d in deployments.deployed()] == [("* * * * * */20 (UTC)",)]
    deployments.remove("tiny")  # what follows need not wait for its turn
    assert deployments.deployed() == []


def test_imported_data_starts_the_loop_and_the_next_run_waits_for_one_whose_process_is_then_killed(served, folder):
    _, store = served
    made = deployments.deploy_loop("fresh", folder / "loop.yaml", ["name=fresh"], store.root, None)
    automations.start_on_import(made, "fresh", "incoming", store.root)
    assert automations.starters() == {"fresh": "incoming"}
    pool = store.resolve("tiny")
    time.sleep(3)  # the server learns of an automation a moment after it is made
    for _ in range(2):
        assert tell_imported(store.root, "incoming", pool)
    running = awaited(lambda: [r for r in of("fresh") if r["state_type"] == "RUNNING" and r["infrastructure_pid"]])[0]
    os.kill(int(running["infrastructure_pid"]), signal.SIGKILL)
    (killed,) = awaited(ended("fresh", "CRASHED"))
    (run,) = awaited(ended("fresh", "COMPLETED"))
    assert run["parameters"]["pool"] == pool
    assert run["expected_start_time"] < killed["end_time"] <= run["start_time"]
    deployments.remove("fresh")
    assert automations.starters() == {}


def test_a_deleted_work_pool_is_made_again_and_a_run_whose_config_is_gone_says_so(served, folder):
    _, store = served
    deployments.deploy_loop("other", folder / "other.yaml", [], store.root, None)
    (folder / "other.yaml").unlink()
    assert httpx.delete(f"{os.environ['PREFECT_API_URL']}/work_pools/thresher").is_success
    assert {d.pool for d in deployments.deployed()} <= {None, "thresher"}  # whoever serves may have mended it by now
    assert deployments.ensure_pool() == 1
    assert {d.pool for d in deployments.deployed()} == {"thresher"}
    run_deployment("improve/other", timeout=0)
    assert f"there is no config {folder}/other.yaml" in awaited(ended("other", "FAILED"))[0]["state"]["message"]


def test_an_automation_that_is_there_stays_with_what_it_has_heard(served):
    def ids() -> dict[str, str]:
        with get_client(sync_client=True) as client:
            return {a.name: str(a.id) for a in client.read_automations()}

    _, store = served
    deployment = "00000000-0000-0000-0000-000000000000"
    automations.start_on_import(deployment, "kept", "incoming", store.root)
    before = ids()
    automations.mark_the_lost(everything=True)
    automations.start_on_import(deployment, "kept", "incoming", store.root)
    assert ids() == before and len(before) == 2
    automations.start_on_import(deployment, "kept", "another", store.root)
    assert automations.starters() == {"kept": "another"}
    automations.mark_the_lost(everything=True, within=600)
    assert len(ids()) == 2 and not set(ids().values()) & set(before.values())
    automations.mark_the_lost(everything=True)
    automations.forget("kept")


def test_runs_that_no_process_executes_are_marked_and_what_is_cut_short_is_ended_first(served, folder):
    _, store = served
    made = deployments.deploy_loop("lost", folder / "loop.yaml", [], store.root, None)
    sleeping = [sys.executable, "-c", "import time; time.sleep(900)", "prefect"]
    dead, living = subprocess.Popen(sleeping), subprocess.Popen(sleeping)
    worker = subprocess.Popen(sleeping, stdin=subprocess.PIPE)
    for process in (dead, worker):
        process.kill()
        process.wait()
    named = f"{socket.gethostname()}-{os.getpid()}-0"
    with get_client(sync_client=True) as client:

        def run(state: State, process: subprocess.Popen | None) -> str:
            later = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1))
            one = client.create_flow_run_from_deployment(made, state=later, labels={"prefect.worker.name": named}).id
            if process:
                client.update_flow_run(one, infrastructure_pid=str(process.pid))
            client.set_flow_run_state(one, state, force=True)
            return str(one)

        client.update_work_pool("thresher", WorkPoolUpdate(is_paused=True))  # nobody is to take them up
        try:
            lost, waiting = run(Running(), dead), run(Pending(), None)
            lives, cancelled = run(Running(), living), run(Cancelling(), living)
            assert serve.mark_dead() == [lost]
            assert serve.mark_dead(named) == [waiting]
            serve._stop([worker])
            assert not psutil.pid_exists(living.pid)
            states = [client.read_flow_run(one).state.name for one in (lost, waiting, lives, cancelled)]
            assert states == ["Crashed", "Crashed", "AwaitingRetry", "Cancelled"]
            for one in (lost, waiting, lives, cancelled):
                client.delete_flow_run(one)
        finally:
            living.kill()
            client.update_work_pool("thresher", WorkPoolUpdate(is_paused=False))
    deployments.remove("lost")


def test_schedule_makes_changes_lists_and_removes(served, folder):
    _, store = served

    def schedule(*words: object) -> tuple[str, str]:
        ran = CliRunner().invoke(scheduling, ["schedule", *map(str, words), "--store", str(store.root)])
        if ran.exception:
            raise ran.exception
        return ran.stdout, " ".join(ran.stderr.split())

    def listed() -> dict[str, dict]:
        return {one["name"]: one for one in json.loads(schedule("--list", "--json")[0])}

    _, said = schedule(folder / "loop.yaml", "--cron", "0 3 * * *", "--timezone", "Europe/Berlin", "--name", "nightly")
    assert "nightly: next at" in said and "03:00" in said and "/deployments/deployment/" in said
    assert "now run it at its time" in said
    (one,) = [found for name, found in listed().items() if name == "nightly"]
    assert one["schedules"] == ["0 3 * * * (Europe/Berlin)"] and one["config"] == str(folder / "loop.yaml")
    assert len(one["next"]) == 1 and not one["paused"] and one["on_import"] is None
    with pytest.raises(ServerError, match=r"nightly is the schedule of .*give another --name"):
        schedule(ROOT / "examples/snips/loop.yaml", "--every", "1h", "--name", "nightly")
    _, said = schedule(folder / "loop.yaml", "--on-import", "incoming", "--name", "nightly")
    assert "nightly: runs when incoming is imported" in said
    (one,) = [found for name, found in listed().items() if name == "nightly"]
    assert (one["schedules"], one["next"], one["on_import"]) == ([], [], "incoming")
    shown, said = schedule("--list")
    assert "import of incoming" in shown and "scheduled" in said
    _, said = schedule(folder / "loop.yaml", "--every", "6h", "--name", "nightly")  # no import starts it any more
    assert listed()["nightly"]["schedules"] == ["every 6:00:00"] and listed()["nightly"]["on_import"] is None
    _, said = schedule("--remove", "nightly")
    assert "nightly is not scheduled any more" in said and "nightly" not in listed()
    with pytest.raises(ServerError, match="nothing is scheduled as 'nightly'"):
        schedule("--remove", "nightly")


def test_a_worker_that_cannot_start_is_given_up(served, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    told = r"a worker ended 3 times soon after its start; .*prefect/worker\.log"
    with pytest.raises(ServerError, match=told), serve.workers(tmp_path) as look:
        for _ in range(100):
            time.sleep(0.1)
            look()
    assert (tmp_path / "prefect/worker.log").is_file()


def test_the_shipped_deployments_are_taken_by_prefect_itself(served):
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--name", "loop", "--name", "clear-score"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = {d.name: d for d in deployments.deployed()}
    assert (found["clear-score"].flow, found["clear-score"].pool) == ("step", "thresher")
    assert found["loop"].parameters["config"] == "examples/snips/loop.yaml" and found["loop"].schedules == ()
    deployments.remove("loop")


def test_forms_leave_alone_a_loop_that_is_called_loop_and_what_was_set_by_hand(served, folder, monkeypatch):
    monkeypatch.setattr(deployments, "STEPS", {"random": find_step("random")})  # one form instead of forty
    _, store = served
    nightly = deployments.schedule_of({"cron": "0 3 * * *"})
    deployments.deploy_loop("loop", folder / "loop.yaml", ["name=loop"], store.root, nightly)
    deployments.deploy_steps(store.root)
    found = {d.name: d for d in deployments.deployed()}
    assert found["loop"].parameters["config"] == str(folder / "loop.yaml")
    assert found["loop"].schedules == ("0 3 * * * (UTC)",)
    assert set(found[deployments.LOOP_FORM].parameters) == {"root"}
    assert deployments.deploy_steps(store.root) == 0
    form = found["random"].id
    with get_client(sync_client=True) as client:
        client.create_deployment_schedules(form, [(nightly, True)])
        client.update_deployment(form, DeploymentUpdate(parameters={"root": "..", "dataset": "tiny"}, paused=True))
    assert deployments.deploy_steps(store.root) == 1
    renewed = {d.name: d for d in deployments.deployed()}["random"]
    assert renewed.parameters == {"root": str(store.root), "dataset": "tiny"}
    assert renewed.paused and renewed.schedules == ("0 3 * * * (UTC)",)
    deployments.remove("loop")
    with get_client(sync_client=True) as client:
        client.update_deployment(form, DeploymentUpdate(paused=False))


def test_a_step_of_the_command_line_is_a_flow_run_of_the_server(served):
    _, store = served
    command = [sys.executable, "-m", "flows.cli", "step", "random", "tiny", "--rows", "3", "--store", str(store.root)]
    said = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    ran = subprocess.run(command, cwd=ROOT, env=said, capture_output=True, text=True, timeout=SECONDS)
    assert ran.returncode == 0, ran.stderr
    (run,) = runs(flows={"name": {"any_": ["step"]}})
    assert (run["name"], run["state_type"]) == ("random tiny", "COMPLETED")
    assert run["parameters"]["settings"]["rows"] == 3
    assert store.manifest(store.resolve("tiny.random")).counts["taken"] == 3


def test_ctrl_c_ends_all_of_it_and_pauses_nothing(served, folder):
    process, store = served
    server = json.loads((folder / "store/prefect/server.json").read_text())["pid"]
    below = [p for p in psutil.Process(process.pid).children(recursive=True) if p.pid != server]
    assert any("flows.worker" in " ".join(p.cmdline()) for p in below)
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0, (folder / "said").read_text()
    psutil.wait_procs(below, 10)
    assert not [p for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    with contextlib.closing(sqlite3.connect(store.root / "prefect/prefect.db")) as database:
        assert database.execute("select count(*) from deployment where paused").fetchone() == (0,)
    assert "Traceback" not in (folder / "said").read_text()
