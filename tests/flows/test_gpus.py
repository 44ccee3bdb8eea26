"""A GPU is one scheduled run's at a time: real processes and locks, of GPUs that are only named."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.utilities.processutils import command_from_string

from flows.gpus import OFFERED, accelerators, shares
from flows.worker import _Job

ROOT = Path(__file__).parents[2]
TELL = "import os, sys; print('has', os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"
Start = Callable[[dict[str, str]], subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path) -> Iterator[Start]:
    """A run as a worker starts it: it says which GPUs it has, or that it waits, and ends with its input."""
    started = []

    def start(worker: dict[str, str]) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flows.gpus", sys.executable, "-c", TELL]
        env = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)} | worker
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=env, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def says(process: subprocess.Popen[str]) -> str:
    return process.stdout.readline().strip()


def test_the_workers_of_two_that_serve_have_each_gpu_once(start):
    one, other = shares(["0", "1"], 2), shares(["0", "1"], 2)  # each deals out the same, and knows nothing of the other
    first = start(one[0])
    assert says(first) == "has 0"
    second = start(other[0])
    assert says(second) == "has 1"
    third = start(one[1])
    held = f"0 (process {first.pid}), 1 (process {second.pid})"
    assert says(third) == f"waiting for 1 of the GPUs {held}, which other runs have"
    second.kill()  # however it ends, its lock ends with it
    assert says(third) == "has 1"


@pytest.mark.parametrize("shown", ["", "-1"])
def test_a_run_that_is_shown_no_gpu_waits_for_none_and_takes_none(start, shown):
    (worker,) = shares(["0"], 1)
    assert says(start(worker | {"CUDA_VISIBLE_DEVICES": shown})) == f"has {shown}".strip()
    assert says(start(worker)) == "has 0"


def test_a_run_of_several_gpus_waits_for_all_of_them(start):
    (both,) = shares(["0", "1"], 1)
    small = start(shares(["0", "1"], 2)[1])
    assert says(small) == "has 1"
    large = start(both)
    assert says(large).startswith("waiting for 2 of the GPUs")
    another = start(shares(["0", "1"], 2)[0])  # what is waited for is not kept from others
    assert says(another) == "has 0"
    for process in (small, another):
        process.kill()
    assert says(large) == "has 0,1"


def test_runs_that_are_to_share_a_gpu_do_so_with_each_other_alone(start):
    many = shares(["0"], 2)
    sharers = [start(worker) for worker in many]
    assert [says(process) for process in sharers] == ["has 0", "has 0"]
    alone = start(shares(["0"], 1)[0])
    assert says(alone).startswith("waiting for 1 of the GPUs 0")
    for process in sharers:
        process.kill()
    assert says(alone) == "has 0"
    assert says(start(many[0])).startswith("waiting")


def test_the_runs_of_a_worker_with_gpus_take_them_before_they_begin(monkeypatch):
    def command() -> list[str]:
        job = _Job(command=_Job._base_flow_run_command())  # as a deployment has it that says no other
        job.prepare_for_flow_run(FlowRun(flow_id=uuid4()))
        return command_from_string(job.command)

    engine = [sys.executable, "-m", "prefect.engine"]
    monkeypatch.delenv(OFFERED, raising=False)
    assert command() == engine
    monkeypatch.setenv(OFFERED, "0,1")
    assert command() == [sys.executable, "-m", "flows.gpus", *engine]


def test_gpus_are_dealt_out_to_the_workers():
    def dealt(cards: list[str], at_once: int) -> list[str | None]:
        return [said.get("CUDA_VISIBLE_DEVICES") for said in shares(cards, at_once)]

    assert dealt([], 2) == [None, None]
    assert dealt(["0", "1", "2"], 1) == ["0,1,2"]
    assert dealt(["0", "1", "2"], 2) == ["0,2", "1"]
    assert dealt(["0"], 2) == ["0", "0"]


def test_the_gpus_that_a_process_may_use_are_those_it_was_given(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert accelerators() == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert accelerators() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert accelerators() == [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
