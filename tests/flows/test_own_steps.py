import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from curation.step import STEPS, find_step
from flows import own_steps, steps  # noqa: F401  registers ours
from flows.card import card
from flows.cluster import job_of
from flows.cluster_worker import Worker, Wrong
from flows.config import ConfigError, Use, load
from flows.contract import broken_promises
from flows.engines import EngineError
from flows.own_steps import load_steps, named_files
from flows.run import run_step
from storage.schema import ROW
from storage.store import Manifest, Store
from tests.flows.test_cli import LINES, thresher
from tests.rows import rows

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "examples" / "own-step" / "my_steps.py"


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """The steps of a test are gone after it."""
    monkeypatch.setenv(own_steps.FILES, "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    registered, loaded = dict(STEPS), dict(own_steps._LOADED)
    own_steps._LOADED.clear()
    yield
    for known, before in ((STEPS, registered), (own_steps._LOADED, loaded)):
        known.clear()
        known.update(before)


@pytest.fixture
def mine(tmp_path):
    return Path(shutil.copy(TEMPLATE, tmp_path / "my_steps.py"))


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store")
    part = store.put_part("a" * 20, rows(("a", "b?"), ("c", "d??? Or e?"), ("f", "g")), ROW)
    store.seal(Manifest("import-1", "rows", "import", 1, {}, {}, {}, ((part,),), counts={"rows": 3, "live": 3}))
    return store


def run(store, name, rows="import-1", **settings):
    step = find_step(name)
    return run_step(store, step, step.config(**settings), rows)


def test_the_template_keeps_its_promises_and_does_what_it_says(mine, store):
    found = load_steps([mine])
    assert [s.name for s in found] == ["asks-back", "asks-back-filter"]
    assert [broken_promises(s) for s in found] == [[], []]
    scored = run(store, "asks-back")
    assert store.read(scored)["my_questions"].to_list() == [1, 2, 0]
    assert store.read(run(store, "asks-back", count_all=True))["my_questions"].to_list() == [1, 4, 0]
    kept = store.read(run(store, "asks-back-filter", scored, most=1))
    assert kept["drop_reason"].to_list() == [None, "asks-back-filter: 2 questions are over 1", None]


def test_what_a_file_says_is_in_the_key_and_so_is_what_it_imports_from_its_own_folder(mine, store):
    load_steps([mine])
    first = run(store, "asks-back")
    assert run(store, "asks-back") == first and first in store.ids()
    mine.write_text("import deep.words as words\n" + mine.read_text().replace(r'r"\?+"', "words.QUESTION"))
    (mine.parent / "deep").mkdir()
    (mine.parent / "deep" / "words.py").write_text(r"QUESTION = r'\?+'")
    load_steps([mine])
    second = run(store, "asks-back")
    assert second != first and store.read(second).equals(store.read(first), null_equal=True)
    (mine.parent / "deep" / "words.py").write_text(r"QUESTION = r'\?'")
    (mine.parent / "unrelated.py").write_text("x = 1")
    load_steps([mine])
    third = run(store, "asks-back")
    assert len({first, second, third}) == 3
    assert store.read(third)["my_questions"].to_list() == [1, 4, 0]  # by what it says now
    (mine.parent / "unrelated.py").write_text("x = 2")
    load_steps([mine])
    assert run(store, "asks-back") == third
    assert store.manifest(third).code == find_step("asks-back").code != ""
    assert find_step("asks-back").code[:16] in card(store, third)


def test_what_was_loaded_is_what_is_sent_whatever_the_file_says_by_now(mine):
    (mine.parent / "words.py").write_text(r"QUESTION = r'\?+'")
    mine.write_text("import words\n" + mine.read_text().replace(r'r"\?+"', "words.QUESTION"))
    step, asked = load_steps([mine])[0], rows(("a", "b??"))
    job = job_of(step, step.config(), {}, {})
    (mine.parent / "words.py").write_text(r"QUESTION = r'\?'")
    later = job_of(step, step.config(), {}, {})
    assert later.own == job.own and later.own["words.py"] == rb"QUESTION = r'\?+'"
    for known in (*own_steps._LOADED.popitem()[1][1],):  # a worker's process knows nothing of it
        del STEPS[known]
    worker = Worker()
    assert worker.turn(later) is None and worker.turn(asked) == ("begun",)
    assert worker.turn(None).rows["my_questions"].to_list() == [1]
    said = worker.turn(replace(later, code="of-another-day"))
    assert isinstance(said.why, EngineError) and "asks-back is another than where the command runs" in str(said.why)
    own = {**later.own, "words.py": rb"QUESTION = r'\?'"}  # the same worker, by the file as it is now
    assert isinstance(worker.turn(replace(later, own=own)), Wrong)
    folder = worker._folder
    assert folder.exists()
    worker.close()
    assert not folder.exists()


def test_the_keys_of_our_own_steps_do_not_know_of_files(store):
    assert find_step("longest").edition == find_step("longest").version
    assert store.manifest(run(store, "longest")).code == ""


def test_a_config_names_a_file_beside_it(mine, tmp_path):
    (tmp_path / "raw.jsonl").write_text("{}")
    config = tmp_path / "loop.yaml"
    said = {"pool": "raw.jsonl", "heldout": "raw.jsonl", "score": [{"step": "asks-back"}], "steps": ["my_steps.py"]}
    config.write_text(json.dumps(said))
    assert load(config).score == [Use(step="asks-back")]
    assert os.environ[own_steps.FILES] == str(mine), "a process that is started from here knows it too"
    config.write_text(json.dumps(said | {"steps": ["nowhere.py"]}))
    with pytest.raises(ConfigError, match=r"there is no file of steps .*nowhere\.py"):
        load(config)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        pytest.param("import polars as pl", "import polrs as pl", "line 8: ModuleNotFoundError.*polrs", id="import"),
        pytest.param("class AsksBack(", "class AsksBack((", "line [0-9]+: invalid syntax", id="syntax"),
        pytest.param('@step("asks-back",', '@step("longest",', "two steps are named 'longest'", id="name-taken"),
        pytest.param("@step(", "@(lambda *_, **__: lambda f: f)(", "has no step", id="no-step"),
        pytest.param("kind=", "knd=", "line [0-9]+: TypeError.*knd", id="misspelt"),
        pytest.param(
            "class AsksBackFilter", "raise SystemExit(1)\n\n\nclass AsksBackFilter", "SystemExit: 1", id="exits"
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line_and_leaves_nothing(mine, before, after, told):
    known = set(STEPS)
    mine.write_text(mine.read_text().replace(before, after))
    with pytest.raises(ConfigError, match=f"my_steps\\.py.*{told}"):
        load_steps([mine])
    assert set(STEPS) == known


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        pytest.param(
            "rows.with_columns(my_questions", "rows.head(1).with_columns(my_questions", "add, drop or", id="less"
        ),
        pytest.param("my_questions=response", "other=response", r"may not change \['other'\]", id="other-column"),
        pytest.param(".fill_null(", ".does_not_exist(", "AttributeError.*my_steps.py, line", id="bug"),
        pytest.param(
            'return rows.with_columns(my_questions=response.str.count_matches(r"\\?" if cfg.count_all else r"\\?+"))',
            "return rows.with_columns(my_questions=pl.lit(rows.height))",
            'depends on the other rows; say scope="dataset"',
            id="rows-by-rows",
        ),
        pytest.param(
            'return rows.with_columns(my_questions=response.str.count_matches(r"\\?" if cfg.count_all else r"\\?+"))',
            "import random\n    return rows.with_columns(my_questions=pl.lit(random.random()))",
            "another result the second time",
            id="unseeded",
        ),
        pytest.param('    """Count the questions in each response."""\n', "", "no docstring", id="no-help"),
    ],
)
def test_a_broken_promise_is_found_before_the_step_is_used(mine, before, after, told):
    assert before in mine.read_text()
    mine.write_text(mine.read_text().replace(before, after))
    wrong = broken_promises(load_steps([mine])[0])
    assert any(re.search(told, what) for what in wrong), wrong


