"""Ray itself: three nodes on this machine, of one core each."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

from curation.step import STEPS
from flows import cluster
from flows.engines import EngineError, EngineSpec, release
from flows.models import lend
from flows.own_steps import load_steps
from flows.run import run_step
from tests.flows.test_spread import pool

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]

OWN = '''
"""Steps that tell where they were run, and wait for each other."""
import os
import time
from pathlib import Path

import polars as pl

import lengths
from curation.step import StepConfig, step


class Place(StepConfig):
    folder: str
    """Where marks are left."""

    nodes: int = 1
    """How many nodes have to have been there before the first shard is done."""

    spared: str = ""
    """If given: the first shard that another node than this is at does not end there."""


def node() -> str:
    import ray
    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else "here"


@step("told-length", "score", writes="told_length")
def told_length(rows: pl.DataFrame, cfg: Place) -> pl.DataFrame:
    """The length of the answer, by a file beside this one."""
    marks = Path(cfg.folder)
    (marks / f"{node()}.node").touch()
    with (marks / f"{rows['id'][0]}.shard").open("a") as file:
        file.write(f"{node()}\\n")
    if cfg.spared and node() != cfg.spared:
        try:
            (marks / "stuck").touch(exist_ok=False)
            time.sleep(300)
        except FileExistsError:
            pass
    began = time.monotonic()
    while len(list(marks.glob("*.node"))) < cfg.nodes and time.monotonic() - began < 300:
        time.sleep(0.05)
    return rows.with_columns(told_length=lengths.of_answers())
'''
LENGTHS = """
import polars as pl

def of_answers():
    return pl.col("messages").list.last().struct.field("content").str.len_chars()
"""


@pytest.fixture(scope="module")
def three_nodes():
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_register_timeout_seconds": "300"}
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets lie there: a path is 107 letters at most
    Path("/tmp/ray").mkdir(exist_ok=True)  # where Cluster writes an address, wherever its nodes have their files
    nodes = Cluster()
    try:
        for head in (True, False, False):
            how = {"include_dashboard": False, "temp_dir": folder, "no_monitor": True} if head else {}
            _started(nodes, num_cpus=1, include_log_monitor=False, **how)
        yield nodes
    finally:
        cluster.leave()
        nodes.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _started(nodes, **how):
    """Ray gives a node 30 seconds, which are few on a busy machine."""
    for left in (4, 3, 2, 1, 0):
        try:
            return nodes.add_node(**how)
        except Exception:
            if not left:
                raise
            time.sleep(5)


@pytest.fixture
def own_step(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "lengths.py").write_text(LENGTHS)
    (folder / "my_steps.py").write_text(OWN)
    before = os.environ.get("THRESHER_STEPS")
    yield load_steps([folder / "my_steps.py"])[0]
    STEPS.pop("told-length")
    os.environ.pop("THRESHER_STEPS") if before is None else os.environ.update(THRESHER_STEPS=before)


def run(store, source, step, settings, address, models=None):
    config, lease = lend(step, step.config(**settings), models or {}, store, ray=address)
    return store.manifest(run_step(store, step, config, source, {}, lease))


def marks(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_three_nodes_do_a_users_own_step_as_one_machine_does(three_nodes, own_step, tmp_path):
    settings = {"folder": str(marks(tmp_path / "marks")), "nodes": 3}
    many = run(*pool(tmp_path / "many"), own_step, settings, three_nodes.address)
    assert len(list((tmp_path / "marks").glob("*.node"))) >= 3  # work went to all nodes
    assert many == run(*pool(tmp_path / "one"), own_step, settings, None)


def test_three_nodes_ask_models_as_one_machine_does(three_nodes, tmp_path, tiny_model):
    models = {"base": EngineSpec(model=str(tiny_model))}
    stores = [pool(tmp_path / "many"), pool(tmp_path / "one")]
    made = [run(*stores[i], STEPS["perplexity"], {}, (three_nodes.address, None)[i], models) for i in (0, 1)]
    assert made[0] == made[1]
    spent = [{k: v for k, v in s.run_facts(made[0].id).items() if "second" not in k} for s, _ in stores]
    assert spent[0].pop("started") and spent[1].pop("started")
    assert spent[0] == spent[1] and spent[0]["requests"] == 18


def test_a_node_that_is_killed_in_the_middle_loses_nothing(three_nodes, own_step, tmp_path):
    folder, killed = marks(tmp_path / "marks"), []
    settings = {"folder": str(folder), "spared": three_nodes.head_node.node_id, "nodes": 2}

    def worked() -> list[list[str]]:
        """The nodes that were at each shard."""
        return [path.read_text().split() for path in sorted(folder.glob("*.shard"))]

    def kill() -> None:
        while not (folder / "stuck").exists():
            time.sleep(0.1)
        others = {n for nodes in worked() for n in nodes} - {three_nodes.head_node.node_id}
        for node in [n for n in three_nodes.list_all_nodes() if n.node_id in others]:
            killed.append(node.node_id)
            three_nodes.remove_node(node, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    many = run(*pool(tmp_path / "many", 9), own_step, settings, three_nodes.address)
    killer.join(60)
    again = [nodes for nodes in worked() if len(nodes) > 1]
    assert killed and again and all(nodes[0] in killed and nodes[-1] not in killed for nodes in again)
    assert many == run(*pool(tmp_path / "one", 9), own_step, settings, None)


def test_a_node_without_this_thresher_is_named(three_nodes, own_step, tmp_path, monkeypatch):
    assert cluster._CREWS  # workers stay for the next step
    release()
    assert not cluster._CREWS  # a training has the machines to itself
    monkeypatch.setattr("flows.crew.editions", lambda: {"Thresher's code": "123456789abc", "polars": "0.1"})
    settings = {"folder": str(marks(tmp_path / "marks"))}
    told = r"would decide otherwise .*123456789abc here, polars is .* there and 0\.1 here"
    with pytest.raises(EngineError, match=told):
        run(*pool(tmp_path / "many"), own_step, settings, three_nodes.address)


def test_a_cluster_for_one_command_ends_with_it_when_it_is_stopped(tmp_path):
    """By the command line: Ctrl-C in the middle, then the same step without a cluster; nothing of Ray's is left."""
    store, source = pool(tmp_path / "store")
    store.name("mine", source)
    (tmp_path / "lengths.py").write_text(LENGTHS)
    (tmp_path / "my_steps.py").write_text(OWN)
    folder, home = marks(tmp_path / "marks"), marks(tmp_path / "home")
    command = [sys.executable, "-m", "flows.cli", "--steps", str(tmp_path / "my_steps.py")]
    command += ["step", "told-length", "mine", "--folder", str(folder), "--spared", "nobody"]
    command += ["--ray", "local", "--store", str(store.root)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(home)}
    began = subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while not (folder / "stuck").exists():
            assert began.poll() is None, began.stderr.read()
            time.sleep(0.1)
        begun = [began, *psutil.Process(began.pid).children(recursive=True)]
        assert any("raylet" in " ".join(p.cmdline()) for p in begun[1:])
        os.killpg(began.pid, signal.SIGINT)
        _, said = began.communicate(timeout=120)
    finally:
        if began.poll() is None:
            os.killpg(began.pid, signal.SIGKILL)
    assert began.returncode == 130 and "the same command goes on from here" in said
    assert "Traceback" not in said and "ray" not in said.lower()
    _, left = psutil.wait_procs(begun[1:], timeout=30)
    assert not left
    command = [word for word in command if word not in ("--ray", "local")]
    ended = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "mine.told-length: 18 live, 18 rows" in ended.stderr
    assert not (home / ".ray").exists()
