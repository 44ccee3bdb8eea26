import dataclasses

import numpy as np
import polars as pl
import pytest

from curation import instructmining as im
from curation.choice import ChoiceConfig
from curation.rule import PUBLISHED, Rule, Term, find_rule
from curation.step import Failed, StepError, find_step
from flows.run import run_step
from storage.schema import ROW
from storage.store import Manifest, Store
from tests.fakes import FakeEngine
from tests.rows import rows

SCORE = find_step("instructmining-score")
RULES = {
    "2024": ("reward", "understandability", "naturalness", "coherence"),
    "2023-07": ("reward", "output_length", "knn6"),
}


class Pairs:
    """Judges a pair by `score`; remembers the pairs."""

    identity = "pairs"

    def __init__(self, score, labels=("score",)):
        self.score, self.labels, self.asked = score, labels, []

    def classify(self, pairs):
        self.asked += pairs
        return [self.score(*pair) for pair in pairs]


def scored(frame, engines, **settings):
    return SCORE(frame, im.Indicators(**settings), engines).select(pl.col("^instructmining_.*$"))


def test_what_the_base_model_tells():
    out = scored(rows(("two words", "and three here")), {"base": FakeEngine(nll=lambda text: 2.0)}).row(0, named=True)
    assert out.pop("instructmining_input_length") == 2
    assert out.pop("instructmining_output_length") == 3
    assert out.pop("instructmining_perplexity") == pytest.approx(np.exp(2))
    assert out.pop("instructmining_mtld") == 3.0
    assert set(out.values()) == {None} and len(out) == 8


def test_a_rule_asks_its_own_models_and_no_other():
    reward = Pairs(lambda prompt, response: [1.5])
    unieval = Pairs(lambda question, text: [0.9, 0.1], ("yes", "no"))
    out = scored(rows(("q", "a")), {"reward": reward, "unieval": unieval}, rule="2024").row(0, named=True)
    assert {k.removeprefix("instructmining_"): v for k, v in out.items() if v is not None} == {
        **{"reward": 1.5, "naturalness": 0.9, "coherence": 0.9, "understandability": 0.9},
    }
    assert reward.asked == [("q", "a")]
    assert unieval.asked == [  # as UniEval's code writes them
        ("Is this a natural response in the dialogue?", "response: a"),
        ("Is this a coherent response given the dialogue history?", "response: a </s> dialogue history: q"),
        ("Is this an understandable response in the dialogue?", "response: a"),
    ]
    with pytest.raises(StepError, match="needs an engine for"):
        scored(rows(("q", "a")), {"unieval": unieval}, rule="2023-07")


@pytest.mark.parametrize("role", ["reward", "unieval"])
def test_a_model_of_another_kind_is_refused_instead_of_believed(role):
    model = Pairs(lambda a, b: [0.2, 0.3, 0.5], ("contradiction", "neutral", "entailment"))
    name = {"reward": "reward", "unieval": "naturalness"}[role]
    with pytest.raises(StepError, match=f"the role {role} wants a .*; this one gives contradiction, neutral"):
        scored(rows(("q", "a")), {role: model}, indicators=[name])


def test_a_judge_stands_in_under_a_name_of_its_own_and_its_leaning_to_a_letter_cancels():
    judge = FakeEngine(probabilities=lambda text: [0.6, 0.2] if "helpful" in text else [0.0, 0.0])
    asked = ["judged_reward", "judged_coherence"]
    out = scored(rows(("q", "a")), {"judge": judge}, indicators=asked).row(0, named=True)
    assert out["instructmining_judged_reward"] == pytest.approx(0.75)
    assert out["instructmining_judged_coherence"] is None and out["instructmining_reward"] is None
    assert len(judge.asked) == 4 and "(A) yes (B) no" in judge.asked[0] and "(B) yes (A) no" in judge.asked[1]
    leaning = FakeEngine(probabilities=lambda text: [0.9, 0.1] if "(A) yes" in text else [0.1, 0.9])
    assert scored(rows(("q", "a")), {"judge": leaning}, indicators=asked)["instructmining_judged_reward"].item() == 0.5


def test_bad_rows_have_values_that_are_defined():
    long = "word " * 40_000  # 200 kB
    base = FakeEngine(nll=lambda text: 1.0)
    base.logprobs = lambda asked: [Failed("too long") if len(m[-1]["content"]) > 99_999 else [-1.0] for m in asked]
    pairs = [("q", ""), ("q", "yes"), ("q", "😀😀 🎉"), ("q", long), ("", "a")]
    out = scored(rows(*pairs), {"base": base})
    assert out["instructmining_output_length"].to_list() == [0, 1, 2, 40_000, 1]
    assert out["instructmining_mtld"].to_list() == [0.0, 1.0, 2.0, 2.0, 1.0]
    assert out["instructmining_perplexity"].is_null().to_list() == [False, False, False, True, False]
    assert out["instructmining_input_length"].to_list() == [1, 1, 1, 1, 0]