def test_a_file_is_named_anywhere_in_a_command():
    words = ["thresher", "step", "--steps", "a.py", "asks-back", "mine", "--steps=b.py", "--name", "x"]
    assert named_files(words) == [Path("a.py"), Path("b.py")]
    assert words == ["thresher", "step", "asks-back", "mine", "--name", "x"]
    with pytest.raises(ConfigError, match="--steps takes a file"):
        named_files(["thresher", "--steps"])


def test_it_has_a_command_with_help_and_options_like_any_other(mine, tmp_path):
    raw = tmp_path / "raw.jsonl"
    raw.write_text("\n".join(map(json.dumps, LINES)))
    assert thresher("import", raw, "--name", "numbers", store=tmp_path / "s").returncode == 0
    ran = thresher("step", "asks-back", "numbers", "--count-all", "--steps", mine, store=tmp_path / "s")
    assert ran.returncode == 0 and "numbers.asks-back: 5 live, 5 rows" in ran.stderr, ran.stderr
    words = [sys.executable, "-m", "flows.cli", "--steps", str(mine)]
    helped = subprocess.run([*words, "step", "asks-back", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert "--count-all" in helped.stdout and "Count every question mark" in helped.stdout
    wrong = thresher("step", "asks-back", "numbers", store=tmp_path / "s")
    assert wrong.returncode == 2 and "asks-back" in wrong.stderr
    checked = subprocess.run([*words[:3], "check-steps", str(mine)], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0 and "ok     asks-back-filter (filter)" in checked.stdout
