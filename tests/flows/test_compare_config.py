from pathlib import Path

import pytest
import yaml

from flows import steps  # noqa: F401  registers every step
from flows.compare import every_cell
from flows.compare_config import ablation, load_comparison
from flows.config import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples"
GOOD = "pool: raw.jsonl\nheldout: test.jsonl\nbudget: {rows: [40, 20]}\nseeds: [0, 1]\n"
ARM = "arms: {mine: {choose: {step: longest}}}\n"


def read(tmp_path, text, changes=()):
    for name in ("raw.jsonl", "test.jsonl"):
        (tmp_path / name).touch()
    path = tmp_path / "compare.yaml"
    path.write_text(text)
    return load_comparison(path, list(changes))


def test_random_longest_and_full_are_always_there(tmp_path):
    cells = every_cell(read(tmp_path, GOOD + ARM))
    sized = [(arm, size, seed) for size in (20, 40) for arm in ("random", "longest", "mine") for seed in (0, 1)]
    assert [(c.arm, c.size, c.seed) for c in cells] == [*sized, ("full", None, 0), ("full", None, 1)]


def test_the_iterations_of_llm2llm_stand_beside_the_same_rows_at_the_same_steps():
    cells = every_cell(load_comparison(EXAMPLES / "snips/llm2llm-compare.yaml", []))
    iterations = {f"{n} iteration{s}" for n, s in (("one", ""), ("two", "s"), ("three", "s"))}
    assert {c.arm for c in cells} == {"random", "longest", "full", *iterations}
    assert {c.loop.budget.rounds for c in cells if c.arm.endswith("iterations")} == {3, 4}


def test_all_cells_train_alike(tmp_path):
    config = read(tmp_path, GOOD + ARM + "train: {batch_size: 4}\nevaluate: {max_tokens: 3}\n")
    alike = {(str(c.loop.train), c.loop.budget.optimizer_steps, c.loop.model) for c in every_cell(config)}
    assert len(alike) == 1
    assert {c.loop.budget.rows for c in every_cell(config) if c.arm != "full"} == {20, 40}


def test_a_budget_in_tokens_is_one_for_every_arm(tmp_path):
    config = read(tmp_path, GOOD.replace("rows: [40, 20]", "tokens: 900") + ARM)
    assert {c.loop.budget.tokens for c in every_cell(config) if c.arm != "full"} == {900}
    assert [c.loop.budget.tokens for c in every_cell(config) if c.arm == "full"] == [None, None]


def test_an_arm_may_have_models_of_its_own(tmp_path):
    config = read(
        tmp_path,
        GOOD + "roles: {judge: {model: a}}\narms: {mine: {choose: {step: random}, roles: {judge: {model: b}}}}",
    )
    assert config.loop("mine", 5).roles["judge"].model == "b"
    assert config.loop("random", 5).roles["judge"].model == "a"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(GOOD + "arms: {full: {choose: {step: random}}}", "'full' is always there", id="a-name-taken"),
        pytest.param(
            GOOD + "arms: {a: {choose: {step: clear-filter}}}",
            "arms.a.choose: clear-filter is a filter step",
            id="kind",
        ),
        pytest.param(GOOD + "arms: {a: {score: []}}", "'arms.a.choose'", id="no-choose"),
        pytest.param(GOOD + "arms: {a: {chose: {step: random}}}", "did you mean 'choose'", id="misspelt"),
        pytest.param(
            GOOD + "arms: {a: {choose: {step: random, with: {rows: 3}}}}", "is said by `budget`", id="own-budget"
        ),
        pytest.param(
            GOOD + "arms: {a: {choose: {step: choose, with: {tokens: 3}}}}",
            r"arms.a.choose: \['tokens'\] is said by `budget`",
            id="own-tokens",
        ),
        pytest.param(GOOD.replace("rows: [40, 20]", "rows: 5, tokens: 5"), "rows or tokens", id="two-units"),
        pytest.param(GOOD.replace("[40, 20]", "[0]"), "greater than or equal to 1", id="nothing"),
        pytest.param(GOOD.replace("[40, 20]", "[]"), "at least 1 item", id="empty"),
        pytest.param(GOOD.replace("[40, 20]", "[350, '700']"), "valid integer", id="text"),
        pytest.param(GOOD.replace("[0, 1]", "[0, 0]"), "stands there twice", id="one-seed-twice"),
        pytest.param(GOOD.replace("[0, 1]", "[-1]"), "greater than or equal to 0", id="negative-seed"),
        pytest.param(GOOD + "baseline: best", "there is no arm 'best'", id="baseline"),
        pytest.param(GOOD + "arms: {'a|b': {choose: {step: random}}}", "no name of an arm", id="arm-name"),
        pytest.param(
            GOOD + "arms: {a: {choose: {step: longest}}, b: {choose: {step: longest}}}",
            "'a' and 'b' are the same",
            id="same",
        ),
        pytest.param(GOOD + "arms: {a: {choose: {step: random}, roles: {jugde: {}}}}", "jugde", id="role"),
        pytest.param(GOOD + "train: {seed: 3}", "for all arms alike", id="own-seed"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, told):
    with pytest.raises(ConfigError, match=told):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "path",
    sorted([*EXAMPLES.glob("*/compare.yaml"), *EXAMPLES.glob("*/diversity.yaml")]),
    ids=lambda p: f"{p.parent.name}-{p.stem}",
)
def test_the_shipped_comparisons_load(path):
    config = load_comparison(path)
    assert len(config.seeds) >= 3 and config.arms


