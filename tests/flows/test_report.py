import math
from dataclasses import replace

import polars as pl
import pytest

from flows import compare, report
from flows.evaluate_command import told as told_of
from flows.trajectory import trajectory, trajectory_table
from storage.schema import CHOICE, ORIGIN, ROW
from storage.store import Manifest, Store, StoreError, key_of
from tests.rows import rows


def sealed(store, name, frame, schema=ROW, kind="rows", **more):
    part = store.put_part(key_of(name), frame, schema)
    store.seal(Manifest(name, kind, name, 1, {}, {}, {}, ((part,),), **more))
    store.note_run(name, seconds=1.5)
    return name


def evaluation(store, name, correct, answers=None):
    answers = answers or ["x"] * len(correct)
    known = pl.Series(correct, dtype=pl.Boolean)
    told = {"student_correct": known, "student_score": known.cast(pl.Float64), "student_answer": answers}
    told["student_nll"] = pl.Series([None] * len(correct), dtype=pl.Float64)
    return sealed(store, name, rows(*[("q", "a")] * len(correct), **told))


@pytest.fixture
def runs(tmp_path):
    """Two seeds; round 1 is right on 90 of 100 rows, random on 70, the untuned model on 10."""
    store, made = Store(tmp_path), []
    pool = rows(*[("q", "a")] * 10)
    nothing = {"columns": None, "note": None, "form": None}
    origin = pl.DataFrame({"id": pool["id"], "file": "raw", "line": range(1, 11), **nothing})
    part = store.put_part("origin", origin, ORIGIN)
    sealed(store, "pool", pool, side={"origin": (part,)}, counts={"rows": 10, "live": 10, "rejected": 2})
    reasons = ["clear-filter: low"] * 4 + [None] * 6
    marked = pool.with_columns(
        clear_confidence=pl.Series([0.1, 0.2, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]), drop_reason=pl.Series(reasons)
    )
    sealed(store, "scored", marked, counts={"rows": 10, "live": 6, "dropped by clear-filter": 4})
    took = pl.DataFrame({"id": ["r4", "r5"], "taken": [True, True], "why": "x", "weight": 1.0, "round": 1})
    sealed(store, "choice", took, CHOICE, "choice")
    part = store.put_part("curve", pl.DataFrame({"step": [1, 2, 3], "loss": [2.0, 1.5, 1.25]}))
    store.seal(Manifest("tuned", "adapter", "train", 1, {}, {}, {}, ((part,),)))
    for seed in (0, 1):
        arms = {
            name: evaluation(store, f"{name}{seed}", [i < right for i in range(100)])
            for name, right in (("untuned", 10), ("random", 70 + seed), ("round 1", 90 + seed))
        }
        round_ = report.Round("pool", "scored", "choice", "pool", "tuned", arms["round 1"], "scored", "scored", [])
        made.append(report.SeedRun(seed, "pool", "pool", arms, "choice", [round_], []))
    return store, made


def test_arms_have_their_mean_and_an_interval_around_it(runs):
    found = {a.name: a for a in report.arms(*runs)}
    assert found["random"].mean == pytest.approx(0.705)
    assert found["random"].low < 0.66 < 0.75 < found["random"].high
    assert found["round 1"].ahead == pytest.approx(0.2) and found["round 1"].ahead_low > 0.1
    assert found["random"].ahead is None


def test_the_difference_is_paired_over_rows(runs):
    """Round 1 is right wherever random is, so its lead varies less than that of two samples apart would."""
    found = {a.name: a for a in report.arms(*runs)}
    lead = found["round 1"].ahead_high - found["round 1"].ahead_low
    apart = math.hypot(found["round 1"].high - found["round 1"].low, found["random"].high - found["random"].low)
    assert lead < 0.9 * apart


def test_rows_whose_response_cannot_be_compared_are_left_out_as_everywhere_and_counted(runs):
    """Of 4 rows: one cannot be compared, one failed in the tuned model and is wrong; one has no verdict there alone."""
    store, made = runs
    told = {
        "untuned": evaluation(store, "u", [False, None, True, False], ["1", "2", "3", "4"]),
        "round 1": evaluation(store, "t", [True, None, None, None], ["1", "2", None, "4"]),
    }
    run = replace(made[0], arms=told, rounds=[replace(made[0].rounds[0], heldout=told["round 1"])])
    assert report.unscorable(store, list(told.values())) == {"r1"}
    assert [a.mean for a in report.arms(store, [run])] == pytest.approx([1 / 3, 1 / 3])
    said = report.facts(store, [run], 700, None)
    assert said["unscorable"] == 1 and "1 held-out rows were left out" in report.markdown("Title", said)
    by_row = compare._answers(store, told["round 1"], {"r1"})["right"]
    assert by_row == "100"
    alone = told_of(store.read(told["untuned"]))
    assert alone["accuracy"]["mean"] == pytest.approx(1 / 3) and alone["unscorable"] == 1
    with pytest.raises(StoreError, match="none of the 2 rows has a response that the metric can compare"):
        report.unscorable(store, [evaluation(store, "none", [None, None])])


