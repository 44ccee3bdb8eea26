"""A comparison through the command line, on a piece of the shipped example, with real server, model and trainer."""

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from flows.report import lineage
from storage.store import Store
from tests.flows.test_loop import ROOT, thresher

pytestmark = [pytest.mark.real, pytest.mark.timeout(1500)]
CLEAR = [{"step": "clear-score", "with": {"samples": 2, "max_tokens": 6}}, {"step": "clear-filter"}]
REWARDED = [{"step": "embed"}, {"step": "kmeans-cluster", "with": {"clusters": 4}}, {"step": "perplexity"}, *CLEAR]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("comparison")
    example = ROOT / "examples/snips"
    (made / "raw.jsonl").write_bytes(b"".join((example / "raw.jsonl").read_bytes().splitlines(keepends=True)[:120]))
    (made / "test.jsonl").write_bytes(b"".join((example / "test.jsonl").read_bytes().splitlines(keepends=True)[::20]))
    (made / "spoilt.jsonl").write_bytes((example / "spoilt.jsonl").read_bytes())
    config = {
        **{"name": "small", "pool": "raw.jsonl", "heldout": "test.jsonl", "spoilt": "spoilt.jsonl"},
        **{"validation": 0.1, "budget": {"rows": [10, 500], "optimizer_steps": 2}, "seeds": [0, 1]},
        "arms": {
            "clear": {"score": CLEAR, "choose": {"step": "random"}},
            "broken": {"score": [{"step": "clear-filter"}], "choose": {"step": "random"}},
            "loop": {
                **{"score": REWARDED, "choose": {"step": "kmeans-quality"}, "rounds": 2},
                "feedback": [{"step": "reweight-clusters"}],
            },
        },
        **{"train": {"batch_size": 4}, "evaluate": {"max_tokens": 6}},
    }
    (made / "compare.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return made


@pytest.fixture(scope="module")
def compared(folder):
    ran = thresher("compare", folder / "compare.yaml", "--json", store=folder / "store")
    return ran, json.loads((folder / "store/reports/small.json").read_text())


def test_every_arm_stands_and_the_broken_one_says_why(compared):
    ran, results = compared
    assert ran.returncode == 1, ran.stderr  # an arm failed, and a scheduler should know
    said = {(a["arm"], a["size"]): a for a in json.loads(ran.stdout)["arms"]}
    sized = [(arm, size) for size in (10, 500) for arm in ("random", "longest", "clear", "broken", "loop")]
    assert list(said) == [*sized, ("full", None)]
    assert "clear-filter reads ['clear_confidence'" in said["broken", 10]["sentence"]
    assert all("accuracy" in a for (arm, _), a in said.items() if arm != "broken")
    assert said["clear", 500]["taken"] < 60 < said["full", None]["taken"] < 120  # more was asked than the filter leaves
    done = [c for c in results["cells"] if not c["failed"]]
    assert {len(c["answers"]["right"]) for c in done} == {results["heldout"]["rows"]} == {35}
    assert {c["trained_tokens"] > 0 for c in done} == {True} and {0 <= c["spoilt"] <= 1 for c in done} == {True}


def test_what_a_choice_cost_is_counted_for_each_arm_alone(folder, compared):
    cost = {(c["arm"], c["size"], c["seed"]): c["choosing"] for c in compared[1]["cells"] if not c["failed"]}
    assert cost["random", 10, 0]["generated_tokens"] == 0 == cost["full", None, 1]["requests"]
    assert cost["clear", 10, 0] == cost["clear", 500, 1]
    rows = compared[1]["pool"]["live"]
    assert cost["clear", 10, 0]["requests"] > 2.5 * rows and cost["clear", 10, 0]["generated_tokens"] > rows
    # the loop's answers are CLEAR's own; beside these it asked for each row's loss, and tested its first student
    assert cost["loop", 10, 0]["requests"] > cost["clear", 10, 0]["requests"] + rows
    store = Store(folder / "store")
    [loop] = [c for c in compared[1]["cells"] if (c["arm"], c["size"], c["seed"]) == ("loop", 10, 0)]
    [first] = [m.id for m in lineage(store, [loop["chosen"]]) if m.kind == "adapter"]
    trained = store.run_facts(first)["seconds"]
    assert cost["loop", 10, 0]["seconds"] > trained + 0.95 * cost["clear", 10, 0]["seconds"]


def test_another_seed_pays_for_itself_alone_and_the_page_is_made_again_in_no_time(folder, compared):
    store = folder / "store"
    before = {p.parent.name for p in store.glob("datasets/train-*/manifest.json")}
    arms = ["--set", "arms={}", "--set", "seeds=[0,1,2]", "--set", "budget.rows=[10]"]
    ran = thresher("compare", folder / "compare.yaml", *arms, store=store)
    assert ran.returncode == 3, ran.stderr  # done, but a row was rejected on import
    assert len({p.parent.name for p in store.glob("datasets/train-*/manifest.json")} - before) == 3
    assert ("Take " in ran.stdout or "Keep " in ran.stdout) and "├" in ran.stdout
    page = folder / "again.html"
    ran = thresher("compare", store / "reports/small.json", "--write", page, store=store)
    assert ran.returncode == 0 and page.read_text().count("<tr>") > 5


def test_a_budget_in_tokens_is_kept_by_every_arm(folder, compared):
    changes = [f"budget={json.dumps({'tokens': 900, 'optimizer_steps': 2})}", "arms={}", "seeds=[0]", "name=tokens"]
    words = [word for change in changes for word in ("--set", change)]
    ran = thresher("compare", folder / "compare.yaml", *words, store=folder / "store")
    assert ran.returncode == 3, ran.stderr
    cells = {c["arm"]: c for c in json.loads((folder / "store/reports/tokens.json").read_text())["cells"]}
    assert cells["full"]["taken"] > 50 > cells["random"]["taken"] > 10


def test_two_workers_that_are_killed_end_and_go_on_to_the_same_answers(folder, compared, tmp_path):
    words = ["compare", folder / "compare.yaml", "--set", "arms={}", "--workers", "2"]
    command = [sys.executable, "-m", "flows.cli", *map(str, words), "--store", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while not (trained := set(tmp_path.glob("datasets/train-*/manifest.json"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = [c for c in psutil.Process(process.pid).children() if "--multiprocessing-fork" in c.cmdline()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) == 2 and psutil.wait_procs(workers, timeout=60)[1] == []
    written = {path: path.stat().st_mtime_ns for path in trained}
    ran = thresher(*words, store=tmp_path)
    assert ran.returncode == 3, ran.stderr
    assert {path: path.stat().st_mtime_ns for path in trained} == written  # what was trained was not trained again
    again = json.loads((tmp_path / "reports/small.json").read_text())
    before = {(c["arm"], c["size"], c["seed"]): c for c in compared[1]["cells"]}
    for cell in again["cells"]:
        one = before[cell["arm"], cell["size"], cell["seed"]]
        assert (cell["choice"], cell["taken"]) == (one["choice"], one["taken"])
        agree = [a == b for a, b in zip(cell["answers"]["right"], one["answers"]["right"], strict=True)]
        assert sum(agree) > 0.9 * len(agree)  # one thread adds in another order than two
