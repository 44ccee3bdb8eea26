import base64
import html
import re
import shutil
from pathlib import Path

import polars as pl
import pytest
from starlette.testclient import TestClient

from flows.browser.app import browser
from storage.schema import ROW
from storage.store import Manifest, Store
from tests.flows.stores import HOSTILE, small_store
from tests.rows import rows

FILTERED, CHOICE, ADAPTER = "clear-filter-000000000003", "kmeans-quality-000000000004", "train-000000000005"
GROWN = "clear-correct-000000000007"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The small store, and a row of it corrected: the old one marked, the new one after all others."""
    store = small_store(tmp_path_factory.mktemp("looked at"))
    before = store.manifest(FILTERED)
    new = rows(("What is 40 plus 40?\nThink first.", "40 plus 40 is EIGHTY."), id=["new"], parent_id=["r40"])
    part = store.put_part("new", new.with_columns(method=pl.lit("clear-correct"), source=pl.lit("test")), ROW)
    counts = {"rows": 61, "live": 40, "dropped by clear-filter": 21}
    made = Manifest(
        GROWN, "rows", "clear-correct", 1, {}, {}, {"rows": FILTERED}, (*before.shards, (part,)), {}, {}, counts
    )
    store.seal(made)
    store.name("corrected", GROWN)
    return store


@pytest.fixture(scope="module")
def client(store: Store) -> TestClient:
    return TestClient(browser(store.root), raise_server_exceptions=False)


def text(page: str) -> str:
    """What a reader sees."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page.split("<main>")[1])).split())


def places(page: str) -> list[int]:
    """The rows of a page, by the links to them."""
    return [int(n) for n in re.findall(r'class="number"><a href="[^"]*/row/(\d+)', page)]


def test_the_list_has_every_dataset_with_its_names_step_kind_and_rows(client: TestClient, store: Store):
    said = text(client.get("/datasets").text)
    assert re.search(r"Best\.of_all clear-filter rows 39 of 60 live \d+ s", said)
    assert re.search(r"kmeans-quality-000000000004 kmeans-quality choice 13 of 39 taken", said)
    assert "7 datasets" in said and all(name in said for name in store.names())
    assert "1 dataset " in text(client.get("/datasets?q=BEST&kind=rows").text)
    assert "0 datasets" in text(client.get("/datasets?q=best&kind=choice").text)


def test_a_page_has_fifty_rows_and_leads_to_the_others(client: TestClient):
    first, second = client.get("/datasets/seed").text, client.get("/datasets/seed?page=2").text
    assert places(first) == list(range(1, 51)) and places(second) == list(range(51, 61))
    assert "1 to 50 of 60 rows" in text(first) and "51 to 60 of 60 rows" in text(second)
    assert 'rel="next" href="/datasets/seed?page=2"' in first and 'rel="next"' not in second
    assert "What is 3 plus 3? Think first. 3 plus 3 is 6." in text(first)


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        pytest.param("sort=clear_confidence&down=1", [60, 59, 58], id="numbers"),
        pytest.param("sort=clear_consistency", [8, 9, 10], id="missing last"),
        pytest.param("sort=clear_consistency&down=1", [60, 59, 58], id="missing last, downwards"),
        pytest.param("sort=prompt", [1, 2, 11], id="prompts"),
        pytest.param("sort=response&down=1", [60, 10, 9], id="responses"),
        pytest.param("sort=id", [1, 2, 11], id="ids"),
    ],
)
def test_rows_are_sorted_by_any_column(client: TestClient, asked: str, first: list[int]):
    assert places(client.get(f"/datasets/{FILTERED}?{asked}").text)[:3] == first


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        pytest.param("state=dropped", 21, id="dropped"),
        pytest.param("state=live", 39, id="live"),
        pytest.param("why=clear-filter", 21, id="by a step"),
        pytest.param("why=clear-filter%3A+confidence+%23+is+not+over+%23", 21, id="for a reason"),
        pytest.param("why=clear-filter%3A+confidence+0.017+is+not+over+0.35", 1, id="for a reason with its numbers"),
        pytest.param("why=clear", 0, id="no step is named so"),
        pytest.param("min.clear_confidence=0.5", 30, id="from"),
        pytest.param("min.clear_confidence=0.5&max.clear_confidence=0.6", 7, id="from and to"),
        pytest.param("min.clear_consistency=0", 53, id="what is missing is in no range"),
        pytest.param("is.source=test&is.round=0", 60, id="equal"),
        pytest.param("is.source=other", 0, id="not equal"),
        pytest.param("q=THINK++first&state=dropped", 21, id="search, space and case alike"),
        pytest.param("q=29+plus", 1, id="search"),
        pytest.param("q=r5", 11, id="an id"),
        pytest.param("q=**bold", 1, id="no pattern"),
        pytest.param("q=" + "(" * 30, 0, id="no broken pattern"),
    ],
)
def test_rows_are_filtered_and_searched(client: TestClient, asked: str, found: int):
    page = client.get(f"/datasets/{FILTERED}?{asked}")
    assert page.status_code == 200
    assert len(places(page.text)) == min(found, 50)
    assert ("No row is like that" if not found else f"of {found} row") in text(page.text)


