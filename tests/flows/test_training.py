import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from flows import (
    handoff,
    steps,  # noqa: F401  registers every step
)
from flows.engines import EngineError, EngineSpec, identity, leases, release
from flows.tasks import train_one
from flows.trained import Job, planned, read, sized
from flows.training import VERSION, summary, train_adapter
from storage.schema import ROW, message
from storage.store import Manifest, Store, StoreError
from synthesis.vllm_process import VllmProcess
from tests.flows.test_handoff import ENGINE
from tests.rows import rows
from training.settings import PreferConfig, TrainConfig, TrainError

CONFIG = TrainConfig(optimizer_steps=3, batch_size=2, rank=2, alpha=4)
ROOT = Path(__file__).resolve().parents[2]
SLOW = """
import sys
from flows.engines import EngineSpec
from flows.training import train_adapter
from storage.store import Store
from pathlib import Path
from training.settings import TrainConfig
config = TrainConfig(optimizer_steps=100_000, batch_size=2, rank=2, alpha=4)
tell = lambda done, total: print(done, flush=True)
train_adapter(Store(Path(sys.argv[1])), "pool", EngineSpec(model=sys.argv[2]), config, tell)
"""
KILLED = SLOW.replace(
    "TrainConfig(optimizer_steps=100_000, batch_size=2, rank=2, alpha=4)",
    "TrainConfig.model_validate_json(sys.argv[3])",
).replace("config, tell)", "config, tell, every=0)")


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    put(store, "pool", rows(("a", "yes"), ("b", "no"), ("dropped", "x"), drop_reason=[None, None, "test: bad"]))
    return store


def put(store, dataset, frame):
    part = store.put_part(dataset, frame, ROW)
    store.seal(Manifest(dataset, "rows", "test", 1, {}, {}, {}, ((part,),)))


