"""Schedules as they run: a real server, worker and loop, of which several things are watched one after another."""

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
import psutil
import pytest
import yaml

from flows.events import tell_imported
from flows.server import serving
from storage.store import Store

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
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
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | {"PYTHONPATH": str(ROOT)}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = ["schedule", folder / "loop.yaml", "--cron", "* * * * * */20", "--serve", "--store", folder / "store"]
    command = [sys.executable, "-m", "flows.cli", *map(str, words)]
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=(folder / "said").open("w"))
    try:
        with serving(folder / "store"):
            yield process, Store(folder / "store")
    finally:
        process.kill()
        process.wait()


def runs(**wanted: object) -> list[dict]:
    found = httpx.post(
        f"{os.environ['PREFECT_API_URL']}/flow_runs/filter", json={"sort": "START_TIME_DESC", **wanted}, timeout=60
    ).json()
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
    run = awaited(ended("tiny", "COMPLETED"))[-1]
    assert run["auto_scheduled"] and "prefect.worker.name" in run["labels"]
    assert (folder / "store/reports/tiny.md").read_text().startswith("# What the curation of tiny was worth")
    tasks = httpx.post(
        f"{os.environ['PREFECT_API_URL']}/task_runs/filter",
        json={"flow_runs": {"id": {"any_": [run["id"]]}}, "limit": 200},
    ).json()
    assert "round 1: train" in {task["name"] for task in tasks}
    from flows import deployments

    assert [d.schedules for d in deployments.deployed()] == [("* * * * * */20 (UTC)",)]
    deployments.remove("tiny")  # what follows need not wait for its turn
    assert deployments.deployed() == []


def test_data_that_is_imported_starts_the_loop_on_it(served, folder):
    from flows import automations, deployments

    _, store = served
    made = deployments.deploy_loop("fresh", folder / "loop.yaml", [], store.root, None)
    automations.start_on_import(made, "fresh", "incoming", store.root)
    assert automations.starters() == {"fresh": "incoming"}
    pool = store.resolve("tiny")
    # The server learns of an automation a moment after it is made.
    time.sleep(3)
    assert tell_imported(store.root, "incoming", pool)
    run = awaited(ended("fresh", "COMPLETED"))[0]
    assert run["parameters"]["pool"] == pool
    deployments.remove("fresh")
    assert automations.starters() == {}


def test_runs_that_meet_wait_for_each_other(served, folder):
    from prefect.deployments import run_deployment

    from flows import deployments

    _, store = served
    deployments.deploy_loop("second", folder / "loop.yaml", ["name=second"], store.root, None)
    for _ in range(2):
        run_deployment("improve/second", timeout=0)
    awaited(lambda: len(ended("second", "COMPLETED")()) == 2)
    (began, ended_first), (then, _) = sorted((r["start_time"], r["end_time"]) for r in of("second"))
    assert began < ended_first <= then


def test_a_run_whose_process_is_killed_is_marked_and_the_next_one_runs(served, folder):
    from prefect.deployments import run_deployment

    from flows import deployments

    _, store = served
    deployments.deploy_loop("killed", folder / "loop.yaml", ["name=killed"], store.root, None)
    run_deployment("improve/killed", timeout=0)
    running = awaited(lambda: [r for r in of("killed") if r["state_type"] == "RUNNING" and r["infrastructure_pid"]])[0]
    os.kill(int(running["infrastructure_pid"]), signal.SIGKILL)
    awaited(ended("killed", "CRASHED"))
    run_deployment("improve/killed", timeout=0)
    awaited(ended("killed", "COMPLETED"))


def test_a_config_that_is_gone_fails_the_run_and_is_named(served, folder):
    from prefect.deployments import run_deployment

    from flows import deployments

    _, store = served
    deployments.deploy_loop("other", folder / "other.yaml", [], store.root, None)
    (folder / "other.yaml").unlink()
    run_deployment("improve/other", timeout=0)
    assert f"there is no config {folder}/other.yaml" in awaited(ended("other", "FAILED"))[0]["state"]["message"]


def test_a_work_pool_that_was_deleted_by_hand_is_made_again_with_its_deployments(served):
    from prefect.deployments import run_deployment

    from flows import deployments

    api = os.environ["PREFECT_API_URL"]
    assert httpx.delete(f"{api}/work_pools/thresher").is_success
    assert {d.pool for d in deployments.deployed()} == {None}
    assert deployments.ensure_pool() == 1
    assert {d.pool for d in deployments.deployed()} == {"thresher"}
    run_deployment("improve/killed", timeout=0)
    awaited(lambda: len(ended("killed", "COMPLETED")()) == 2)


def test_the_shipped_deployments_are_taken_by_prefect_itself(served):
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--name", "loop", "--name", "clear-score"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    from flows import deployments

    found = {d.name: d for d in deployments.deployed()}
    assert (found["clear-score"].flow, found["clear-score"].pool) == ("step", "thresher")
    assert found["loop"].parameters["config"] == "examples/snips/loop.yaml" and found["loop"].schedules == ()


def test_a_step_of_the_command_line_is_a_flow_run_of_the_server(served):
    _, store = served
    command = [sys.executable, "-m", "flows.cli", "step", "random", "tiny", "--rows", "3", "--store", str(store.root)]
    said = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    ran = subprocess.run(command, cwd=ROOT, env=said, capture_output=True, text=True, timeout=SECONDS)
    assert ran.returncode == 0, ran.stderr
    (run,) = runs(flows={"name": {"any_": ["step"]}})
    assert (run["name"], run["state_type"], run["parameters"]["settings"]["rows"]) == (
        *("random tiny", "COMPLETED"),
        3,
    )
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
