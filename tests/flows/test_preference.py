import pytest

from flows.engines import EngineSpec
from flows.preference import pairs_of, prefer_adapter, summary
from flows.training import train_adapter
from storage.schema import ROW, message
from storage.store import Manifest, Store, StoreError
from tests.rows import rows
from training.settings import PreferConfig, TrainConfig

SETTINGS = PreferConfig(optimizer_steps=8, batch_size=4, learning_rate=3e-3)


@pytest.fixture
def store(tmp_path):
    """Four wrong rows, dropped; a correction of each, two of them dropped again; and one grown row."""
    store = Store(tmp_path)
    asked = [f"Is {i} even?" for i in range(4)]
    pool = rows(
        *[(q, "yes" if i % 2 else "no") for i, q in enumerate(asked)],
        *[(q, "no" if i % 2 else "yes") for i, q in enumerate(asked)],
        ("Is 5 odd?", "yes"),
        parent_id=[None] * 4 + [f"r{i}" for i in range(4)] + ["r0"],
        method=[None] * 4 + ["clear-correct"] * 4 + ["llm2llm"],
        drop_reason=["clear-correct: corrected"] * 4 + [None, None, None, "duplicates: of r1"] + [None],
    )
    part = store.put_part("pool", pool, ROW)
    store.seal(Manifest("pool", "rows", "test", 1, {}, {}, {}, ((part,),)))
    return store


def test_a_live_correction_and_the_row_it_corrects_are_a_pair_and_a_grown_row_is_not(store):
    pairs = store.read(pairs_of(store, "pool"))
    assert pairs.rows() == [(f"r{i + 4}", f"r{i}", "clear-correct") for i in range(3)]


def test_learning_from_pairs_starts_from_the_adapter_and_prefers_the_corrections(store, tiny_model):
    base = EngineSpec(model=str(tiny_model))
    tuned = train_adapter(store, "pool", base, TrainConfig(optimizer_steps=4, batch_size=4, rank=4, learning_rate=1e-3))
    base = EngineSpec(model=str(tiny_model), adapter=str(store.files(tuned)))
    made = prefer_adapter(store, pairs_of(store, "pool"), base, SETTINGS)
    curve = store.read(made)
    assert curve["loss"][0] == pytest.approx(0.6931, abs=1e-3), "at the start it is the reference itself"
    assert curve["loss"][-1] < 0.6 and curve["accuracy"][-1] == 1.0 and curve["margin"][-1] > 0.1
    assert sorted(store.manifest(made).files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert prefer_adapter(store, pairs_of(store, "pool"), base, SETTINGS) == made
    assert store.manifest(made).files != store.manifest(tuned).files
    facts = store.run_facts(made)
    assert facts["tokens"] > facts["learnable_tokens"] > 0 and facts["processes"] == 1
    told = summary(facts, store.manifest(made).counts)
    assert "100% of the pairs ranked right" in told[0] and "3 pairs, 8 steps" in told[0] and "tokens/s" in told[1]
    assert not list((store.root / "checkpoints").iterdir())


@pytest.mark.real
def test_two_processes_prefer_what_one_prefers(store, tiny_model, tmp_path):
    start = EngineSpec(model=str(tiny_model))
    tuned = train_adapter(store, "pool", start, TrainConfig(optimizer_steps=2, batch_size=4, rank=4))
    base = EngineSpec(model=str(tiny_model), adapter=str(store.files(tuned)))  # kept frozen beside the one that learns
    pool, found = store.read("pool"), []
    for processes in (1, 2):
        place, told = Store(tmp_path / str(processes)), []
        part = place.put_part("pool", pool, ROW)
        place.seal(Manifest("pool", "rows", "test", 1, {}, {}, {}, ((part,),)))
        shared = SETTINGS.model_copy(update={"processes": processes, "optimizer_steps": 6})
        made = prefer_adapter(place, pairs_of(place, "pool"), base, shared, lambda *at, told=told: told.append(at))
        assert place.run_facts(made)["processes"] == processes and told == [(i, 6) for i in range(1, 7)]
        found.append(place.read(made))
    assert found[0]["loss"][-1] < 0.66
    for column in ("loss", "accuracy", "margin"):
        assert found[1][column].to_list() == pytest.approx(found[0][column].to_list(), abs=1e-6)


def test_a_dataset_without_a_pair_is_refused(store, tiny_model):
    part = store.put_part("plain", rows(("a", "b")), ROW)
    store.seal(Manifest("plain", "rows", "test", 1, {}, {}, {}, ((part,),)))
    with pytest.raises(StoreError, match="plain holds no pair"):
        prefer_adapter(store, pairs_of(store, "plain"), EngineSpec(model=str(tiny_model)), SETTINGS)


def test_a_correction_of_a_tool_call_alone_is_a_pair(store):
    said = [[message("user", "rain?"), message("assistant", "", calls)] for calls in ('[{"a": 1}]', '[{"a": 2}]')]
    pool = rows(("", ""), ("", ""), messages=said, parent_id=[None, "r0"], drop_reason=["t: wrong", None])
    part = store.put_part("calls", pool, ROW)
    store.seal(Manifest("calls", "rows", "test", 1, {}, {}, {}, ((part,),)))
    assert store.read(pairs_of(store, "calls")).height == 1
