"""The noise bench: what it says of scores whose worth is known, and the command from end to end."""

import json
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from curation.noise import KINDS, Noise
from curation.split import Split
from curation.step import STEPS, Step, StepError, find_step, step
from flows import noise_page
from flows import steps as registered  # noqa: F401  registers every step
from flows.config import ConfigError
from flows.noise_bench import (
    auroc_interval,
    caught,
    check_step,
    column_figures,
    curve,
    measured,
    noise_settings,
    scored_dataset,
    spoilt_dataset,
    worst,
)
from flows.run import Lease, run_step
from storage.schema import ROW, instruction, response, row_id
from storage.store import Manifest, Store, StoreError
from tests.fakes import FakeEmbedder, FakeEngine
from tests.flows.test_cli import ROOT, thresher
from tests.rows import rows

WORDS = ("red", "green", "blue", "white", "black", "brown", "grey")
CLEAN = rows(*[(f"What colour has thing number {i}?", f"It is {WORDS[i % 7]}, I say {i}.") for i in range(100)])
CLEAN = CLEAN.with_columns(id=pl.Series([row_id(m, "test") for m in CLEAN["messages"]]))
DEFAULT = Noise()
TRUTH = {instruction(m): response(m) for m in CLEAN["messages"]}


@dataclass
class Judge(FakeEngine):
    """Finds an answer as unlikely as `unlikely(whether it is right, prompt and answer)` says; None is a failure."""

    unlikely: object = None

    def logprobs(self, conversations):
        told = [(TRUTH.get(c[0]["content"]) == c[-1]["content"], str(c)) for c in conversations]
        return [[] if (u := self.unlikely(*t)) is None else [-u] for t in told]


def at_random(right, text):
    return int(row_id([{"role": "user", "content": text}], "")[:6], 16)


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path)
    seal(made, "import-000000000001", CLEAN)
    return made


def seal(store, id_, frame):
    counts = {"rows": frame.height}
    store.seal(Manifest(id_, "rows", "import", 1, {}, {}, {}, ((store.put_part(id_, frame, ROW),),), counts=counts))


asked = []


def bench(store, engine, name="perplexity", noise=DEFAULT, ran=None):
    def run(one, config, dataset):
        if ran is not None:
            ran.append(one.name)
        engines = {role: FakeEmbedder() if role == "embedder" else engine for role in one.roles}
        asked.append(engine)  # kept, so that no other gets its id
        lease = Lease({role: f"fake {id(engine)}" for role in engines}, lambda: nullcontext(engines))
        return run_step(store, one, config, dataset, {}, lease)

    spoilt = spoilt_dataset(store, "import-000000000001", noise)
    chosen = find_step(name) if isinstance(name, str) else name
    return measured(store, spoilt, scored_dataset(store, spoilt, chosen, chosen.config(), run), chosen, run)


def test_a_perfect_score_finds_every_spoilt_row_and_no_other(store):
    said = bench(store, Judge(unlikely=lambda right, text: 0.0 if right else 1.0))
    assert (said["auroc"], said["precision"], said["recall"]) == (1.0, 1.0, 1.0)
    assert said["dropped"] == said["spoilt"] == 20
    assert said["high"] == 1.0 and said["low"] == pytest.approx(0.025 ** (1 / 20))  # as 20 of 20 right answers leave
    assert said["lift"] == pytest.approx(said["rows"] / 20)
    assert said["column"] == "base_nll" and said["direction"] == "lower" and said["declared"]
    assert {k: v["rows"] for k, v in said["by_kind"].items() if v["recall"] == 1.0 == v["auroc"]}.keys() == set(KINDS)
    right = said["rows"] - said["spoilt"]
    for kind in said["by_kind"].values():
        assert kind["precision"] == 1.0 and kind["lift"] == pytest.approx((right + kind["rows"]) / kind["rows"])
        assert kind["curve"][-1]["recall"] == 1.0 and len(kind["curve"]) == 10
        assert kind["curve"][0]["precision"] == 1.0  # what another kind's rows are is no fault of this one's
    assert "tells spoilt answers from right ones" in noise_page.sentence(said)


def test_an_inverted_score_is_said_to_be_inverted(store):
    said = bench(store, Judge(unlikely=lambda right, text: 1.0 if right else 0.0))
    assert said["auroc"] == 0.0 and said["precision"] == said["recall"] == said["lift"] == 0.0
    assert "takes spoilt answers for better" in noise_page.sentence(said)


