import base64
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flows import cluster_card
from flows.card import LONGEST, card, text
from flows.sampling import numbers_and_words, sample_rows, sample_table
from storage.schema import ROW
from storage.store import Manifest, Store
from tests.flows.stores import HOSTILE, small_store
from tests.rows import rows

FILTERED, CHOICE, ADAPTER, EMPTY = (
    "clear-filter-000000000003",
    "kmeans-quality-000000000004",
    "train-000000000005",
    "import-000000000006",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return small_store(tmp_path_factory.mktemp("store"))


class Tags(HTMLParser):
    """What the page would be made of: its tags with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def one_dataset(root: Path, frame: pl.DataFrame, **manifest) -> Store:
    store = Store(root)
    part = store.put_part("p", frame, ROW if "messages" in frame.columns else None)
    made = {"kind": "rows", "step": "s", "version": 1, "config": {}, "engines": {}, "inputs": {}, **manifest}
    store.seal(Manifest(id="d", shards=((part,),), counts={"rows": frame.height}, **made))
    return store


def test_a_card_says_what_the_dataset_is(store: Store):
    page = Tags(card(store, FILTERED))
    for said in (
        "Best.of_all",
        FILTERED,
        "clear-filter version 1",
        "threshold",
        "0.35",
        "dropped by clear-filter",
        "21",
    ):
        assert said in page.text
    assert "thresher show Best.of_all" in page.text
    assert [a["alt"] for t, a in page.tags if t == "img"] == [
        "histogram of clear_confidence",
        "histogram of clear_consistency",
        "lineage",
    ]
    assert sum(t == "details" for t, _ in page.tags) == 10


def test_a_choice_shows_why_rows_were_taken(store: Store):
    page = Tags(card(store, CHOICE)).text
    assert re.search(r"True\s*cluster 0\s*4", page)
    assert "What is 21 plus 21?" in page
    assert "taken" in page and "not taken" in page


def test_an_adapter_shows_its_files_and_its_loss(store: Store):
    page = Tags(card(store, ADAPTER))
    assert "adapter_config.json" in page.text
    assert [a["alt"] for t, a in page.tags if t == "img"] == ["loss over steps", "lineage"]


def test_an_empty_dataset_has_a_card(store: Store):
    assert "There are no rows" in card(store, EMPTY)
    assert sample_table(store, EMPTY) == []


def test_hostile_text_shows_as_text(store: Store):
    page = card(store, "clear-score-000000000002")
    found = Tags(page)
    allowed = {
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "code",
        "img",
        "details",
        "summary",
        "p",
        "strong",
        "br",
        "em",
    }
    assert {t for t, _ in found.tags} <= allowed
    assert all(set(a) <= {"src", "alt", "align", "cellpadding"} for _, a in found.tags)
    assert all(a["src"].startswith("data:image/svg+xml;base64,") for t, a in found.tags if t == "img")
    assert "[press me](javascript:window.injected=3) ![pixel](http://203.0.113.7/b.png)" in found.text
    assert '<img src="http://203.0.113.7/a.png" onerror="window.injected=1">' in found.text
    outside = re.sub(r"<[^>]*>", "", page)
    assert not re.search(r"```|\]\(|://|www\.|\*\*|~~|@|\|", outside)


@pytest.mark.parametrize(
    "said", ["a\nb", "\r\n\r\n    code", "&lt;", "1_000 * 2_000", "日本語 🙂", "- item", "\t.", HOSTILE]
)
def test_escaped_text_is_one_line_and_reads_back(said: str):
    shown = text(said)
    assert "\n" not in shown
    back = html.unescape(shown.replace("<br>", "\n").replace("&nbsp;", " "))
    assert back.replace("⟨U+0000⟩", "\x00").replace("⟨U+202E⟩", "\u202e") == said.replace("\r\n", "\n").replace(
        "\t", " " * 4
    )


def test_giant_rows_leave_the_card_small(tmp_path: Path):
    store = one_dataset(tmp_path, rows(*[("日" * 300_000, "<*>" * 200_000) for _ in range(12)]))
    page = card(store, "d")
    assert len(page.encode()) < 400_000
    assert "more characters" in page
    assert all(len(str(v).replace("\\", "")) <= 120 for row in sample_table(store, "d") for v in row.values())


def test_long_text_is_cut_and_says_by_how_much():
    assert text("x" * (LONGEST + 1_234)).endswith("… 1,234 more characters</em>")


def test_a_sample_table_is_plain_json(tmp_path: Path):
    nasty = rows(("q", "a"), ("q", "a"), ("q", "a")).with_columns(
        pl.Series("m_score", [float("nan"), float("inf"), 1 / 3]),
        pl.Series("m_detail", [{"a": 1}, {"a": 2}, {"a": 3}]),
        pl.Series("m_embedding", [[0.0] * 384] * 3),
    )
    table = sample_table(one_dataset(tmp_path, nasty), "d")
    assert [row["m_score"] for row in table] == [None, None, 0.333333]
    assert table[0]["m_detail"] == r"\{\"a\"\: 1\}"
    assert "m_embedding" not in table[0]
    assert list(table[0])[:4] == ["id", "instruction", "response", "drop_reason"]


def test_cells_of_a_table_are_markdown_that_shows_as_text(store: Store):
    cell = sample_table(store, FILTERED)[-1]["instruction"]
    assert not re.search(r"(?<!\\)[\[\]!()<>`*_#|~:.@&{}=+-]", cell)
    assert re.sub(r"\\(.)", r"\1", cell) == " ".join(HOSTILE[:119].split()) + "…"


def test_a_table_without_messages_has_a_card(tmp_path: Path):
    page = Tags(
        card(one_dataset(tmp_path, pl.DataFrame({"cluster": [1, 2], "weight": [0.5, None]}), kind="table"), "d")
    )
    assert "histogram of weight" in [a.get("alt") for t, a in page.tags if t == "img"]


def test_a_large_dataset_is_read_at_its_ends(tmp_path: Path):
    store = Store(tmp_path)
    shards = [(store.put_part(f"p{i}", rows(*[(f"{i}-{j}", "a") for j in range(40)]), ROW),) for i in range(5)]
    store.seal(Manifest("d", "rows", "s", 1, {}, {}, {}, tuple(shards), counts={"rows": 200}))
    for i in (1, 2, 3):
        (tmp_path / shards[i][0].file).unlink()  # reading any of these would fail
    asked = {said.split("-")[0] for said in sample_rows(store, "d", 10)["instruction"]}
    assert asked == {"0", "4"}
    assert numbers_and_words(store, store.manifest("d"), limit=60).height == 60


def test_lineage_survives_inputs_that_are_gone(tmp_path: Path):
    store = one_dataset(tmp_path, rows(("q", "a")), inputs={"rows": "no-longer-here"})
    assert "Only the nearest are drawn" in card(store, "d")


def drawings(page: str) -> dict[str, str]:
    """The SVG of each drawing by its name."""
    found = re.findall(r'<img alt="([^"]*)" src="data:image/svg\+xml;base64,([^"]*)"', page)
    return {alt: base64.b64decode(data).decode() for alt, data in found}


def test_the_histogram_of_confidence_has_the_line_of_every_threshold(store: Store, tmp_path: Path):
    drawn = drawings(card(store, FILTERED))
    assert "threshold 0.35" in drawn["histogram of clear_confidence"]
    assert "threshold" not in drawn["histogram of clear_consistency"]
    groups = rows(*[("q", "a")] * 4, clear_confidence=[0.1, 0.2, 0.7, 0.8], clear_threshold=[0.15, 0.15, 0.75, 0.75])
    drawn = drawings(card(one_dataset(tmp_path, groups, step="clear-filter"), "d"))
    assert "thresholds 0.15 to 0.75" in drawn["histogram of clear_confidence"]
    assert drawn["histogram of clear_confidence"].count("stroke-dasharray") == 2


def test_the_card_of_corrections_has_eta_counts_them_as_one_reason_and_says_what_was_asked(tmp_path: Path):
    reasons = [f"clear-correct: replaced by {n}{'ab' * 9}{n}" for n in range(3)] + [None]
    frame = rows(*[("q", "a")] * 4, clear_preference=[0.9, 0.85, 0.95, 0.1], drop_reason=reasons)
    store = one_dataset(tmp_path, frame, step="clear-correct", config={"eta": 0.8})
    store.note_run("d", seconds=2.0, rows=4, requests=12, prompt_tokens=400)
    page = card(store, "d")
    assert "threshold 0.8" in drawings(page)["histogram of clear_preference"]
    said = Tags(page).text
    assert re.search(r"clear-correct: replaced by #\s*3", said)
    assert "3.0 model calls, 100.0 prompt tokens a row, 2.0 rows a second" in said


class Links(Tags):
    """And where the page leads, by what is written there."""

    def __init__(self, page: str) -> None:
        self.links: dict[str, str] = {}
        self.into = ""
        super().__init__(page)

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        self.into = dict(attrs).get("href", "") if tag == "a" else self.into

    def handle_endtag(self, tag):
        self.into = "" if tag == "a" else self.into

    def handle_data(self, data):
        super().handle_data(data)
        if self.into:
            self.links[data] = self.into


def test_a_card_leads_to_the_rows_that_it_counts_where_there_is_a_browser(store: Store):
    links = Links(card(store, FILTERED, {"browser": "/datasets"})).links
    rows_of = f"/datasets/{FILTERED}"
    assert links["live"] == f"{rows_of}?state=live"
    assert links["dropped by clear-filter"] == f"{rows_of}?why=clear-filter"
    reason = "clear-filter: confidence # is not over #"
    assert links[reason] == f"{rows_of}?why=clear-filter%3A+confidence+%23+is+not+over+%23"
    assert links["All rows: page, sort, filter, search"] == rows_of
    taken = Links(card(store, CHOICE, {"browser": "/datasets"})).links
    assert taken["cluster 0"] == f"/datasets/{CHOICE}?why=cluster+0&state=left", "the last one of this name"
    assert not Links(card(store, FILTERED)).links


def test_reasons_are_counted_over_all_rows(tmp_path: Path):
    store = Store(tmp_path)
    shards = []
    for i in range(4):
        marks = [f"x: {i} is <b>low</b>"] * 30
        shards.append((store.put_part(f"p{i}", rows(*[(f"{i}", "a")] * 30, drop_reason=marks), ROW),))
    store.seal(Manifest("d", "rows", "s", 1, {}, {}, {}, tuple(shards), counts={"rows": 120, "live": 0}))
    assert numbers_and_words(store, store.manifest("d"), 60).height == 60
    assert re.search(r"x: # is <b>low</b>\s*120", Tags(card(store, "d")).text)


def test_a_row_that_was_changed_stands_beside_the_one_it_came_from(tmp_path: Path):
    store = one_dataset(tmp_path, rows(("old <q>", "old a"), ("q1", "a1"), drop_reason=["c: replaced", None]))
    new = rows(("old <q>", "new [a](b)"), ("q2", "bad"), id=["n0", "n1"], parent_id=["r0", "r1"])
    new = new.with_columns(method=pl.lit("c"), drop_reason=pl.Series([None, "c: refused"]))
    shards = (*store.manifest("d").shards, (store.put_part("n", new, ROW),))
    store.seal(Manifest("e", "rows", "c", 1, {}, {}, {"rows": "d"}, shards, counts={"rows": 4}))
    page = card(store, "e")
    said = Tags(page).text
    pair = said[said.index("Before and after") :]
    assert pair.index("old a") < pair.index("c: replaced") < pair.index("new [a](b)")
    assert pair.index("q1") < pair.index("q2") < pair.index("c: refused")
    grown = Manifest("g", "rows", "c", 1, {}, {}, {"rows": "d"}, (shards[-1],), counts={"rows": 2})
    store.seal(grown)
    assert "old a" in Tags(card(store, "g")).text, "the row it grew from lies in the input"
    assert "Before and after" not in card(store, "d")


def test_the_card_of_clusters_draws_them_and_names_each_by_its_typical_rows(tmp_path: Path):
    asked = [("play jazz", 0), ("play some jazz", 0), ("is it raining", 1), ("<b>rain</b> today", 1)]
    vectors = pl.Series("embedding", [[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]], dtype=pl.Array(pl.Float16, 2))
    frame = rows(*[(f"Which of these?\n{q}", "a") for q, _ in asked]).with_columns(
        vectors,
        pl.Series("diversity_cluster", [c for _, c in asked], dtype=pl.Int32),
        diversity_share=pl.lit(0.5),
        diversity_distance=pl.Series([0.0, 0.2, 0.2, 0.1]),
    )
    store = one_dataset(tmp_path, frame, step="kmeans-cluster")
    page = card(store, "d")
    assert drawings(page)["clusters"].count("<circle") == 2
    said = Tags(page).text
    assert (
        said.index("play jazz") < said.index("play some jazz") < said.index("<b>rain</b> today") < said.index("is it")
    )
    weights = pl.DataFrame({"cluster": [0, 1], "weight": [0.1, 0.9], "gain": [0.0, 1.0], "rows": [2, 2]})
    part = store.put_part("w", weights)
    made = Manifest("w", "table", "reweight-clusters", 1, {}, {}, {"rows": "d"}, ((part,),), counts={"rows": 2})
    store.seal(made)
    page = Tags(card(store, "w")).text
    assert page.index("is it raining") < page.index("play jazz") and "1.80" in page


def test_a_cluster_at_the_end_of_a_large_pool_is_on_the_card(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(cluster_card, "READ", 50)
    asked, number = [(f"say {n}", "a") for n in range(500)], [n // 100 for n in range(500)]  # sorted by cluster
    vectors = pl.Series("embedding", np.eye(5)[number], dtype=pl.Array(pl.Float64, 5)).cast(pl.Array(pl.Float16, 5))
    frame = rows(*asked, id=[f"{n * 0x9E3779B97F4A7C15 % 2**64:016x}" for n in range(500)]).with_columns(
        vectors,
        pl.Series("diversity_cluster", number, dtype=pl.Int32),
        diversity_share=pl.lit(0.2),
        diversity_distance=pl.lit(0.0),
    )
    store = one_dataset(tmp_path, frame, step="kmeans-cluster")
    found = cluster_card.clusters(store, store.manifest("d"))
    assert sorted(c.number for c in found) == [0, 1, 2, 3, 4]
    assert 25 < sum(c.rows for c in found) < 80
