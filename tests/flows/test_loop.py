"""The whole loop through the command line, on a small piece of the shipped example, with real server and model."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml

from storage.store import Store

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.real, pytest.mark.timeout(1500)]


def thresher(*words, store, **more):
    command = [sys.executable, "-m", "flows.cli", *map(str, words), "--store", str(store)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, **more)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """160 lines of the raw file, 9 of them broken, and 40 held-out rows."""
    folder = tmp_path_factory.mktemp("example")
    raw = (ROOT / "examples/snips/raw.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "raw.jsonl").write_bytes(b"".join([*raw[:156], b'{"instruction": "cut off', b"\n", b'{"output": "a"}\n']))
    test = (ROOT / "examples/snips/test.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "test.jsonl").write_bytes(b"".join(test[::18]))
    config = yaml.safe_load((ROOT / "examples/snips/loop.yaml").read_text())
    config |= {"name": "small", "validation": 0.1, "budget": {"rows": 24, "rounds": 2, "optimizer_steps": 4}}
    config["budget"]["grown"] = 0.1
    config["feedback"] = [{"step": "reweight-clusters"}, {"step": "llm2llm", "with": {"rows": 6, "max_tokens": 24}}]
    few = {"epochs": 1, "prompts": 4, "samples": 3, "examples": 3, "max_tokens": 16, "lengths": "neither"}
    config["feedback"].append({"step": "self-guide", "from": "task.jsonl", "with": few})
    (folder / "task.jsonl").write_bytes(b"".join(test[1:6]))
    config["score"][2] = {"step": "kmeans-cluster", "with": {"clusters": 5}}
    del config["spoilt"]
    (folder / "loop.yaml").write_text(yaml.safe_dump(config))
    return folder / "loop.yaml"


@pytest.fixture(scope="module")
def finished(example, tmp_path_factory):
    store = tmp_path_factory.mktemp("undisturbed")
    ran = thresher("run", example, "--json", store=store)
    assert ran.returncode == 3, ran.stderr
    return store, json.loads(ran.stdout)


def sealed(store: Path) -> dict[str, str]:
    """Digests of everything that a killed and resumed run must give back to the same bytes."""
    found = [*store.glob("parts/*/*.parquet"), *store.glob("datasets/*/manifest.json")]
    found += [p for p in store.glob("datasets/*/files/**/*") if p.is_file()]
    return {str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def files(store: Path) -> int:
    return sum(1 for _ in store.glob("parts/*/*.parquet")) + sum(1 for _ in store.glob("datasets/*/manifest.json"))


def test_the_report_has_every_arm_and_every_row(finished):
    _, said = finished
    assert [a["name"] for a in said["arms"]] == ["untuned", "random", "full pool", "round 1", "round 2"]
    assert said["rows"]["rejected on import"] == 2 + count_broken(156)
    assert said["sentence"]


def test_a_dry_run_predicts_what_models_are_asked_within_half_as_much_again(example, tmp_path):
    changes = ["--set", "name=ungrown", "--set", "feedback=[{step: reweight-clusters}]"]  # an upper bound if rows grow
    ran = thresher("run", example, *changes, "--json", store=tmp_path)
    spent = json.loads(ran.stdout)["spent"]["total"]
    spent["requests"] -= spent["from_store"]  # what a round asks again of the same model
    told = thresher("run", example, *changes, "--dry-run", store=tmp_path).stdout
    found = re.search(r"models +([\d,]+) requests, ([\d,]+) tokens read, ([\d,]+) written\n", told)
    predicted = [int(number.replace(",", "")) for number in found.groups()]
    for what, number in zip(("requests", "prompt_tokens", "generated_tokens"), predicted, strict=True):
        assert number / 1.5 < spent[what] < number * 1.5, (what, number, spent)


def count_broken(lines: int) -> int:
    raw = (ROOT / "examples/snips/raw.jsonl").read_bytes().splitlines()[:lines]
    return sum(not usable(line) for line in raw)


def usable(line: bytes) -> bool:
    try:
        said = json.loads(line.decode("latin-1"))
    except ValueError:
        return False
    return bool(said.get("output")) and len(line) < 30000


def test_rows_are_conserved_through_every_scored_dataset(finished):
    store = Store(finished[0])
    for round_ in finished[1]["datasets"][0]["rounds"]:
        rows = store.read(round_["scored"], ["id", "parent_id", "drop_reason"])
        imported = store.read(finished[1]["datasets"][0]["pool"], ["id"])
        assert rows["id"].n_unique() == rows.height
        assert set(imported["id"]) == set(rows.filter(pl.col("parent_id").is_null())["id"])


def test_clusters_are_those_of_the_first_round(finished):
    store, rounds = Store(finished[0]), finished[1]["datasets"][0]["rounds"]
    assert sum(d.startswith("kmeans-centroids-") for d in store.ids()) == 1
    first, second = (store.read(r["scored"], ["id", "diversity_cluster"]).drop_nulls() for r in rounds)
    both = first.join(second, on="id", suffix="_now")
    assert both.height > 50 and both["diversity_cluster"].to_list() == both["diversity_cluster_now"].to_list()


def test_both_ways_to_grow_feed_the_second_round_and_keep_to_their_share_of_its_choice(finished):
    store, said = Store(finished[0]), finished[1]
    second = said["datasets"][0]["rounds"][1]
    rows = store.read(second["scored"], ["id", "method", "parent_id"])
    assert {"llm2llm", "self-guide"} <= set(rows["method"])
    examples = set(
        store.read(next(d for n, d in store.names().items() if n.startswith("small.from.self-guide-task-")))["id"]
    )
    assert set(rows.filter(pl.col("method") == "self-guide")["parent_id"]) <= examples
    took = rows.join(store.read(second["choice"]).filter("taken"), on="id", how="semi")
    assert took["method"].count() <= 0.1 * took.height
    assert [(g["round"], g["step"], g["taken_next"]) for g in said["grown"]] == [
        (1, step, took["method"].to_list().count(step)) for step in ("llm2llm", "self-guide")
    ]
    assert sum(g["taken_next"] for g in said["grown"]) == took["method"].count()
    assert all(g["kept"] <= g["rows"] and g["recited"] is not None for g in said["grown"])


def test_a_second_run_computes_nothing(example, finished):
    store, _ = finished
    before = {p: p.stat().st_mtime_ns for p in store.glob("datasets/*/manifest.json")}
    ran = thresher("run", example, store=store)
    assert ran.returncode == 3, ran.stderr
    assert {p: p.stat().st_mtime_ns for p in store.glob("datasets/*/manifest.json")} == before
    assert ran.stderr.count("already there") > 20


def test_explain_tells_the_story_of_a_dropped_a_kept_and_a_grown_row(finished):
    store, said = finished
    round_ = said["datasets"][0]["rounds"][1]
    rows = Store(store).read(round_["scored"])
    taken = Store(store).read(round_["choice"]).filter("taken")["id"]
    dropped = rows.filter(pl.col("drop_reason").str.starts_with("clear-filter"))["id"][0]
    kept = rows.filter(pl.col("id").is_in(taken.to_list()) & pl.col("parent_id").is_null())["id"][0]
    told = thresher("explain", dropped, store=store).stdout
    assert "raw.jsonl, line" in told and "clear_confidence" in told and "is not over" in told
    told = thresher("explain", kept, store=store).stdout
    assert "taken True" in told and "an adapter was trained on it" in told
    grown = rows.filter(pl.col("method") == "llm2llm")["id"]
    assert len(grown), "the teacher wrote nothing"
    told = thresher("explain", grown[0], store=store).stdout
    assert "written by llm2llm in round 1 from row" in told


def kill_at_random_moments(words: list[object], store: Path, whole: int, kills: int) -> None:
    """Begin the command so many times and kill -9 it somewhere before it has made `whole` files of the store."""
    rng = random.Random(os.environ.get("THRESHER_TEST_SEED", "7"))
    command = [sys.executable, "-m", "flows.cli", *map(str, words), "--store", str(store)]
    for made in sorted(rng.sample(range(1, whole * 9 // 10), kills)):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 400
        while files(store) < made and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.poll() is None, f"the run ended before it had made {made} of {whole} files"
        time.sleep(rng.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_killed_at_random_moments_it_gives_the_same_bytes(example, finished, tmp_path):
    kill_at_random_moments(["run", example], tmp_path, files(finished[0]), 3)
    ran = thresher("run", example, store=tmp_path)
    assert ran.returncode == 3, ran.stderr
    assert sealed(tmp_path) == sealed(finished[0])


def test_wrong_use_is_one_line_that_names_the_thing(example, finished, tmp_path):
    store, _ = finished
    for words, code, told in [
        (("run", example, "--set", "budgett=3"), 2, "budgett"),
        (("run", tmp_path / "nowhere.yaml"), 2, "nowhere.yaml"),
        (("run", example, "--set", "model=/no/such/model"), 1, "/no/such/model"),
        (("step", "clear-filter", "smal"), 1, "did you mean"),
        (("step", "clear-filter", "../../etc/passwd"), 1, "is no dataset name"),
        (("step", "clear-filter", "small"), 2, "clear_confidence"),
        (("import", "/dev/null", "--name", "empty"), 1, "empty"),
    ]:
        ran = thresher(*words, store=store)
        assert ran.returncode == code, (words, ran.stderr)
        assert told in ran.stderr and "Traceback" not in ran.stderr