def test_numbers_that_are_none_are_in_no_range_and_last(tmp_path: Path):
    store = Store(tmp_path)
    frame = rows(*[("q", "a")] * 4, m_score=[0.5, float("nan"), float("inf"), None])
    store.seal(Manifest("d", "rows", "s", 1, {}, {}, {}, ((store.put_part("p", frame, ROW),),), counts={"rows": 4}))
    client = TestClient(browser(tmp_path))
    assert places(client.get("/datasets/d?min.m_score=0.1").text) == [1]
    assert places(client.get("/datasets/d?sort=m_score&down=1").text)[0] == 3
    assert {*places(client.get("/datasets/d?sort=m_score&down=1").text)[2:]} == {2, 4}


def test_a_choice_shows_and_searches_the_text_of_its_rows(client: TestClient):
    page = client.get(f"/datasets/{CHOICE}?state=taken&why=cluster+1").text
    assert "What is 30 plus 30?" in text(page) and len(places(page)) == 3
    assert places(client.get(f"/datasets/{CHOICE}?q=plus+30").text) == [10]
    row = text(client.get(f"/datasets/{CHOICE}/row/10").text)
    assert "Taken: cluster 1" in row and "30 plus 30 is 60." in row


def test_tables_without_rows_and_side_tables_have_pages(client: TestClient, store: Store, tmp_path: Path):
    assert "1 to 50 of 50 rows" in text(client.get(f"/datasets/{ADAPTER}?sort=loss").text)
    assert "0.26" in text(client.get(f"/datasets/{ADAPTER}/row/50").text)
    other = Store(tmp_path)
    rejects = pl.DataFrame(
        {"file": ["a.jsonl"] * 3, "line": [3, 5, 9], "reason": ["no JSON"] * 3, "raw": ["{", HOSTILE, "["]}
    )
    side = {"rejects": (other.put_part("rejects", rejects),)}
    other.seal(Manifest("i", "rows", "import", 1, {}, {}, {}, (), side, {}, {"rows": 0, "rejected": 3}))
    looked = TestClient(browser(tmp_path))
    assert "beside it rejects 3" in text(looked.get("/datasets/i").text)
    assert places(looked.get("/datasets/i/rejects?min.line=4").text) == [2, 3]
    assert places(looked.get("/datasets/i/rejects?q=heading").text) == [2]
    assert "[press me]" in text(looked.get("/datasets/i/rejects/row/2").text)


def test_a_row_is_shown_in_full_beside_what_it_was_made_of_with_its_history(client: TestClient):
    page = client.get("/datasets/corrected/row/61").text
    said = text(page)
    assert said.index("It came from r40") < said.index("This row new")
    assert "<mark>EIGHTY</mark>" in page and "<mark>80</mark>" in page
    assert "thresher explain new" in said
    parent = text(client.get("/datasets/seed/row/41").text)
    assert "Made of it new in corrected, written by clear-correct" in parent
    assert "clear-score-000000000002 clear_confidence 0.666667" in parent and "imported" in parent
    dropped = text(client.get("/datasets/Best.of_all/row/15").text)
    assert "Dropped: clear-filter: confidence 0.233 is not over 0.35" in dropped


def test_one_goes_from_row_to_row_of_what_was_asked_for(client: TestClient):
    page = client.get(f"/datasets/{FILTERED}/row/20?state=dropped&sort=clear_confidence&down=1").text
    same = "?state=dropped&amp;sort=clear_confidence&amp;down=1"
    assert f'rel="prev" href="/datasets/{FILTERED}/row/21{same}"' in page
    assert f'rel="next" href="/datasets/{FILTERED}/row/19{same}"' in page
    assert f'href="/datasets/{FILTERED}{same}"' in page
    moved = client.get("/datasets/seed/id/r7", follow_redirects=False)
    assert moved.headers["location"] == "/datasets/seed/row/8"


