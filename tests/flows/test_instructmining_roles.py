import shutil

import pytest

from curation.instructmining import Indicators
from curation.step import StepError, find_step
from flows import steps  # noqa: F401  registers every step
from flows.engines import EngineError, release
from flows.models import lend, typed_models
from flows.run import run_step
from storage.schema import ROW
from storage.store import Manifest, Store
from tests.flows.test_nli import folder as nli  # noqa: F401  a fixture
from tests.rows import rows

STEP = find_step("instructmining-score")


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path)
    part = made.put_part("p", rows(("what is it", "red thing"), ("what is it", "a green thing")), ROW)
    made.seal(Manifest("import-1", "rows", "import", 1, {}, {}, {}, ((part,),), counts={"rows": 2, "live": 2}))
    return made


@pytest.fixture
def reward(nli, tmp_path):  # noqa: F811
    """The same model with one number for a pair, as reward models have."""
    from transformers import BertForSequenceClassification

    made = tmp_path / "reward"
    shutil.copytree(nli, made)
    BertForSequenceClassification.from_pretrained(nli, num_labels=1, ignore_mismatched_sizes=True).save_pretrained(made)
    return made


def test_a_reward_model_is_lent_by_name_and_it_alone(store, reward):
    models = typed_models(store, STEP.roles, {"reward": str(reward)})
    config, lease = lend(STEP, Indicators(indicators=["reward"]), models, store)
    made = run_step(store, STEP, config, "import-1", {}, lease)
    assert list(store.manifest(made).engines) == ["reward"]
    assert store.read(made)["instructmining_reward"].n_unique() == 2
    assert store.read(made)["instructmining_mtld"].null_count() == 2
    release()


def test_what_is_missing_or_of_another_kind_is_one_line(store, nli):  # noqa: F811
    none = typed_models(store, STEP.roles, {})
    assert set(lend(STEP, Indicators(), none, store)[1].identities) == {"base"}  # and nothing is asked of the others
    with pytest.raises(EngineError, match="needs a model for reward, and none comes with the installation"):
        lend(STEP, Indicators(rule="2024"), none, store)
    with pytest.raises(StepError, match="no rule 'other'"):
        lend(STEP, Indicators(rule="other"), none, store)
    config, lease = lend(
        STEP, Indicators(indicators=["reward"]), typed_models(store, STEP.roles, {"reward": str(nli)}), store
    )
    with pytest.raises(StepError, match="the role reward wants a reward model"):
        run_step(store, STEP, config, "import-1", {}, lease)
    release()


def test_the_embedded_model_gives_bad_rows_the_values_that_the_page_says(tmp_path):
    store, texts = Store(tmp_path), ["", "yes", "😀😀 🎉", "word " * 40_000, "😀" * 50_000]
    part = store.put_part("bad", rows(*[("say it", text) for text in texts]), ROW)
    store.seal(Manifest("import-1", "rows", "import", 1, {}, {}, {}, ((part,),), counts={"rows": 5, "live": 5}))
    config, lease = lend(STEP, Indicators(), typed_models(store, STEP.roles, {}), store)
    found = store.read(run_step(store, STEP, config, "import-1", {}, lease))
    lengths = found["instructmining_output_length"].to_list()
    assert lengths[0] == 0 < min(lengths[1:3]) and min(lengths[3:]) > 40_000
    assert found["instructmining_mtld"].to_list() == [0.0, 1.0, 2.0, 2.0, 1.0]
    assert found["instructmining_perplexity"].is_not_null().to_list() == [True, True, True, False, False]
    assert found["instructmining_perplexity"].drop_nulls().is_finite().all()
    release()
