from pathlib import Path

import pytest

from flows import steps  # noqa: F401  registers every step
from flows.config import ConfigError, load

GOOD = "pool: raw.jsonl\nheldout: test.jsonl\n"


def read(tmp_path, text, changes=()):
    for name in ("raw.jsonl", "test.jsonl"):
        (tmp_path / name).touch()
    path = tmp_path / "loop.yaml"
    path.write_text(text)
    return load(path, list(changes))


def test_defaults_and_the_name_of_the_folder(tmp_path):
    config = read(tmp_path, GOOD)
    assert (config.name, config.budget.rows, config.seeds) == (tmp_path.name, 700, [0])


@pytest.mark.parametrize("name", ["snips", "clinc15"])
def test_the_shipped_examples_load(name):
    config = load(Path(__file__).parents[2] / "examples" / name / "loop.yaml")
    assert (config.name, config.choose.step) == (name, "kmeans-quality")


def test_the_iterations_of_llm2llm_are_a_loop_that_scores_nothing_and_chooses_all():
    config = load(Path(__file__).parents[2] / "examples/snips/llm2llm.yaml")
    assert (config.score, [u.step for u in config.feedback]) == ([], ["llm2llm"])


def test_a_check_is_a_score_step(tmp_path):
    config = read(tmp_path, GOOD + "check: [{step: judge-answers, with: {threshold: 0.5}}]\n")
    assert config.check[0].config().threshold == 0.5
    with pytest.raises(ConfigError, match="check: duplicates is a filter step; a score step belongs there"):
        read(tmp_path, GOOD + "check: [{step: duplicates}]\n")


def test_set_reaches_into_lists_and_budgets(tmp_path):
    text = GOOD + "score: [{step: clear-filter}]\n"
    config = read(tmp_path, text, ["budget.rounds=2", "seeds=[1,2]", "score.0.with.threshold=0.25"])
    assert config.budget.rounds == 2 and config.seeds == [1, 2]
    assert config.score[0].config().threshold == 0.25


def test_growth_says_from_what_how_many_and_how_much_of_a_choice():
    config = load(Path(__file__).parents[2] / "examples/snips/growth.yaml")
    assert config.budget.grown == 0.3
    wrong, task = config.feedback
    assert wrong.config().weak_clusters == 10 and wrong.config().rows == 60
    assert task.step == "self-guide" and task.from_ == "seed50.jsonl"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("feedback: [{step: self-guide, from: no.jsonl}]", "there is no file .*no.jsonl", id="no-file"),
        pytest.param("feedback: [{step: llm2llm, from: raw.jsonl}]", "llm2llm grows from rows of the pool", id="wrong"),
        pytest.param("score: [{step: duplicates, from: raw.jsonl}]", "`from` belongs under feedback", id="no-maker"),
        pytest.param("choose: {step: random, from: raw.jsonl}", "`from` belongs under feedback", id="choose"),
        pytest.param("feedback: [{step: llm2llm}, {step: llm2llm}]", "llm2llm stands there twice", id="twice"),
        pytest.param("budget: {grown: 1.2}", "'budget.grown'.*less than 1", id="over-one"),
    ],
)
def test_growth_that_cannot_be_is_refused(tmp_path, text, told):
    with pytest.raises(ConfigError, match=told):
        read(tmp_path, f"{GOOD}{text}\n")


@pytest.mark.parametrize(
    ("text", "changes", "told"),
    [
        pytest.param(GOOD + "budgett: 3", [], "unknown key 'budgett'; did you mean 'budget'", id="unknown-key"),
        pytest.param(GOOD + "budget: {rowz: 3}", [], "unknown key 'budget.rowz'; did you mean 'rows'", id="nested"),
        pytest.param(GOOD + "budget: {rows: -3}", [], "'budget.rows'.*greater than or equal to 1", id="out-of-bounds"),
        pytest.param("heldout: x", [], "'pool'", id="missing"),
        pytest.param(GOOD + "spoilt: nowhere.jsonl", [], "spoilt: there is no file .*nowhere.jsonl", id="no-such-file"),
        pytest.param("a: [", [], "is not YAML", id="not-yaml"),
        pytest.param("just text", [], "holds no keys", id="no-keys"),
        pytest.param(GOOD, ["seeds"], "key=value", id="no-equals"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, changes, told):
    with pytest.raises(ConfigError, match=told):
        read(tmp_path, text, changes)


def test_a_wrong_setting_of_a_step_names_step_and_setting(tmp_path):
    with pytest.raises(ConfigError, match=r"step clear-filter.*treshold.*threshold"):
        read(tmp_path, GOOD + "score: [{step: clear-filter, with: {treshold: 1}}]")
    with pytest.raises(ConfigError, match="there is no config"):
        load(tmp_path / "nowhere.yaml")