def test_ablation_leaves_out_each_stage_with_what_stands_on_it():
    config = ablation(EXAMPLES / "snips" / "loop.yaml")
    whole, without = config.arms["whole"], config.arms["without clear-filter"]
    assert config.baseline == "whole"
    assert [u.step for u in without.score] == [u.step for u in whole.score if u.step != "clear-filter"]
    assert config.arms["without llm2llm"].rounds == 3 and config.arms["one round"].rounds == 1
    assert config.arms["chosen at random"].choose.step == "random"
    assert config.loop("without llm2llm", 700).name == "snips-ablation.without-llm2llm.700"
    assert not any("embed" in name or "kmeans-cluster" in name for name in config.arms)  # the choice needs them
    perplexity = next(arm for name, arm in config.arms.items() if name.startswith("without perplexity"))
    assert [u.step for u in perplexity.feedback] == ["llm2llm"]
    assert "instructmining-score" in str(perplexity.score)  # it asks the base model itself


def test_a_check_of_answers_is_the_same_for_every_arm():
    check = 'check=[{"step": "judge-answers", "with": {"threshold": 0.5}}]'
    for config in (
        ablation(EXAMPLES / "snips/loop.yaml", [check]),
        load_comparison(EXAMPLES / "snips/compare.yaml", [check]),
    ):
        assert {arm: [use.step for use in config.loop(arm, 700).check] for arm in config.every_arm()} == {
            arm: ["judge-answers"] for arm in config.every_arm()
        }
    with pytest.raises(ConfigError, match="without a threshold changes no verdict"):
        load_comparison(EXAMPLES / "snips/compare.yaml", ['check=[{"step": "judge-answers"}]'])


def test_ablation_keeps_the_budget_and_the_stopping_of_the_run():
    path, tokens = EXAMPLES / "snips" / "loop.yaml", "budget={tokens: 900, rounds: 2, stop_when_flat: true}"
    config = ablation(path, [tokens])
    assert config.budget.tokens == [900] and config.arms["whole"].stop_when_flat
    assert config.loop("whole", 900).budget.stop_when_flat
    assert "without llm2llm" not in ablation(path, ["budget.rounds=1"]).arms  # one round feeds nothing


def test_an_ablation_of_a_loop_that_corrects_keeps_the_correction_where_its_scores_are_there(tmp_path):
    clear = [{"step": "clear-score"}, {"step": "clear-filter"}, {"step": "clear-correct"}]
    run = {"pool": "raw.jsonl", "heldout": "test.jsonl", "score": [{"step": "duplicates"}, *clear]}
    run |= {"choose": {"step": "random"}, "budget": {"rows": 5, "rounds": 1, "optimizer_steps": 1}}
    for name in ("raw", "test"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    (tmp_path / "loop.yaml").write_text(yaml.safe_dump(run))
    arms = ablation(tmp_path / "loop.yaml").arms
    assert [u.step for u in arms["without clear-filter"].score] == ["duplicates", "clear-score", "clear-correct"]
    assert [u.step for u in arms["without duplicates"].score] == ["clear-score", "clear-filter", "clear-correct"]


def test_what_a_choice_may_have_of_grown_rows_is_the_runs_in_an_ablation_and_an_arms_own():
    whole = ablation(EXAMPLES / "snips/growth.yaml")
    assert whole.arms["whole"].grown == 0.3 and whole.loop("whole", 300).budget.grown == 0.3
    cells = every_cell(load_comparison(EXAMPLES / "snips/llm2llm-compare.yaml", ["arms.one iteration.grown=0.25"]))
    assert {c.arm for c in cells if c.loop.budget.grown == 0.25} == {"one iteration"}
    assert all(c.loop.budget.grown is None for c in cells if c.arm != "one iteration")
