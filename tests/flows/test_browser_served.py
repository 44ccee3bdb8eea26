import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from flows.server import Server, serving
from storage.store import Store
from tests.flows.stores import small_store

CHROMIUM = "/usr/bin/chromium"
FILTERED = "clear-filter-000000000003"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return small_store(tmp_path_factory.mktemp("browsed"))


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[Server]:
    with serving(store.root) as server:
        yield server


def test_the_browser_is_beside_prefect_on_its_port(store: Store, server: Server):
    page = httpx.get(f"{server.url}/datasets/seed?page=2", timeout=120)
    assert page.status_code == 200 and "51 to 60 of 60 rows" in page.text
    assert httpx.get(f"{server.api}/health").status_code == 200
    assert httpx.post(f"{server.api}/flow_runs/count", json={}).json() == 0
    assert '<div id="app"' in httpx.get(f"{server.url}/dashboard", headers={"accept": "text/html"}).text
    assert httpx.get(f"{server.url}/datasetsandmore", headers={"accept": "text/html"}).text != page.text
    assert httpx.get(f"{server.url}/datasets/nope").status_code == 404


def test_cards_link_to_the_browser_of_the_store_s_own_server_alone(store: Store, server: Server, tmp_path: Path):
    from flows import cards

    assert cards.browser_url(store) == f"{server.url}/datasets"
    other = small_store(tmp_path)
    assert cards.browser_url(other) is None, "this server serves another store"
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect/server.json").write_text('{"url": "http://127.0.0.1:9"}')
    assert cards.browser_url(other) is None


def test_a_dropped_row_is_found_from_its_card_with_its_history_and_nothing_in_it_acts(store: Store, server: Server):
    from playwright.sync_api import sync_playwright

    from flows import cards

    address = cards.publish(store, FILTERED)
    asked: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        context = browser.new_context(viewport={"width": 1300, "height": 1000})
        context.set_default_timeout(90_000)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.goto(address)
        page.click("a:has-text('clear-filter: confidence # is not over #')")
        page.wait_for_selector("h1:has-text('clear-filter-000000000003')")
        from_card = page.inner_text(".pages"), page.input_value("select[name=why]")

        page.click("nav a:has-text('Datasets')")
        page.click("td a:has-text('Best.of_all')")
        page.wait_for_selector("h1:has-text('Best.of_all')")
        page.click("a[rel=next]")
        second = page.inner_text(".pages >> nth=0")
        hostile = page.inner_text("tbody tr:last-child")
        page.click("tbody tr:last-child td:first-child a")
        page.wait_for_selector("#history")
        shown = page.inner_text("main")
        images = page.evaluate("[document.images.length, document.scripts.length, window.injected ?? null]")

        page.go_back()
        page.go_back()
        page.select_option("select[name=state]", "dropped")
        page.fill("input[name=q]", "20 plus 20")
        page.click("button:has-text('Show')")
        page.wait_for_selector("text=1 to 1 of 1 row of 60")
        page.click("tbody tr td a")
        page.wait_for_selector("#history")
        history = page.inner_text(".history")
        row = page.inner_text("main")
        page.click(".history a:has-text('seed')")
        page.wait_for_selector("h1:has-text('Row 21')")
        at = page.url
        links = page.evaluate("[...document.querySelectorAll('a')].map(a => a.href)")
        browser.close()
    assert from_card == ("1 to 21 of 21 rows of 60", "clear-filter: confidence # is not over #")
    assert second.startswith("51 to 60 of 60 rows")
    assert '<img src="http://203.0.113.7/a.png"' in hostile
    assert "[press me](javascript:window.injected=3) ![pixel](http://203.0.113.7/b.png)" in shown
    assert images == [0, 0, None]
    assert "clear_confidence 0.333333" in history and "clear-filter: confidence 0.333 is not over 0.35" in history
    assert "thresher explain r20" in row
    assert at == f"{server.url}/datasets/import-000000000001/row/21"
    assert all(link.startswith(server.url) for link in links)
    outside = [url for url in asked if not url.startswith((server.url, "data:", f"blob:{server.url}"))]
    assert not outside


def test_the_server_s_password_is_asked_for_under_datasets_too(tmp_path: Path):
    store = small_store(tmp_path)
    configured = {name: os.environ.pop(name, None) for name in ("PREFECT_API_URL", "PREFECT_HOME")}
    os.environ |= {"PREFECT_SERVER_API_AUTH_STRING": "ada:secret", "PREFECT_API_AUTH_STRING": "ada:secret"}
    try:
        with serving(store.root) as server:
            refused = httpx.get(f"{server.url}/datasets", timeout=120)
            let_in = httpx.get(f"{server.url}/datasets", auth=("ada", "secret"), timeout=120)
    finally:
        for name in ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"):
            del os.environ[name]
        os.environ |= {name: value for name, value in configured.items() if value is not None}
    assert refused.status_code == 401 and "seed" not in refused.text
    assert let_in.status_code == 200 and "seed" in let_in.text
