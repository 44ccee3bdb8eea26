"""Grown rows are never more of a choice than their share, by whatever step and in whatever unit it is chosen."""

from collections import Counter

import polars as pl
import pytest

from curation.step import STEPS
from flows import steps  # noqa: F401  registers every step
from flows.grown_share import apart, within_share
from flows.run import run_step
from storage.store import Store
from tests.flows.test_report import sealed
from tests.rows import rows


def pool(store, imported, grown, tokens=1, **columns):
    methods = [None] * imported + ["llm2llm", "self-guide"] * grown
    answers = [(f"q{i}", "a" * (i + 1)) for i in range(imported + grown)]
    frame = rows(*answers, method=methods[: imported + grown], tokens=[tokens] * (imported + grown), **columns)
    return sealed(store, "pool", frame, counts={"rows": frame.height, "live": frame.height})


def chosen(store, dataset, share, rows_=10, step="longest", unit="rows"):
    """The choice, with the method of each row."""

    def pick(some, amount, of=""):
        use = {"tokens": amount} if unit == "tokens" else {"rows": amount}
        return run_step(store, STEPS[step], STEPS[step].config(**use), some)

    choice = within_share(store, dataset, pick(dataset, rows_), share, rows_, unit, pick)
    return store.read(choice).join(store.read(dataset, ["id", "method", "tokens"]), on="id")


def took(choice):
    return Counter(choice.filter("taken")["method"].is_not_null().to_list())


@pytest.mark.parametrize(
    ("imported", "share", "expected"),
    [
        pytest.param(30, 0.3, {False: 7, True: 3}, id="as many as the share allows"),
        pytest.param(30, 0.29, {False: 8, True: 2}, id="never one more"),
        pytest.param(30, 0.0, {False: 10}, id="none"),
        pytest.param(30, 0.05, {False: 10}, id="a share under one row"),
        pytest.param(30, 0.99, {False: 1, True: 9}, id="nearly all"),
        pytest.param(3, 0.25, {False: 3, True: 1}, id="too few imported rows: a share of what is taken"),
        pytest.param(7, 0.3, {False: 7, True: 3}, id="just enough"),
        pytest.param(0, 0.5, {}, id="no imported row"),
    ],
)
def test_grown_rows_are_no_more_than_their_share_of_what_is_taken(tmp_path, imported, share, expected):
    store = Store(tmp_path)
    choice = chosen(store, pool(store, imported, 20), share)
    assert took(choice) == expected
    assert choice["id"].n_unique() == choice.height == imported + 20  # every row has its reason
    grown = choice.filter(pl.col("method").is_not_null())["why"].to_list()
    assert all("; grown rows may be " in why for why in grown)
    assert not any("grown rows" in why for why in choice.filter(pl.col("method").is_null())["why"].to_list())


def test_a_share_is_taken_as_it_is_written(tmp_path):
    store = Store(tmp_path)
    assert took(chosen(store, pool(store, 120, 120), 0.29, rows_=100)) == {False: 71, True: 29}  # 0.29 * 100 < 29


def test_a_choice_that_keeps_to_the_share_stands_as_it_is(tmp_path):
    store = Store(tmp_path)
    dataset = pool(store, 30, 2)
    choice = chosen(store, dataset, 0.2)
    assert took(choice) == {False: 8, True: 2}  # the longest are the last
    assert not any("grown rows may" in why for why in choice["why"].to_list())


def test_of_a_budget_in_tokens_the_share_is_in_tokens(tmp_path):
    store = Store(tmp_path)
    choice = chosen(store, pool(store, 30, 20, tokens=4), 0.3, rows_=50, step="choose", unit="tokens")
    assert took(choice) == {False: 8, True: 3}  # 50 - 15 tokens, and 15
    choice = chosen(store, pool(store, 30, 20, tokens=4), 0.07, rows_=50, step="choose", unit="tokens")
    assert took(choice) == {False: 11}  # three tokens hold no row


def test_a_correction_is_no_grown_row(tmp_path):
    store = Store(tmp_path)
    frame = rows(*[(f"q{i}", "a" * (i + 1)) for i in range(6)], method=["clear-correct"] * 3 + ["llm2llm"] * 3)
    dataset = sealed(store, "pool", frame, counts={"rows": 6, "live": 6})
    live = store.read(apart(store, dataset, grown=False)).filter(pl.col("drop_reason").is_null())
    assert set(live["method"]) == {"clear-correct"}


def test_rows_that_are_drawn_by_clusters_keep_to_it_too(tmp_path):
    store = Store(tmp_path)
    clusters = {"diversity_cluster": [i % 4 for i in range(60)], "diversity_share": [0.25] * 60}
    dataset = pool(store, 40, 20, **clusters, clear_confidence=[0.1] * 40 + [0.9] * 20)
    assert took(chosen(store, dataset, 1.0 - 1e-9, 20, "kmeans-quality"))[True] > 4  # left alone it takes more
    assert took(chosen(store, dataset, 0.2, 20, "kmeans-quality")) == {False: 16, True: 4}
