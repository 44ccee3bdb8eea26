import polars as pl

from flows import steps  # noqa: F401  registers every step
from flows.compare import Cell, _overlaps
from storage.schema import CHOICE
from storage.store import Store
from tests.flows.test_report import sealed


def cell(store, arm, seed, taken, size=3, failed=None):
    ids = [f"r{i}" for i in range(6)]
    frame = {"id": ids, "taken": [i in taken for i in ids], "why": "x", "weight": 1.0, "round": 1}
    name = sealed(store, f"{arm}{seed}{size}", pl.DataFrame(frame), CHOICE, "choice")
    return Cell(arm, size, seed, None, choice=name, failed=failed)


def test_overlap_is_of_the_rows_either_took_over_the_seeds_that_both_have(tmp_path):
    store = Store(tmp_path)
    cells = [
        cell(store, "random", 0, ["r0", "r1", "r2"]),
        cell(store, "random", 1, ["r0", "r1", "r2"]),
        cell(store, "clear", 0, ["r2", "r3", "r4"]),  # 1 of 5
        cell(store, "clear", 1, ["r0", "r1", "r2"]),  # all
        cell(store, "clear", 0, ["r5"], size=1),  # a smaller budget is not looked at
        cell(store, "loop", 0, ["r0"], failed="no"),
        cell(store, "full", 0, ["r0", "r1", "r2", "r3", "r4", "r5"], size=None),
    ]
    found = {tuple(pair["arms"]): pair["jaccard"] for pair in _overlaps(store, cells)}
    assert found == {("random", "clear"): 0.6, ("random", "full"): 0.5, ("clear", "full"): 0.5}