@pytest.mark.parametrize(
    "where",
    [
        "/datasets/seed?page=2",
        "/datasets/seed/row/60",
        f"/datasets/{FILTERED}/row/60",
        "/datasets/seed?q=%3Cscript%3Ealert(1)%22%27",
    ],
)
def test_hostile_text_is_text(client: TestClient, where: str):
    page = client.get(where)
    tags = re.findall(r"<(\w+)", page.text)
    assert not {"script", "img", "iframe", "svg", "object", "style"} & set(tags)
    assert all(h.startswith("/") for h in re.findall(r'(?:href|src|action)="([^"]*)"', page.text))
    assert not re.search(r"[\x00\u202e]", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "script-src" not in page.headers["content-security-policy"]
    said = {"row": "[press me](javascript:window.injected=3)", "page": "⟨U+202E⟩ end", "q=": "No row is like that"}
    assert next(expected for part, expected in said.items() if part in where) in text(page.text)


@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        ("nope", 404, "there is no dataset 'nope'"),
        ("..%2f..%2fetc", 404, "no such page"),
        ("a%00b", 404, "is no dataset name"),
        ("%ff%fe", 404, "is no dataset name"),
        ("seed?sort=messages", 400, "cannot be sorted by 'messages'"),
        ("seed?sort=nothing", 400, "cannot be sorted by 'nothing'"),
        ("seed?is.nothing=1", 400, "There is no column 'nothing'"),
        ("seed?min.id=1", 400, "id is no column of numbers"),
        (f"{FILTERED}?min.clear_confidence=NaN", 400, "is 'NaN', which is no number"),
        (f"{FILTERED}?max.clear_confidence=1e999", 400, "which is no number"),
        (f"{FILTERED}?min.clear_confidence=1;drop", 400, "which is no number"),
        ("seed?state=taken", 400, "not told apart as 'taken'"),
        ("seed?page=0", 400, "'0' is no number of a page"),
        ("seed?page=%C2%B2", 400, "no number of a page"),
        ("seed?page=3", 404, "There is no page 3; the last one is 2."),
        ("seed?page=2&page=1", 400, "says page twice"),
        ("seed?colour=red", 400, "asks for 'colour'"),
        ("seed?q=" + "x" * 1001, 400, "1,001 characters"),
        ("seed/row/61", 404, "There is no row 61; there are 60."),
        ("seed/row/0", 404, "There is no row 0"),
        ("seed/row/x", 404, "'x' is no number of a row"),
        ("seed/id/nobody", 404, "seed has no row nobody"),
        ("seed/rejects", 404, "has no table 'rejects'"),
        ("?page=9", 404, "There is no page '9' of the list"),
        ("?colour=red", 400, "asks for 'colour'"),
    ],
)
def test_what_cannot_be_shown_is_said_with_a_fitting_status(client: TestClient, where: str, status: int, said: str):
    page = client.get(f"/datasets/{where}" if not where.startswith("?") else f"/datasets{where}")
    assert (page.status_code, said in text(page.text)) == (status, True), text(page.text)
    assert "Traceback" not in page.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_pages_are_only_read(client: TestClient, method: str):
    assert client.request(method, "/datasets/seed").status_code == 405


def test_an_empty_store_and_an_empty_dataset_say_so(client: TestClient, tmp_path: Path):
    assert "The store is empty" in text(TestClient(browser(tmp_path)).get("/datasets").text)
    assert "There are no rows" in text(client.get("/datasets/nothing").text)


def test_what_is_damaged_or_removed_meanwhile_is_said(tmp_path: Path):
    store = small_store(tmp_path)
    client = TestClient(browser(tmp_path), raise_server_exceptions=False)
    assert client.get("/datasets/seed").status_code == 200
    (tmp_path / store.manifest(FILTERED).shards[1][0].file).write_bytes(b"PAR1 no more")
    page = client.get("/datasets/seed?q=think")
    assert page.status_code == 500 and "is gone or damaged; `thresher verify`" in text(page.text)
    assert client.get("/datasets/Best.of_all?state=live").status_code == 500
    assert len(places(client.get(f"/datasets/{FILTERED}?sort=clear_confidence&max.clear_confidence=0.2").text)) == 13
    row = client.get("/datasets/seed/row/3")
    assert row.status_code == 200 and "2 plus 2 is 4." in text(row.text) and "is gone or damaged" in text(row.text)
    broken = tmp_path / "datasets" / CHOICE / "manifest.json"
    broken.write_text("{")
    assert client.get(f"/datasets/{CHOICE}").status_code == 500
    assert "is broken" in text(client.get("/datasets").text)
    (tmp_path / "datasets" / FILTERED / "manifest.json").unlink()
    assert client.get("/datasets/Best.of_all").status_code == 410
    assert client.get(f"/datasets/{FILTERED}").status_code == 404


def test_looking_holds_nothing(store: Store, tmp_path: Path):
    root = shutil.copytree(store.root, tmp_path / "copy", ignore=shutil.ignore_patterns("using"))
    client = TestClient(browser(root))
    for where in ("", "/seed", "/corrected/row/1", f"/{FILTERED}/row/3?state=live", f"/{CHOICE}", "/corrected/id/new"):
        assert client.get(f"/datasets{where}").status_code == 200
    assert not list((root / "using").glob("*:*")), "it has no journal, so it holds nothing"


def test_with_a_password_nothing_is_told_without_it(store: Store):
    client = TestClient(browser(store.root, "ada:söcret"))
    for where in ("/datasets", "/datasets/seed", "/datasets/-/style.css", "/datasets/nope"):
        refused = client.get(where)
        assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic")
        assert "seed" not in refused.text
    said = base64.b64encode("ada:söcret".encode()).decode()
    assert client.get("/datasets", headers={"authorization": f"Basic {said}"}).status_code == 200
    for wrong in ("Basic", "Basic !!", f"Bearer {said}", "Basic " + base64.b64encode(b"ada:no").decode()):
        assert client.get("/datasets", headers={"authorization": wrong}).status_code == 401
