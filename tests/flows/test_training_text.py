"""Where it is known what the writing model was trained on, its step is told."""

import shutil
from pathlib import Path

import numpy as np

from curation.step import STEPS
from flows import steps  # noqa: F401  registers every step
from flows.engine_settings import OpenAI
from flows.engines import EngineSpec
from flows.training_text import beside, known
from storage import training_text
from storage.store import Store
from synthesis.recital import runs


def model(folder: Path, *texts: str) -> EngineSpec:
    folder.mkdir()
    training_text.write(folder / training_text.NAME, runs(texts))
    return EngineSpec(model=str(folder))


def test_the_file_beside_the_weights_of_the_model_that_writes_becomes_a_table_of_its_step(tmp_path):
    store, mine = Store(tmp_path / "store"), model(tmp_path / "mine", "one two three four five")
    given = known(store, STEPS["llm2llm"], {"teacher": mine}, {"results": "r"})
    assert given["results"] == "r"
    assert store.read(given["training_text"])["run"].to_list() == runs(["one two three four five"]).tolist()
    assert known(store, STEPS["self-guide"], {"student": mine}, {}) == {"training_text": given["training_text"]}
    again = shutil.copytree(tmp_path / "mine", tmp_path / "again")
    assert known(store, STEPS["self-guide"], {"student": EngineSpec(model=str(again))}, {}) == {
        "training_text": given["training_text"]  # named by what it holds
    }


def test_what_is_given_stands_and_what_is_not_known_or_not_asked_for_is_not_there(tmp_path):
    store, mine = Store(tmp_path / "store"), model(tmp_path / "mine", "one two three four five")
    table = {"training_text": "of-mine"}
    assert known(store, STEPS["llm2llm"], {"teacher": mine}, table) == table
    assert known(store, STEPS["evaluate"], {"student": mine}, {}) == {}
    elsewhere = [EngineSpec(model="org/never-fetched"), EngineSpec(model="nano", settings=OpenAI(url="http://x/v1"))]
    assert [beside(spec) for spec in elsewhere] == [None, None]
    assert known(store, STEPS["llm2llm"], {"teacher": elsewhere[0]}, {}) == {} and store.ids() == []


def test_the_embedded_models_is_there():
    found = training_text.read(beside(EngineSpec()))["run"].to_numpy()
    assert len(found) > 1_000_000 and (np.diff(found.astype(np.int64)) > 0).all()