def test_an_adapter_is_trained_once_on_the_live_rows(store, tiny_model):
    spec, told = EngineSpec(model=str(tiny_model)), []
    made = train_adapter(store, "pool", spec, CONFIG, lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    manifest = store.manifest(made)
    assert (manifest.kind, manifest.step, manifest.inputs) == ("adapter", "train", {"rows": "pool"})
    assert manifest.counts == {"rows": 2, "steps": 3}
    assert sorted(manifest.files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert store.read(made)["step"].to_list() == [1, 2, 3]
    assert store.run_facts(made)["final_loss"] == pytest.approx(store.read(made)["loss"][-1])
    assert train_adapter(store, "pool", spec, CONFIG, lambda done, total: told.append("again")) == made
    assert "again" not in told
    assert train_adapter(store, "pool", spec, CONFIG.model_copy(update={"seed": 1})) != made


def test_training_frees_the_loaded_models_and_its_adapter_can_be_asked_at_once(store, tiny_model):
    base = EngineSpec(model=str(tiny_model))
    with leases({"base": base}, store).open() as engines:
        before = engines["base"]
    made = train_adapter(store, "pool", base, CONFIG)
    with pytest.raises(EngineError, match="was closed"):
        before.choose([[message("user", "never asked")]], ["y"])
    student = EngineSpec(model=str(tiny_model), adapter=str(store.files(made)))
    lease = leases({"base": base, "student": student}, store)
    assert lease.identities == {"base": identity(base), "student": identity(student)}
    with lease.open() as engines:
        asked = [[message("user", "a")]]
        assert engines["base"].choose(asked, ["y"]) != engines["student"].choose(asked, ["y"])
        assert engines["base"].engine._base is engines["student"].engine._base
    release()


def test_rows_that_cannot_be_learnt_are_an_error_a_person_can_read(store, tiny_model):
    put(store, "silent", rows(("", ""), messages=[[message("user", "q")]]))
    with pytest.raises(TrainError, match="row r0 has no learnable token"):
        train_adapter(store, "silent", EngineSpec(model=str(tiny_model)), CONFIG)


def test_a_training_killed_in_the_middle_leaves_nothing_to_be_seen(store, tiny_model):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(store.root), str(tiny_model)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == b"1\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert store.ids() == ["pool"]
    assert [p.name for p in (store.root / "datasets").iterdir()] == ["pool"]
    store.sweep()
    assert list((store.root / "tmp").iterdir()) == []
    assert store.exists(train_adapter(store, "pool", EngineSpec(model=str(tiny_model)), CONFIG))


def test_a_training_that_was_killed_goes_on_from_its_last_checkpoint_to_the_same_losses(store, tiny_model, tmp_path):
    config = CONFIG.model_copy(update={"optimizer_steps": 40, "learning_rate": 1e-3})
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store.root), str(tiny_model), config.model_dump_json()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    for line in process.stdout:
        if line == b"20\n":
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    [place] = (store.root / "checkpoints").iterdir()
    assert any(p.name.startswith("checkpoint-") for p in place.iterdir())
    made = train_adapter(store, "pool", EngineSpec(model=str(tiny_model)), config)
    assert 18 <= store.run_facts(made)["resumed_at"] < 40
    assert not place.exists()
    other = Store(tmp_path / "other")
    put(other, "pool", store.read("pool"))
    assert train_adapter(other, "pool", EngineSpec(model=str(tiny_model)), config) == made
    assert other.read(made).equals(store.read(made))
    assert other.manifest(made).files == store.manifest(made).files
    assert other.read_side(made, "rows").equals(store.read_side(made, "rows"))


def test_a_training_does_not_begin_while_an_engine_lives(store, tiny_model, monkeypatch):
    engine, told = VllmProcess({}, ("-c", ENGINE)), []  # one that no lease knows of
    engine.start()
    monkeypatch.setattr(handoff, "PATIENCE", 0.2)
    try:
        with pytest.raises(StoreError, match=rf"1 engine processes have not ended after 0 s: {engine.pid} "):
            train_adapter(store, "pool", EngineSpec(model=str(tiny_model)), CONFIG, lambda *step: told.append(step))
    finally:
        engine.stop()
    assert not told and not [d for d in store.ids() if d.startswith("train-")]
    assert train_adapter(store, "pool", EngineSpec(model=str(tiny_model)), CONFIG)


def test_each_row_of_a_training_is_told_of_and_the_run_says_what_it_took(store, tiny_model):
    put(store, "longer", rows(("a", "yes"), ("b", "no"), ("x" * 90, "no")))
    config = CONFIG.model_copy(update={"max_length": 60})
    made = train_adapter(store, "longer", EngineSpec(model=str(tiny_model)), config)
    seen = store.read_side(made, "rows")
    assert seen["id"].to_list() == ["r0", "r1", "r2"] and seen["times"].to_list() == [3, 3, 0]
    assert seen["left_out"].to_list() == [None, None, "97 tokens, over 60"]
    assert store.manifest(made).counts == {"rows": 2, "steps": 3, "left out": 1}
    facts = store.run_facts(made)
    assert facts["hand_off"]["processes"] == 0 and facts["processes"] == 1
    assert 0 < facts["seconds_to_first_step"] < facts["seconds"] and 0 < facts["seconds_in_loop"] < facts["seconds"]
    told = summary(facts, store.manifest(made).counts)
    assert "3 steps on 2 rows" in told[0] and "outside the loop" in told[1] and "1 rows were left out" in told[2]


@pytest.mark.real
def test_two_processes_end_with_the_one_that_started_them_and_go_on_to_the_same_bytes(store, tiny_model, tmp_path):
    pool = rows(*[(f"say {i}" + "." * i, "yes" if i % 2 else "no") for i in range(8)])
    config = CONFIG.model_copy(
        update={"optimizer_steps": 60, "batch_size": 4, "processes": 2, "learning_rate": 1e-3, "dropout": 0.1}
    )
    put(store, "pairs", pool)
    first = subprocess.Popen(
        [
            *(sys.executable, "-c", KILLED.replace('"pool"', '"pairs"')),
            *(str(store.root), str(tiny_model), config.model_dump_json()),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    for line in first.stdout:
        if line == b"20\n":
            break
    below = psutil.Process(first.pid).children(recursive=True)
    assert sum("flows.launch" in " ".join(p.cmdline()) for p in below) >= 2
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    other = Store(tmp_path / "other")
    put(other, "pairs", store.read("pairs"))
    made = [train_adapter(place, "pairs", EngineSpec(model=str(tiny_model)), config) for place in (store, other)]
    assert made[0] == made[1] and 15 <= store.run_facts(made[0])["resumed_at"] < 60
    assert other.read(made[0]).equals(store.read(made[0]))
    assert other.manifest(made[0]).files == store.manifest(made[0]).files
    assert other.read_side(made[0], "rows").equals(store.read_side(made[0], "rows"))


@pytest.mark.real
def test_two_processes_learn_what_one_learns(store, tiny_model, tmp_path):
    pool = rows(*[(f"say {i}" + "." * i, "yes" if i % 2 else "no") for i in range(8)])
    config = TrainConfig(optimizer_steps=6, batch_size=4, rank=2, alpha=4, learning_rate=1e-2)
    spec, found = EngineSpec(model=str(tiny_model)), []
    for processes in (1, 2):
        place, told = Store(tmp_path / str(processes)), []
        put(place, "pool", pool)
        shared = config.model_copy(update={"processes": processes})
        made = train_adapter(place, "pool", spec, shared, lambda *at, told=told: told.append(at))
        assert place.run_facts(made)["processes"] == processes and told == [(i, 6) for i in range(1, 7)]
        found.append((place.read(made)["loss"].to_list(), place.read_side(made, "rows")["times"].to_list()))
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-4)
    assert found[1][1] == found[0][1]
    with pytest.raises(TrainError, match="4 rows at once cannot be shared by 3 processes"):
        train_adapter(store, "pool", spec, config.model_copy(update={"processes": 3}))


def test_the_size_of_the_model_decides_what_is_left_open(tiny_model):
    base = EngineSpec(model=str(tiny_model))
    for kind, asked, found in (
        ("train", TrainConfig(), 2e-3),
        ("train", TrainConfig(learning_rate=0.1), 0.1),
        ("prefer", PreferConfig(), 5e-5),
    ):
        assert sized(Job(kind, "pool", base, asked)).config.learning_rate == found


def test_the_key_of_a_training_is_what_decides_its_result(store, tiny_model):
    def key(**changes):
        job = sized(Job("train", "pool", EngineSpec(model=str(tiny_model)), TrainConfig(batch_size=4, **changes)))
        return planned(job, VERSION, read(store, job), {}).id

    assert key() == key(rows_at_once=2) == key(gradient_checkpointing="on") == key(processes=2)
    assert len({key(), key(rank=4), key(learning_rate=1e-3), key(packing=True)}) == 4


def test_training_on_a_row_of_the_held_out_set_is_refused_by_name(store):
    put(store, "heldout", rows(("what is the weather like in the city of Bremen", "sunny"), id=["h0"]))
    put(store, "leaked", rows(("a", "yes"), ("What is the weather like in the city of Bremen?", "rain")))
    with pytest.raises(StoreError, match=r"1 rows of leaked stand in the held-out set.* refused: r1; .*explain"):
        train_one.fn("train", store.root, "leaked", "heldout", "nano", {}, "made")
    assert store.ids() and not any(d.startswith("train-") for d in store.ids())