def test_a_conversation_is_scored_by_its_last_answer_and_all_before_it():
    talk = rows(("first thing", "x")).with_columns(
        messages=pl.Series(
            [
                [
                    {"role": r, "content": c, "tool_calls": None}
                    for r, c in [
                        ("system", "be brief"),
                        ("user", "one two"),
                        ("assistant", None),
                        ("user", "three"),
                        ("assistant", "four five"),
                    ]
                ]
            ]
        )
    )
    reward = Pairs(lambda prompt, response: [0.0])
    scored(talk, {"reward": reward}, indicators=["reward"])
    assert reward.asked == [("be brief\none two\n\nthree", "four five")]


def line(*at: float | None) -> pl.DataFrame:
    at = pl.Series("embedding", [[x] for x in at], dtype=pl.Array(pl.Float64, 1))
    return rows(*[("q", "a")] * len(at)).with_columns(at)


def test_sixth_neighbour_as_a_step():
    knn = find_step("instructmining-knn")
    assert knn(line(*range(1, 8)), im.Neighbours())["instructmining_knn6"].to_list() == [6, 5, 4, 3, 4, 5, 6]
    assert knn(line(*[2.0] * 8), im.Neighbours())["instructmining_knn6"].to_list() == [0.0] * 8
    assert knn(line(*range(1, 7)), im.Neighbours())["instructmining_knn6"].to_list() == [None] * 6
    assert knn(line(), im.Neighbours())["instructmining_knn6"].to_list() == []
    assert im.Neighbours().settled(()).search in ("exact", "faiss")


@pytest.mark.parametrize("none", [pytest.param(v, id=str(v)) for v in (0.0, -0.0, float("nan"), float("inf"), None)])
def test_a_row_without_a_direction_has_no_neighbours_and_is_nobodys(none):
    knn = find_step("instructmining-knn")
    frame = line(*range(1, 8), none, none)
    if none is None:
        frame = frame.with_columns(embedding=pl.when(pl.col("id").is_in(["r7", "r8"]).not_()).then("embedding"))
    assert knn(frame, im.Neighbours())["instructmining_knn6"].to_list() == [6, 5, 4, 3, 4, 5, 6, None, None]
    few = knn(frame.slice(1), im.Neighbours())["instructmining_knn6"]  # six with a direction, eight in all
    assert few.to_list() == [None] * 8


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        pytest.param("instructmining-knn", {}, id="knn"),
        pytest.param("instructmining-predict", {"rule": "2023-07"}, id="predict"),
        pytest.param("instructmining-select", {"rows": 3}, id="select"),
        pytest.param("instructmining-subset", {"rows": 3, "indicators": ["reward"], "number": 1}, id="subset"),
    ],
)
def test_what_looks_at_numbers_is_not_handed_the_text_of_the_pool(name, settings, tmp_path):
    step = find_step(name)
    frame = line(*range(1, 10)).with_columns(
        instructmining_predicted_loss=pl.col("embedding").arr.first(),
        split=pl.lit("train"),
        diversity_cluster=pl.int_range(pl.len()) % 2,
        **{f"instructmining_{i}": pl.col("embedding").arr.first() for i in RULES["2023-07"]},
    )
    given, config = [], step.config(**settings)
    watched = dataclasses.replace(step, fn=lambda rows, cfg: given.append(rows) or step.fn(rows, cfg))
    store = Store(tmp_path)
    text = store.put_part("text", frame.select(ROW.names), ROW)
    numbers = store.put_part("numbers", frame.select("id", pl.exclude(ROW.names)))
    store.seal(Manifest("import-1", "rows", "import", 1, {}, {}, {}, ((text, numbers),), counts={"live": 9}))
    made = store.read(run_step(store, watched, config, "import-1"))
    assert "messages" not in given[0].columns
    assert made.select(step(frame, config).columns).equals(step(frame, config)) and made.height == 9


def with_indicators(**columns):
    n = len(next(iter(columns.values())))
    frame = rows(*[("q", "a")] * n)
    return frame.with_columns(pl.Series(f"instructmining_{k}", v, dtype=pl.Float64) for k, v in columns.items())


def predicted(frame, **settings):
    return im.predict(frame, im.Predict(**settings))["instructmining_predicted_loss"].to_list()


