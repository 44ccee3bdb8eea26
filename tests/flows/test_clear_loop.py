"""CLEAR whole, within a comparison: filter, a student on what was kept, its corrections; and the same in two rounds."""

import json
import re

import polars as pl
import pytest
import yaml

from curation.clear_correct import OF_CORRECTIONS
from flows import loop
from flows.config import LoopConfig, Use
from flows.preference import pairs_of
from storage.store import Store
from tests.flows.test_loop import ROOT, thresher

pytestmark = [pytest.mark.real, pytest.mark.timeout(1500)]
CLEAR = [{"step": "clear-score", "with": {"samples": 2, "max_tokens": 6}}, {"step": "clear-filter"}]
CORRECT = {"step": "clear-correct", "with": {"max_tokens": 6, "eta": 0.0}}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    made, example = tmp_path_factory.mktemp("clear"), ROOT / "examples/snips"
    (made / "raw.jsonl").write_bytes(b"".join((example / "raw.jsonl").read_bytes().splitlines(keepends=True)[:90]))
    (made / "test.jsonl").write_bytes(b"".join((example / "test.jsonl").read_bytes().splitlines(keepends=True)[::35]))
    config = {
        **{"name": "clear", "pool": "raw.jsonl", "heldout": "test.jsonl", "validation": 0.1, "seeds": [0]},
        "budget": {"rows": 1000, "optimizer_steps": 2},
        "arms": {
            "correct": {"score": [*CLEAR, CORRECT], "choose": {"step": "random"}},
            "rounds": {"score": CLEAR, "choose": {"step": "random"}, "feedback": [CORRECT], "rounds": 2},
        },
        **{"train": {"batch_size": 4}, "evaluate": {"max_tokens": 6}},
    }
    (made / "compare.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    ran = thresher("compare", made / "compare.yaml", "--json", store=made / "store")
    assert ran.returncode in (0, 3), ran.stderr
    return Store(made / "store"), json.loads((made / "store/reports/clear.json").read_text())


def corrected(store: Store, arm: str) -> tuple[str, pl.DataFrame]:
    name = next(n for n in store.names() if re.fullmatch(rf"clear\.{arm}\.1000\.seed0\..*\.clear-correct(-\d+)?", n))
    return store.resolve(name), store.read(store.resolve(name))


def test_the_student_that_corrects_was_trained_on_what_the_filter_kept(compared):
    store, _ = compared
    dataset, rows = corrected(store, "correct")
    made = store.manifest(dataset)
    student = store.manifest(made.inputs["student"])
    assert student.kind == "adapter" and made.engines["student"] != made.engines["judge"]
    kept = store.read(made.inputs["rows"]).filter(pl.col("drop_reason").is_null() & (pl.col("split") == "train"))
    assert set(store.read(student.inputs["rows"])["id"]) == set(kept["id"])
    new = rows.filter(pl.col("method") == "clear-correct")
    pairs = store.read(pairs_of(store, dataset))
    assert set(pairs.select("id", "rejected").rows()) == set(new.select("id", "parent_id").rows())
    assert new.height > 0 and new["clear_writer"].unique().to_list() == [made.engines["student"]]


@pytest.mark.parametrize("arm", ["correct", "rounds"])
def test_rows_are_conserved_and_a_corrected_one_is_in_the_place_of_its_parent(compared, arm):
    store, results = compared
    rows = corrected(store, arm)[1]
    pool = store.read(store.resolve("clear"), ["id"])
    assert set(pool["id"]) == set(rows.filter(pl.col("parent_id").is_null())["id"])
    assert rows["id"].n_unique() == rows.height
    last = max(n for n in store.names() if n.startswith(f"clear.{arm}.1000.") and n.endswith(".chosen"))
    chosen = set(store.read(store.resolve(last))["id"])
    new = rows.filter(pl.col("method") == "clear-correct")
    assert not chosen & set(new["parent_id"])
    if arm == "correct":
        assert set(new["id"]) <= chosen
    cell = next(c for c in results["cells"] if c["arm"] == arm)
    assert not cell["failed"] and cell["choosing"]["requests"] > 3 * results["pool"]["live"] * 0.8


def test_the_next_round_begins_with_the_corrected_rows_and_no_mark_but_that_of_the_correction(compared):
    store, _ = compared
    _, rows = corrected(store, "rounds")
    new = rows.filter(pl.col("method") == "clear-correct")
    standing = next(d for d in store.ids() if d.startswith("standing-"))
    begun = store.read(standing)
    assert set(begun["id"]) == set(rows["id"]) and set(begun.columns) < set(rows.columns)
    marked = begun.filter(pl.col("drop_reason").is_not_null())
    assert set(marked["id"]) == set(new["parent_id"])
    second = store.read(store.resolve("clear.rounds.1000.seed0.round2.clear-score"))
    judged = second.filter(pl.col("method") == "clear-correct")
    assert judged["clear_confidence"].null_count() == 0 and set(judged["id"]) == set(new["id"])
    for column in OF_CORRECTIONS:  # what is known of a correction stays known
        assert judged[column].null_count() == 0 and second.filter(pl.col("parent_id").is_null())[column].is_null().all()


def test_the_student_that_corrects_runs_on_the_engine_of_the_config(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(loop, "run_one_step", lambda *given: asked.update(given[6]) or "made")
    monkeypatch.setattr(loop, "tuned", lambda *given: given)
    engine = {"kind": "vllm", "context": 512}
    config = LoopConfig(name="c", pool="p", heldout="h", engine=engine)
    turn = loop.Turn(config, tmp_path, 0, 1, student="train-1")
    turn.apply(Use(step="clear-correct"), "rows-1")
    assert asked["student"][2:] == ("train-1", config.engine) and asked["judge"].settings == config.engine