def test_a_random_score_tells_nothing_and_a_constant_one_nothing_exactly(store):
    said = bench(store, Judge(unlikely=at_random), noise=Noise(rate=0.5))
    assert said["low"] < 0.5 < said["high"] and 0.35 < said["auroc"] < 0.65
    assert "could not be shown" in noise_page.sentence(said)
    said = bench(store, Judge(unlikely=lambda right, text: 1.0), noise=Noise(rate=0.5))
    assert said["auroc"] == 0.5 and said["lift"] == pytest.approx(1.0)


def test_a_row_without_a_score_is_counted_and_not_judged(store):
    said = bench(store, Judge(unlikely=lambda right, text: None if "number 1" in text else float(not right)))
    assert said["unjudged"] > 10 and said["auroc"] == 1.0 and said["precision"] == 1.0 and said["recall"] == 1.0
    assert said["dropped"] < said["spoilt"] == sum(k["rows"] for k in said["by_kind"].values())
    assert f"{said['unjudged']} rows have no score" in noise_page.about(said)
    with pytest.raises(StepError, match="perplexity gave no base_nll to right rows"):
        bench(store, Judge(unlikely=lambda right, text: None))


def test_an_infinite_score_is_the_worst_of_all(store):
    said = bench(store, Judge(unlikely=lambda right, text: 1.0 if right else float("inf")))
    assert said["auroc"] == 1.0


def test_the_filter_that_reads_the_column_sets_the_threshold(store):
    def opinion(text):
        asked, _, answer = text.partition("\n\nProposed answer: ")
        return [0.9, 0.1, 0.0] if TRUTH.get(asked) == answer.partition("\n\nIs the")[0] else [0.1, 0.9, 0.0]

    ran: list[str] = []
    said = bench(store, FakeEngine(reply=lambda text, i: "?", probabilities=opinion), "clear-score", ran=ran)
    assert ran == ["clear-score", "clear-filter"] and said["threshold"] == "clear-filter"
    marks = store.read(f"{store.ids()[-1]}")
    assert said["dropped"] == marks["drop_reason"].count() != said["spoilt"]
    told = ["consistency", "similarity", "reflection", "confidence", "unread", "cut"]
    assert list(said["columns"]) == [f"clear_{name}" for name in told]
    assert said["columns"]["clear_reflection"]["auroc"] > 0.9
    assert said["column"] == "clear_confidence" and said["precision"] == pytest.approx(
        said["recall"] * 20 / said["dropped"]
    )


def test_what_a_step_reads_is_computed_first(store):
    ran: list[str] = []
    said = bench(store, Judge(unlikely=lambda right, text: float(not right)), "instructmining-score", ran=ran)
    assert ran == ["instructmining-score"] and said["column"] == "instructmining_perplexity"
    assert said["auroc"] == 1.0
    undeclared = said["columns"]["instructmining_mtld"]
    assert not undeclared["declared"] and undeclared["auroc"] >= 0.5
    assert "direction taken from the flags" in noise_page.markdown("x", said)
    ran.clear()
    bench(store, FakeEngine(), "instructmining-knn", ran=ran)
    assert ran == ["embed", "instructmining-knn"]


def test_without_a_declared_direction_the_best_column_stands_at_the_head(store):
    said = bench(store, FakeEngine(), "kmeans-cluster")
    assert not said["declared"] and said["auroc"] == max(c["auroc"] for c in said["columns"].values())
    assert "over 0.5 by construction" in noise_page.sentence(said)


def test_without_a_declared_direction_the_one_that_tells_is_taken():
    frame = pl.DataFrame({"x": [1.0, 2.0, 3.0, 4.0], "spoilt": [False, False, True, True]})
    found = column_figures(frame, "x", None)
    assert (found["auroc"], found["high"]) == (1.0, 1.0) and found["low"] == pytest.approx(0.025 ** (1 / 2))
    assert found["direction"] == "lower" and not found["declared"]
    assert column_figures(frame, "x", 1)["auroc"] == 0.0 and column_figures(frame, "x", -1)["auroc"] == 1.0
    assert column_figures(frame.with_columns(spoilt=True), "x", 1) is None


def test_each_kind_is_held_against_the_right_rows_alone(store):
    copies = Judge(unlikely=lambda right, text: float(not any(f"'{asked}'" in text for asked in TRUTH)))
    kinds = bench(store, copies, noise=Noise(rate=0.4))["by_kind"]
    assert kinds["near-duplicate"]["auroc"] == kinds["near-duplicate"]["recall"] == 1.0
    assert {kinds[k]["auroc"] for k in KINDS if k != "near-duplicate"} == {0.5}
    none = bench(store, copies, noise=Noise(kinds=("swap",)))["by_kind"]
    assert none["swap"]["rows"] == 20 and set(none) == {"swap"}