@pytest.mark.parametrize(
    ("rule", "values", "expected"),
    [
        pytest.param("2024", (0, 1, 1, 1), -0.0037, id="2024"),
        pytest.param("2024", (2, 0.9, 0.95, 0.9), -0.03225, id="2024-mixed"),
        pytest.param("2024", (0, 0, 0, 0), 0.0274, id="2024-zeros"),
        pytest.param("2023-07", (1, 200, 0.7), 0.281614, id="2023"),
        pytest.param("2023-07", (0, 0, 0), 1.0694, id="2023-zeros"),
    ],
)
def test_rules_give_the_worked_values(rule, values, expected):
    frame = with_indicators(**{name: [v] for name, v in zip(RULES[rule], values, strict=True)})
    assert predicted(frame, rule=rule) == [pytest.approx(expected, abs=1e-6)]
    assert PUBLISHED[rule].version and "2307.06290" in PUBLISHED[rule].source


def some(n=200, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.random(n) for name in RULES["2024"]}


def test_the_mean_of_predictions_is_the_prediction_at_the_means():
    values = some()
    means = {name: [v.mean()] for name, v in values.items()}
    each = predicted(with_indicators(**values), winsorise=0)
    assert np.mean(each) == pytest.approx(predicted(with_indicators(**means), winsorise=0)[0], abs=1e-12)


def test_more_reward_for_all_changes_no_order_and_more_for_one_never_lowers_its_rank():
    values = some()
    before = np.array(predicted(with_indicators(**values)))
    moved = np.array(predicted(with_indicators(**values | {"reward": values["reward"] + 3})))
    assert np.array_equal(np.argsort(before), np.argsort(moved))
    for i in range(0, 200, 17):
        more = values["reward"].copy()
        more[i] += 2
        now = np.array(predicted(with_indicators(**values | {"reward": more})))
        assert (now < now[i]).sum() <= (before < before[i]).sum()


def test_one_giant_reward_is_held_to_its_quantile():
    values = some()
    values["reward"][7] = 1e6
    assert min(predicted(with_indicators(**values))) > -1 > min(predicted(with_indicators(**values), winsorise=0))


def test_a_row_that_lacks_an_indicator_is_not_predicted_and_not_chosen():
    values = {name: list(v) for name, v in some(10).items()}
    values["naturalness"][4] = None
    values["coherence"][5] = float("nan")
    frame = with_indicators(**values).with_columns(split=pl.lit("train"))
    out = im.predict(frame, im.Predict())
    assert out["instructmining_predicted_loss"].is_null().arg_true().to_list() == [4, 5]
    choice = im.select(out, ChoiceConfig(rows=9))
    assert (
        choice["id"].to_list()
        == out.drop_nulls("instructmining_predicted_loss").sort("instructmining_predicted_loss")["id"].to_list()
    )
    assert choice["taken"].all() and choice.height == 8 and "predicted log loss" in choice["why"][0]


def test_the_lowest_predicted_losses_are_taken_and_validation_rows_are_not():
    frame = rows(
        *[("q", "a")] * 4,
        instructmining_predicted_loss=[0.3, 0.1, 0.0, 0.2],
        split=["train", "train", "validation", "train"],
    )
    choice = im.select(frame, ChoiceConfig(rows=2))
    assert choice.filter("taken")["id"].to_list() == ["r1", "r3"] and choice.height == 3


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        pytest.param(
            "2023-07", r"rule 2023-07 needs the indicator instructmining_reward.*in the role reward", id="reward"
        ),
        pytest.param("mine", r"no rule 'mine'; published are 2023-07 and 2024.*fit-rule", id="no-such-rule"),
        pytest.param('{"name": "x"}', r"this is no rule: version: ", id="broken-file"),
        pytest.param(
            '{"name":"x","version":"1","source":"","intercept":0,"terms":{"beauty":{"coefficient":1}}}',
            r"this is no rule: terms.beauty",
            id="unknown-indicator",
        ),
    ],
)
def test_a_rule_that_cannot_be_applied_refuses_by_name(rule, told):
    with pytest.raises(StepError, match=told):
        im.predict(rows(("q", "a")), im.Predict(rule=rule))


def test_a_column_without_any_value_is_a_missing_indicator():
    with pytest.raises(StepError, match="instructmining_coherence, which the dataset has for no row"):
        predicted(with_indicators(**some(3) | {"coherence": [None] * 3}))


def test_a_fitted_rule_is_its_files_text_and_holds_values_to_what_it_was_fitted_on():
    rule = Rule(
        name="mine", version="1", source="here", intercept=1.0, terms={"mtld": Term(coefficient=2.0, low=1, high=3)}
    )
    said = rule.model_dump_json(exclude_none=True)
    assert find_rule(said) == rule
    assert im.Predict(rule=said).columns() == ("instructmining_mtld",)
    assert im.Indicators(rule=said).asked() == ["mtld"]
    assert predicted(with_indicators(mtld=[0.0, 2.0, 99.0]), rule=said) == [3.0, 5.0, 7.0]
