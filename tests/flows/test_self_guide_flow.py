"""Self-Guide whole: what is tried and taken, what the page says, and one real run that is found again."""

import json

import pytest
import yaml

from curation.step import StepError
from flows import steps  # noqa: F401  registers every step
from flows.own_steps import ConfigError
from flows.report import unscorable
from flows.self_guide_config import Setting, load_self_guide
from flows.self_guide_flow import best
from flows.self_guide_page import markdown, scores_of, sentence
from storage.store import Store
from tests.flows.test_loop import ROOT, files, kill_at_random_moments, sealed, thresher
from tests.flows.test_report import evaluation

CONFIG = ROOT / "examples/self_guide/self-guide.yaml"
A, B, C = Setting(0.6, "both", 1), Setting(0.7, "inputs", 2), Setting(0.8, "neither", 3)


def tried(setting, *gains):
    return {"setting": setting, "gains": {str(i): g for i, g in enumerate(gains)}, "failed": ["task, seed 0, no rows"]}


@pytest.mark.parametrize(
    ("found", "taken"),
    [
        pytest.param([tried(A, 5, -1, 9), tried(B, 2, 2, 2)], B, id="the paper's: max-min"),
        pytest.param([tried(A, 2, 3), tried(B, 3, 2)], A, id="the first of equals"),
        pytest.param([tried(A, 9, None), tried(B, -4, -3)], B, id="one that left a task without a student is none"),
    ],
)
def test_the_setting_is_taken_whose_least_gain_is_the_greatest(found, taken):
    assert best(found) == taken


def test_where_no_setting_gave_every_task_a_student_it_says_why():
    with pytest.raises(StepError, match="no rows"):
        best([tried(A, 1, None), tried(B, None, 2)])


def test_as_many_settings_are_tried_as_asked_for_the_configs_own_first_each_once_and_in_the_same_order():
    few = load_self_guide(CONFIG, ["search={settings: 7}"]).settings()
    assert len(set(few)) == 7 and few[0] == Setting(None, "auto", 3)
    assert few == load_self_guide(CONFIG, ["search={settings: 7}"]).settings()
    whole = load_self_guide(CONFIG, ["search={settings: 1000}"]).settings()
    assert len(whole) == 1 + 5 * 4 * 3 and whole[:7] == few
    own = ["search={settings: 1000}", "guide.temperature=0.6", "guide.lengths=both", "epochs=1"]
    assert len(load_self_guide(CONFIG, own).settings()) == 60  # its own is one of the grid
    assert load_self_guide(CONFIG).settings() == [Setting(None, "auto", 3)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["tasks.esnli.pool=nowhere.jsonl"], "there is no file"),
        (["tasks.esnli.guide.epoch=3"], "self-guide: unknown key 'epoch'"),
        (["guide.seed=3"], "is said by `seeds`"),
        (["search={settings: 2}", "tasks.esnli.guide.temperature=0.5"], "what the search looks for"),
        (["search={settings: 0}"], "search.settings"),
        (["seeds=[1, 1]"], "stands there twice"),
        (["tasks={a b: {pool: esnli.jsonl, heldout: esnli-test.jsonl}}"], "is no name of a task"),
        (["train.optimizer_steps=3"], "optimizer_steps"),
    ],
)
def test_what_is_wrong_in_a_config_is_named(changes, says):
    with pytest.raises(ConfigError, match=says):
        load_self_guide(CONFIG, changes)


def task(few_shot, prompted, *students):
    differences = {"few-shot": few_shot, "prompted": prompted}
    leads = {
        arm: {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "holm": p} for arm, (mean, p) in differences.items()
    }
    return {"differences": leads if any(students) else {}, "datasets": [{"adapter": name} for name in students]}