@pytest.mark.parametrize("name", ["embed", "split"])
def test_a_step_that_writes_no_number_is_refused(store, name):
    with pytest.raises(StepError, match=f"{name} writes no number"):
        bench(store, FakeEngine(), name)


def test_no_step_sees_the_flags_or_a_score_of_the_clean_rows(store):
    seen: list[pl.DataFrame] = []

    def look(frame, cfg):
        seen.append(frame)
        return frame.with_columns(x=pl.lit(1.0))

    probe = Step("probe", "score", "shard", (), ("x",), (), {}, Split, 1, look)
    said = bench(store, FakeEngine(), probe)
    assert said["auroc"] == 0.5
    (frame,) = seen
    assert frame.columns == ROW.names and frame["method"].null_count() == frame.height
    assert store.read(said["spoilt_dataset"]).columns == ROW.names
    assert store.read_side(said["spoilt_dataset"], "flags")["spoilt"].sum() == 20


def test_the_same_noise_is_found_again_and_other_noise_is_another_dataset(store, tmp_path):
    first = spoilt_dataset(store, "import-000000000001", Noise())
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*.parquet"))
    assert spoilt_dataset(store, "import-000000000001", Noise(kinds=KINDS[::-1])) == first
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*.parquet")) == before
    assert spoilt_dataset(store, "import-000000000001", Noise(seed=1)) != first
    made = store.manifest(first)
    assert made.counts["spoilt"] == 20 and made.counts["live"] == made.counts["rows"]


def test_dropped_rows_are_left_out(store):
    dropped = CLEAN.with_columns(drop_reason=pl.when(pl.int_range(pl.len()) < 40).then(pl.lit("x: y")))
    seal(store, "import-000000000002", dropped)
    made = store.read_side(spoilt_dataset(store, "import-000000000002", Noise()), "flags")
    assert made["spoilt"].sum() == 12 and set(made["made_of"]) == set(CLEAN["id"][40:])


def test_what_cannot_be_measured_is_refused_in_one_line(store):
    seal(store, "import-000000000003", CLEAN.head(19))
    with pytest.raises(StoreError, match="has 19 live rows, and noise-bench needs 20"):
        spoilt_dataset(store, "import-000000000003", Noise())
    seal(store, "import-000000000004", CLEAN.head(0))
    with pytest.raises(StoreError, match="has 0 live rows"):
        spoilt_dataset(store, "import-000000000004", Noise())
    with pytest.raises(StoreError, match="spoilt by noise-bench already"):
        spoilt_dataset(store, spoilt_dataset(store, "import-000000000001", Noise()), Noise())
    with pytest.raises(StepError, match=r"clear-filter is a filter step; .* a score step: clear-score,"):
        check_step(find_step("clear-filter"))
    with pytest.raises(ConfigError, match="'rate': input should be less than 1"):
        noise_settings({"rate": 1.5})
    with pytest.raises(ConfigError, match=r"'kinds.0': input should be 'swap', .*not 'typo'"):
        noise_settings({"kinds": ["typo"]})


