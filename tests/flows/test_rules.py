"""Fitted rules by name, and what a run is told of one that does not fit its model."""

import json
import shutil

import pytest

from curation.rule import Rule, Term
from curation.step import StepError, find_step
from flows import steps  # noqa: F401  registers every step
from flows.config import load
from flows.engine_settings import Vllm
from flows.engines import NANO, EngineSpec, trained_on
from flows.models import check_models
from flows.rules import install, of_another_model, read_rule, retire, rules, told_if_old, with_rule
from storage.store import Store
from tests.flows.test_loop import ROOT


@pytest.fixture
def nano_copy(tmp_path):
    """The embedded model with one word of its config changed: another model of the same shape."""
    made = tmp_path / "other"
    shutil.copytree(NANO, made, ignore=shutil.ignore_patterns("instruct"))
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 2e-6}))
    return made


def test_a_fitted_rule_is_found_by_name_and_its_text_is_what_a_step_is_given(tmp_path):
    store, predict = Store(tmp_path), find_step("instructmining-predict")
    rule = Rule(name="mine", version="1", source="s", intercept=0.5, terms={"mtld": Term(coefficient=2.0)})
    install(store, rule)
    assert read_rule(store, "mine") == rule and list(rules(store)) == ["2023-07", "2024", "mine"]
    given = with_rule(predict.config(rule="mine"), store)
    assert json.loads(given.rule)["terms"] == {"mtld": {"coefficient": 2.0}}
    assert with_rule(given, store) == given and with_rule(predict.config(), store).rule == "2024"
    with pytest.raises(StepError, match="no rule 'other'"):
        with_rule(predict.config(rule="other"), store)
    (tmp_path / "rules" / "bad.json").write_text('{"name": 3}')
    with pytest.raises(StepError, match=r"bad\.json: this is no rule: name"):
        rules(store)


def test_a_rule_of_a_refused_fit_can_no_longer_be_named_and_its_file_is_kept(tmp_path):
    store = Store(tmp_path)
    assert retire(store, "mine") is None
    rule = Rule(name="mine", version="a/b", source="s", intercept=0.5, terms={"mtld": Term(coefficient=2.0)})
    install(store, rule)
    before = (tmp_path / "rules" / "mine.json").read_text()
    lies = retire(store, "mine")
    assert (tmp_path / lies).read_text() == before and list(rules(store)) == ["2023-07", "2024"]
    with pytest.raises(StepError, match="no rule 'mine'"):
        with_rule(find_step("instructmining-predict").config(rule="mine"), store)


def test_a_fit_that_fails_says_that_the_rule_of_its_name_is_the_old_one(tmp_path, capsys):
    store = Store(tmp_path)
    with pytest.raises(StepError), told_if_old(store, "mine"):
        raise StepError("no training could be measured")
    assert capsys.readouterr().err == ""
    install(store, Rule(name="mine", version="1", source="s", intercept=0.5, terms={}))
    with pytest.raises(StepError), told_if_old(store, "mine"):
        raise StepError("no training could be measured")
    assert "mine is still the one from before" in capsys.readouterr().err


def test_a_rule_fits_the_model_that_was_trained_on_any_engine_and_no_other(tmp_path, nano_copy):
    nano = EngineSpec()
    rule = Rule(name="mine", version="1", source="s", intercept=0.5, terms={}, model=trained_on(nano))
    config = find_step("instructmining-predict").config(rule=rule.model_dump_json())
    for same in (nano, EngineSpec(settings=Vllm()), EngineSpec(settings=Vllm(dtype="float16", context=64))):
        assert of_another_model(config, same) is None
    told = of_another_model(config, EngineSpec(model=str(nano_copy)))
    assert told.startswith("the rule mine was fitted with another model") and str(nano_copy) in told
    untold = rule.model_copy(update={"model": None}).model_dump_json(exclude_none=True)
    for fine in (find_step("instructmining-predict").config(rule=untold), find_step("instructmining-predict").config()):
        assert of_another_model(fine, EngineSpec(model=str(nano_copy))) is None


def test_a_run_with_a_rule_of_another_model_says_so_before_it_begins(tmp_path, nano_copy, capsys):
    named = "[{step: instructmining-score, with: {rule: mine}}, {step: instructmining-predict, with: {rule: mine}}]"
    store, loop = Store(tmp_path), load(ROOT / "examples/snips/loop.yaml", [f"score={named}", "feedback=[]"])
    rule = Rule(name="mine", version="1", source="s", intercept=0, terms={"mtld": Term(coefficient=2.0)})
    install(store, rule.model_copy(update={"model": trained_on(EngineSpec())}))
    check_models(loop, store)
    assert "another model" not in capsys.readouterr().err
    check_models(loop.model_copy(update={"model": str(nano_copy)}), store)
    assert capsys.readouterr().err.count("was fitted with another model") == 1  # though two steps have the rule