def test_the_sentence_says_of_each_task_what_was_shown_and_no_more():
    better, worse, unclear = (0.2, 0.01), (-0.2, 0.01), (0.2, 0.2)
    tasks = {
        "a": task(better, worse, "x", None),
        "b": task(worse, worse, "x", "y"),
        "c": task(unclear, better, "x", "y"),
        "d": task(better, better, None, None),
    }
    assert sentence({"tasks": tasks}) == (
        "Against few-shot prompting, Self-Guide is ahead on a; behind on b; not shown to differ on c. "
        "Against prompting alone, Self-Guide is ahead on c; behind on a, b. "
        "On a, 1 of 2 seeds gave a student. On d, none of 2 seeds gave a student."
    )
    assert sentence({"tasks": {"d": tasks["d"]}}) == "Self-Guide gave no student."


def test_what_failed_is_told_as_it_is_in_lines_of_its_own():
    said = {
        "name": "n",
        "sentence": "s",
        "model": "m",
        "seeds": [0],
        "setting_in_words": "w",
        "tasks": {},
        "search": [],
    }
    lines = markdown(said | {"failed": ["a, seed 0, <b>no</b> | rows", "b"]}).splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("- "))
    assert "<b>" not in lines[first] and "|" not in lines[first]
    assert lines[first + 1 : first + 3] == ["- b", ""] and lines[first + 3].startswith("Scores are")


def test_rows_that_the_metric_cannot_compare_say_nothing_of_a_student(tmp_path):
    store, known = Store(tmp_path), {"prompted": [False, None, True], "tested": [True, None, None]}
    for name, correct in known.items():
        evaluation(store, name, correct)
    left_out = unscorable(store, list(known))
    assert [scores_of(store, name, left_out).tolist() for name in known] == [[0.0, 1.0], [1.0, 0.0]]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The path of a config with one small task."""
    folder = tmp_path_factory.mktemp("guided")
    for name, lines in (("esnli", 24), ("esnli-test", 12)):
        some = (CONFIG.parent / f"{name}.jsonl").read_text().splitlines()[:lines]
        (folder / f"{name}.jsonl").write_text("\n".join(some))
    config = yaml.safe_load(CONFIG.read_text()) | {
        "name": "small",
        "seeds": [0],
        "epochs": 1,
        "search": {"settings": 2},
    }
    config["guide"] = {"epochs": 1, "prompts": 8, "samples": 4, "examples": 3, "max_tokens": 24, "lengths": "neither"}
    config["tasks"] = {"esnli": config["tasks"]["esnli"]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def guided(small):
    ran = thresher("self-guide", small, "--json", store=small.parent / "store")
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout), small.parent / "store"


@pytest.mark.real
@pytest.mark.timeout(900)
def test_a_run_gives_every_arm_decides_nothing_by_held_out_rows_and_is_found_again(small, guided):
    said, place = guided
    store = Store(place)
    task = said["tasks"]["esnli"]
    assert set(task["arms"]) == {"prompted", "few-shot", "self-guide"} and task["heldout_rows"] == 12
    assert len(said["search"]) == 2 and task["validation_rows"] > 0
    (grown,) = task["grown"]
    assert grown["asked"] == 8 and grown["kept"] + sum(grown["refused"].values()) == 8 and grown["recited"] is not None
    (chain,) = task["datasets"]
    held = store.resolve("small.esnli-heldout")
    read = [m for d in store.ids() if (m := store.manifest(d)).step == "evaluate" and m.inputs["rows"] == held]
    assert len(read) == 3  # one of each arm: the two students of the search answered validation rows alone
    assert store.manifest(chain["own"]).counts["live"] == grown["kept"]
    before = {p: p.stat().st_mtime_ns for p in place.glob("datasets/*/manifest.json")}
    again = thresher("self-guide", small, "--json", store=place)
    assert json.loads(again.stdout) == said
    assert {p: p.stat().st_mtime_ns for p in place.glob("datasets/*/manifest.json")} == before
    assert "| self-guide |" in markdown(said)


@pytest.mark.real
@pytest.mark.timeout(900)
def test_killed_at_random_moments_it_gives_the_same_bytes(small, guided, tmp_path):
    kill_at_random_moments(["self-guide", small], tmp_path, files(guided[1]), 2)
    assert thresher("self-guide", small, store=tmp_path).returncode == 0
    assert sealed(tmp_path) == sealed(guided[1])