def test_worked_figures():
    goodness = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0])
    wrong = np.array([True, False, True, False, False, False, False, False, False, True])
    assert caught(worst(goodness, 3), wrong) == caught(np.array([1.0, 1, 1, 0, 0, 0, 0, 0, 0, 0]), wrong)
    at = caught(worst(goodness, 3), wrong)
    assert (at.rows, at.precision, at.recall) == (3, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert at.lift == pytest.approx((2 / 3) / 0.3)
    assert caught(worst(goodness, 0), wrong).precision is None
    assert [p["rows"] for p in curve(goodness, wrong)] == [0, 1, 2, 2, 2, 3, 4, 4, 4, 5]
    by_swap = curve(goodness, np.arange(10) == 0, among=~wrong | (np.arange(10) == 0))[5]  # the worst 3 of 10
    assert (by_swap["rows"], by_swap["precision"], by_swap["recall"]) == (2, 0.5, 1.0)  # the third is of another kind
    assert by_swap["lift"] == pytest.approx(0.5 / (1 / 8))
    # Three rows tie for the last two places: each goes by two thirds.
    tied = np.array([1.0, 2, 2, 2, 3])
    assert worst(tied, 3).tolist() == pytest.approx([1, 2 / 3, 2 / 3, 2 / 3, 0])


def test_the_interval_is_that_of_resampled_rows_and_right_most_of_the_time():
    rng = np.random.default_rng(1)
    wrong = rng.random(300) < 0.3
    goodness = np.round(rng.normal(size=300) - wrong, 1)  # with ties
    drawn = [rng.integers(0, 300, 300) for _ in range(2000)]
    plain = [roc_auc_score(~wrong[d], goodness[d]) for d in drawn]
    assert auroc_interval(goodness, wrong) == pytest.approx(np.percentile(plain, [2.5, 97.5]), abs=0.01)


def test_good_names_columns_that_the_step_writes():
    def fn(rows: pl.DataFrame, cfg: Split) -> pl.DataFrame: ...

    with pytest.raises(StepError, match=r"step odd: good names \['other'\]"):
        step("odd", kind="score", writes="mine", good="-other")(fn)
    with pytest.raises(StepError, match="only a score step can tell"):
        step("odd", kind="filter", writes="mine", good="mine")(fn)
    assert "odd" not in STEPS
    assert STEPS["perplexity"].good == {"base_nll": -1}
    told = ("clear_confidence", "clear_consistency", "clear_reflection", "clear_similarity")
    assert STEPS["clear-score"].good == dict.fromkeys(told, 1)


# ---- the command


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    place = tmp_path_factory.mktemp("store")
    raw = place / "colours.jsonl"
    raw.write_text("\n".join(json.dumps({"instruction": q, "output": a}) for q, a in list(TRUTH.items())[:40]) + "\n")
    assert thresher("import", raw, "--name", "colours", store=place).returncode == 0
    return place


def test_the_command_says_it_as_json_and_leaves_a_page(colours):
    words = ("noise-bench", "colours", "--step", "instructmining-score", "--rate", "0.25", "--seed", "3", "--json")
    ran = thresher(*words, store=colours)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["spoilt"] == 10 and said["rows"] == 40 + said["by_kind"]["near-duplicate"]["rows"]
    assert 0 <= said["low"] <= said["auroc"] <= said["high"] <= 1
    assert {"precision", "recall", "lift"} <= set(said) and len(said["curve"]) == 10
    assert {"rows", "auroc", "recall", "precision", "lift", "curve"} <= set(
        said["by_kind"]["swap"]
    ) and "instructmining_mtld" in said["columns"]
    page = (colours / "reports" / "noise-colours-instructmining-score.md").read_text()
    assert "data:image/svg+xml" in page and "| worst 50% | " in page
    parts = sorted((p, p.stat().st_mtime_ns) for p in colours.rglob("*.parquet"))
    again = thresher(*words, store=colours)
    assert json.loads(again.stdout) == said
    assert sorted((p, p.stat().st_mtime_ns) for p in colours.rglob("*.parquet")) == parts  # nothing was computed
    names = json.loads(thresher("datasets", "--json", store=colours).stdout)
    assert {"colours.noise", "colours.noise.instructmining-score"} <= {n for d in names for n in d["names"]}


def test_the_command_prints_tables(colours):
    ran = thresher("noise-bench", "colours", "--step", "split", "--kinds", "swap", store=colours)
    assert ran.returncode == 2 and "split writes no number" in ran.stderr
    ran = thresher("noise-bench", "colours", "--step", "perplexity", "--kinds", "swap,truncation", store=colours)
    assert ran.returncode == 0, ran.stderr
    assert "as many as were spoilt" in ran.stdout and "AUROC" in ran.stdout and "swap" in ran.stdout


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        pytest.param(("colours", "--step", "random"), 2, "random is a select step", id="no-score-step"),
        pytest.param(("colours", "--step", "perplexity", "--rate", "1.5"), 2, "rate", id="rate"),
        pytest.param(("colours", "--step", "clear-score", "--set", "sample=5"), 2, "'samples'", id="setting"),
        pytest.param(("colours", "--step", "perplexity", "--table", "x=colours"), 2, "perplexity has none", id="table"),
        pytest.param(("nobody", "--step", "perplexity"), 1, "there is no dataset 'nobody'", id="no-such-dataset"),
        pytest.param(("colours", "--step", "perplexity", "--base", "/no/model"), 1, "/no/model", id="no-model"),
    ],
)
def test_what_goes_wrong_is_one_line_with_an_exit_code(colours, words, code, told):
    ran = thresher("noise-bench", *words, store=colours)
    assert ran.returncode == code, ran.stderr
    assert told in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.real
def test_clear_tells_spoilt_answers_with_the_embedded_model(tmp_path):
    lines = (ROOT / "examples" / "snips" / "test.jsonl").read_text().splitlines()[::12]
    (tmp_path / "few.jsonl").write_text("\n".join(lines) + "\n")
    assert thresher("import", tmp_path / "few.jsonl", "--name", "few", store=tmp_path).returncode == 0
    words = ("noise-bench", "few", "--step", "clear-score", "--set", "samples=5", "--set", "max_tokens=8", "--json")
    ran = thresher(*words, store=tmp_path)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["threshold"] == "clear-filter" and said["low"] > 0.5 and said["lift"] > 1.2
