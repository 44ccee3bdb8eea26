"""The command line as a user types it; nothing here needs a server."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINES = [{"instruction": f"Say {i}.", "output": str(i)} for i in range(5)]


def thresher(*words, store, **more):
    command = [sys.executable, "-m", "flows.cli", *map(str, words), "--store", str(store)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, **more)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    path = tmp_path_factory.mktemp("raw") / "raw.jsonl"
    path.write_text("\n".join([*map(json.dumps, LINES), '{"instruction": "cut']) + "\n")
    return path


@pytest.fixture(scope="module")
def store(raw, tmp_path_factory):
    place = tmp_path_factory.mktemp("store")
    ran = thresher("import", raw, "--name", "numbers", store=place)
    assert ran.returncode == 3, ran.stderr
    assert "5 rows, 1 rejected" in ran.stderr
    return place


def test_a_step_runs_alone_and_names_what_it_made(store):
    ran = thresher("step", "random", "numbers", "--rows", "2", "--name", "two", store=store)
    assert ran.returncode == 0, ran.stderr
    listed = json.loads(thresher("datasets", "--json", store=store).stdout)
    assert {"numbers", "two"} <= {name for dataset in listed for name in dataset["names"]}
    shown = thresher("show", "two", "--json", store=store).stdout.splitlines()
    assert sum(json.loads(line)["taken"] for line in shown) == 2


def test_rejects_are_shown_with_line_and_reason(store):
    ran = thresher("show", "numbers", "--rejects", "--json", store=store)
    (said,) = map(json.loads, ran.stdout.splitlines())
    assert said["line"] == 6 and "not JSON" in said["reason"]


def test_explain_finds_a_row_by_the_beginning_of_its_id(store):
    first = json.loads(thresher("show", "numbers", "--json", "--limit", "1", store=store).stdout)["id"]
    told = thresher("explain", first[:12], store=store)
    assert told.returncode == 0 and "from raw.jsonl, line 1" in told.stdout
    assert thresher("explain", "zzz", store=store).returncode == 1


def test_export_writes_what_import_read(store, tmp_path):
    assert thresher("export", "numbers", tmp_path / "out.jsonl", "--format", "alpaca", store=store).returncode == 0
    said = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(s["instruction"], s["output"]) for s in said] == [(r["instruction"], r["output"]) for r in LINES]


def test_help_of_a_step_teaches_its_settings():
    ran = subprocess.run(
        [sys.executable, "-m", "flows.cli", "step", "clear-score", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert "--samples" in ran.stdout and "Answers sampled per row" in ran.stdout and "1 or more" in ran.stdout


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        pytest.param(("step", "random", "nobody"), 1, "there is no dataset 'nobody'", id="no-such-dataset"),
        pytest.param(("step", "random", "number"), 1, "did you mean numbers?", id="misspelt"),
        pytest.param(("show", "../../etc/passwd"), 1, "is no dataset name", id="leaves-the-root"),
        pytest.param(("step", "clear-filter", "numbers"), 2, "clear_confidence", id="column-is-missing"),
        pytest.param(("step", "clear-correct", "numbers"), 2, "--student-adapter student takes it", id="no-student"),
        pytest.param(("step", "random", "numbers", "--rows", "0"), 2, "rows", id="out-of-bounds"),
        pytest.param(("step", "nothing", "numbers"), 2, "nothing", id="no-such-step"),
        pytest.param(("import", "/dev/null", "--name", "x"), 1, "null has no usable row: it is empty", id="empty-file"),
        pytest.param(("import", "/nowhere.jsonl", "--name", "x"), 1, "/nowhere.jsonl", id="no-file"),
        pytest.param(("run", "/nowhere.yaml"), 2, "/nowhere.yaml", id="no-config"),
        pytest.param(("evaluate", "numbers", "--model", "/no/model"), 1, "/no/model", id="no-model"),
        pytest.param(("train", "numbers", "--targets", "q_prjo"), 1, "did you mean q_proj", id="no-such-layer"),
        pytest.param(("train", "numbers", "--rows-at-once", "5"), 2, "does not divide batch_size", id="uneven"),
        pytest.param(("prefer", "numbers"), 1, "holds no pair", id="no-pairs"),
        pytest.param(("serve", "numbers"), 1, "name what `thresher train` made", id="serve-rows"),
        pytest.param(("evaluate", "numbers", "--by", "colour"), 2, "no such column", id="no-such-group"),
        pytest.param(("step", "instructmining-predict", "numbers"), 2, "instructmining_reward", id="rule-refuses"),
    ],
)
def test_what_goes_wrong_is_one_line_with_an_exit_code(store, words, code, told):
    ran = thresher(*words, store=store)
    assert ran.returncode == code, ran.stderr
    assert told in ran.stderr and "Traceback" not in ran.stderr


def test_a_model_that_is_missing_is_told_before_a_bench_spoils_anything(store):
    asked = ("noise-bench", "numbers", "--step", "clear-score", "--set", "similarity=nli", "--nli", "/no/nli")
    before = sorted(store.glob("datasets/*"))
    ran = thresher(*asked, store=store)
    assert ran.returncode == 1 and "there is no model folder /no/nli" in ran.stderr, ran.stderr
    assert sorted(store.glob("datasets/*")) == before


def test_a_disk_that_takes_no_more_leaves_nothing_half_written(raw, tmp_path):
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    ran = thresher("import", raw, "--name", "numbers", store=tmp_path, preexec_fn=full)
    assert ran.returncode == 1 and "free the disk" in ran.stderr and "Traceback" not in ran.stderr
    assert not list(tmp_path.glob("datasets/*/manifest.json")) and not list(tmp_path.glob("refs/*"))
    assert thresher("import", raw, "--name", "numbers", store=tmp_path).returncode == 3


def test_a_preview_shows_what_would_be_learnt_and_trains_nothing(store):
    ran = thresher("train", "numbers", "--preview", store=store)
    assert ran.returncode == 0, ran.stderr
    assert "<|assistant|>⟦" in ran.stdout and "Say 3.<|end|><|assistant|>⟦3<|end|>⟧" in ran.stdout.replace("⟦ ", "⟦")
    assert "5 rows, " in ran.stdout and "told by the template's own marks" in ran.stdout
    assert not list(store.glob("datasets/train-*"))


def test_no_library_writes_into_the_terminal_of_its_own_accord():
    said = "import logging, flows.cli, synthesis.llm2llm; print(logging.root.handlers)"
    ran = subprocess.run([sys.executable, "-c", said], cwd=ROOT, capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")