def test_filter_quality_counts_what_was_caught(runs):
    store, (run, _) = runs
    _, first = report.filter_quality(store, run, {1, 2, 6})
    assert first["precision"] == pytest.approx(2 / 4) and first["recall"] == pytest.approx(2 / 3)
    assert first["spoilt"] == pytest.approx(1 / 2)
    assert first["auroc"] == pytest.approx(1 - 3 / 21)


def test_each_way_to_grow_is_told_how_many_rows_of_its_own_were_taken(tmp_path):
    store, by = Store(tmp_path), ["llm2llm"] * 2 + ["self-guide"] * 3 + [None]
    grown = rows(*[("q", "a")] * 6, method=pl.Series(by), drop_reason=pl.Series([None] * 6, dtype=pl.String))
    for step in ("llm2llm", "self-guide"):
        sealed(store, step, grown.filter(pl.col("method") == step), counts={"rows": 3, "live": 2})
    sealed(store, "scored", grown)
    taken = [True, False, True, True, False, True]
    choice = pl.DataFrame({"id": grown["id"], "taken": taken, "why": "x", "weight": 1.0, "round": 1})
    sealed(store, "choice", choice, CHOICE, "choice")
    first = report.Round("p", "scored", "choice", "p", "t", None, None, None, ["llm2llm", "self-guide"])
    run = report.SeedRun(0, "p", "p", {}, None, [first, replace(first, grown=[])], [])
    told = [(g["round"], g["step"], g["taken_next"]) for g in report.growth(store, run)]
    assert told == [(1, "llm2llm", 1), (1, "self-guide", 2)]


def test_a_grown_row_is_as_wrong_as_its_parent(tmp_path):
    store = Store(tmp_path)
    frame = rows(("q", "a"), ("q", "b"), ("q", "c")).with_columns(parent_id=pl.Series([None, None, "r1"]))
    sealed(store, "rows", frame)
    took = pl.DataFrame({"id": ["r0", "r2"], "taken": [True, True], "why": "x", "weight": 1.0, "round": 2})
    sealed(store, "taking", took, CHOICE, "choice")
    wrong = pl.DataFrame({"id": ["r0", "r1"], "spoilt": [False, True]})
    assert report.taken_share(store, "rows", "taking", wrong) == {"spoilt": 0.5, "grown": 1}


def test_auroc_of_ties_is_a_half(runs):
    store, (run, _) = runs
    tied = store.read("scored").with_columns(clear_confidence=pl.lit(1.0))
    sealed(store, "tied", tied, counts={"rows": 10, "live": 6})
    judged = replace(run, rounds=[replace(run.rounds[0], scored="tied")])
    assert report.filter_quality(store, judged, {1, 2, 6})[1]["auroc"] == 0.5


def test_without_a_spoilt_row_there_is_no_auroc(runs):
    store, (run, _) = runs
    _, first = report.filter_quality(store, run, set())
    assert "auroc" not in first and first["precision"] == 0


def test_the_sentence_says_what_the_interval_allows():
    def said(low, high):
        arm = report.Arm("round 3", 0.9, 0.8, 0.95, (low + high) / 2, low, high)
        return report.sentence([arm], 700, 3)

    assert "beats a random choice of the same 700 rows by 10.0 points (5.0 to 15.0)" in said(0.05, 0.15)
    assert said(-0.05, 0.15).startswith("No difference")
    assert "behind" in said(-0.15, -0.05)


def test_the_page_counts_every_row_and_every_second(runs):
    store, made = runs
    said = report.facts(store, made, 700, {1, 2})
    assert said["losses"] == {"round 1": [[1, 2.0], [2, 1.5], [3, 1.25]]}
    page = report.markdown("Title", said)
    assert page.count("<img") == 2
    assert "| rejected on import | 2 |" in page and "| clear-filter | 4 |" in page and "| live | 6 |" in page
    assert "20.0% of the rows carry a wrong answer" in page
    assert dict(report.seconds(store, made))["random0"] == 1.5


def test_the_trajectory_of_cluster_weights_begins_with_what_fell_most(tmp_path):
    store = Store(tmp_path)
    pool = rows(*[("q", "a")] * 4).with_columns(
        diversity_cluster=pl.Series([0, 0, 0, 1], dtype=pl.Int32), diversity_share=pl.Series([0.75, 0.75, 0.75, 0.25])
    )
    sealed(store, "scored", pool)
    columns = {"cluster": pl.Int32, "weight": pl.Float64, "gain": pl.Float64, "rows": pl.Int64}
    for name, weights in (("w1", [0.6, 0.4]), ("w2", [0.5, 0.5])):
        table = pl.DataFrame([[0, weights[0], -0.5, 3], [1, weights[1], None, 0]], schema=columns, orient="row")
        part = store.put_part(name, table)
        store.seal(Manifest(name, "table", "reweight-clusters", 1, {}, {}, {}, ((part,),)))
    found = trajectory(store, "scored", ["w1", "w2"])
    assert found == [
        {"cluster": 0, "share": 0.75, "weights": [0.6, 0.5], "gains": [-0.5, -0.5]},
        {"cluster": 1, "share": 0.25, "weights": [0.4, 0.5], "gains": [None, None]},
    ]
    assert "| 0 | 0.7500 | 0.6000 (-0.50) | 0.5000 (-0.50) |" in trajectory_table(found)
    assert trajectory(store, "scored", []) == []
