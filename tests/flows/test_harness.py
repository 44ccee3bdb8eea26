import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from flows.engines import EngineSpec
from flows.harness import command, harness, metrics
from flows.training import train_adapter
from storage.schema import ROW
from storage.store import Manifest, Store, StoreError
from tests.rows import rows
from training.settings import TrainConfig

TASK = """task: even
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_target: label
doc_to_choice: ["no", "yes"]
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    part = store.put_part("pool", rows(*[("Is it?", "yes")] * 4), ROW)
    store.seal(Manifest("pool", "rows", "test", 1, {}, {}, {}, ((part,),)))
    config = TrainConfig(optimizer_steps=12, batch_size=4, rank=4, learning_rate=1e-2)
    return store, train_adapter(store, "pool", EngineSpec(model=str(tiny_model)), config)


def test_the_harness_is_asked_for_the_adapter_beside_its_base(trained, tiny_model, tmp_path):
    store, made = trained
    said = command(store, made, str(tiny_model), "gsm8k", 5, tmp_path)
    assert f"pretrained={tiny_model},peft={store.files(made)}" in said
    assert said[-4:] == ["--limit", "5", "--include_path", str(tmp_path)]


def test_a_metric_keeps_its_filter_and_every_number_its_own_name():
    found = metrics(json.loads((Path(__file__).parent / "data" / "lm_eval_results.json").read_text()))
    assert found["gsm8k"] == {
        "exact_match,strict-match": 0.31,
        "exact_match_stderr,strict-match": 0.046,
        "exact_match,flexible-extract": 0.44,
        "exact_match_stderr,flexible-extract": 0.049,
    }
    assert found["arc_easy"] == {"acc": 0.62, "acc_stderr": 0.0488, "acc_norm": 0.58, "acc_norm_stderr": 0.0496}


def test_the_harness_is_not_asked_for_an_adapter_beside_another_base(trained, other_model):
    store, made = trained
    with pytest.raises(StoreError, match="was trained on another model than"):
        command(store, made, str(other_model), "gsm8k", 5, None)
    with pytest.raises(StoreError, match="name what `thresher train` made"):
        command(store, "pool", str(other_model), "gsm8k", 5, None)


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed here")
def test_without_lm_eval_the_remedy_is_said(trained, tiny_model):
    with pytest.raises(StoreError, match="pip install lm-eval"):
        harness(*trained, str(tiny_model), "gsm8k")


@pytest.mark.real
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is an optional bridge")
def test_the_harness_sees_what_was_learnt(trained, tiny_model, tmp_path):
    store, made = trained
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"q": "Is it?", "label": 1}) for _ in range(4)) + "\n")
    (tmp_path / "even.yaml").write_text(TASK.format(file=tmp_path / "rows.jsonl"))
    assert harness(store, made, str(tiny_model), "even", include=tmp_path)["even"]["acc"] == 1.0
