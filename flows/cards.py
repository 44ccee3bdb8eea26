"""Dataset cards in the Prefect UI: a page and a table of rows for every dataset, under keys that stay.

Beside each page goes a tiny artifact without a key that says which dataset it shows. The API cannot list artifacts
without sending their content, so these are what is read to know what is published already.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterType
from prefect.client.schemas.sorting import ArtifactSort
from prefect.settings import get_current_settings
from prefect.utilities.context import get_task_and_flow_run_ids
from rich.markup import escape

from flows.card import Names, card
from flows.progress import say
from flows.recording import recording
from flows.sampling import sample_table
from storage.store import Store

__all__ = [
    "addresses",
    "browser_url",
    "card",
    "card_url",
    "page_url",
    "publish",
    "publish_missing",
    "publish_soon",
    "publishing",
    "sample_table",
    "shown",
]

_NOTE = "dataset-card"  # type of the artifact that says what is published
_PAGE = 200  # artifacts that the API sends at once


@dataclass(frozen=True, slots=True)
class _Version:
    dataset: str
    flow_run: str | None
    artifact: str


Run = tuple[UUID | None, UUID | None]  # ids of the task run and the flow run that a card belongs to
Published = dict[str, list[_Version]]  # by key, oldest first


def publish(store: Store, dataset: str) -> str:
    """Show a dataset in the UI, under each of its names; returns the address of its card.

    Inside a flow or task the card belongs to that run. What is already shown is not sent again.
    """
    return _send(store, dataset, get_task_and_flow_run_ids())


_SENDING = ThreadPoolExecutor(1, "cards")  # one thread, so that cards come in the order of their datasets
_SENT: list[Future] = []


def publish_soon(store: Store, dataset: str) -> None:
    """Show a dataset beside what comes next: drawing and sending a card takes a third of a second. See `publishing`.

    The thread has no context of ours: Prefect would hand it the client of a task that has ended by then.
    """
    _SENT.append(_SENDING.submit(_send_or_say, store, dataset, get_task_and_flow_run_ids()))


@contextmanager
def publishing() -> Iterator[None]:
    """At the end all cards that were begun inside are shown, or it is said why not: no run is lost for a card."""
    try:
        yield
    finally:
        wait(_SENT)
        _SENT.clear()


def _send_or_say(store: Store, dataset: str, run: Run) -> None:
    try:
        _send(store, dataset, run)
    except Exception as why:
        say(
            f"[yellow]the card of {dataset} could not be shown, `thresher ui` will show it: {escape(str(why))}[/yellow]"
        )


def _send(store: Store, dataset: str, run: Run) -> str:
    with get_client(sync_client=True) as client:
        published = _published(client)
        _publish(client, store, dataset, published, store.called(), run)
    return _addresses(published)[dataset]


def publish_missing(store: Store, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """Publish every dataset of the store that the server does not show; returns their ids.

    One that cannot be read is left out, and it is said why. A server that cannot be reached raises.
    """
    with get_client(sync_client=True) as client:
        published, names = _published(client), store.called()
        missing, sent = [d for d in store.ids() if not _shown(store, d, published, names)], []
        for i, dataset in enumerate(missing):
            progress(i, len(missing))
            try:
                _publish(client, store, dataset, published, names, get_task_and_flow_run_ids())
                sent.append(dataset)
            except httpx.HTTPError:
                raise
            except Exception as why:
                say(f"[yellow]{dataset} has no card, it could not be read: {escape(str(why))}[/yellow]")
        progress(len(missing), len(missing))
    return sent


def addresses() -> dict[str, str]:
    """Dataset id: address of its newest card, for every dataset that the server shows."""
    with get_client(sync_client=True) as client:
        return _addresses(_published(client))


def card_url(dataset: str) -> str | None:
    """Address of the newest card of a dataset; None if the server has none."""
    return addresses().get(dataset)


def page_url(page: str = "") -> str:
    """Address of a page of the UI that belongs to the API in use."""
    settings = get_current_settings()
    base = settings.ui_url or (settings.api.url or "").rstrip("/").removesuffix("/api")
    return f"{base}/{page}"


def shown(text: str, key: str) -> str:
    """Show a page of text as the artifact of that key; its address, empty where nothing is recorded."""
    return page_url(_path(str(create_markdown_artifact(text, key=key)))[1:]) if recording() else ""


def browser_url(store: Store) -> str | None:
    """Where the browser of datasets is: on the store's own server, if that is the one in use; on no other."""
    try:
        url = json.loads((store.root / "prefect" / "server.json").read_text())["url"]
    except (OSError, ValueError, KeyError):
        return None
    return f"{url}/datasets" if (get_current_settings().api.url or "").rstrip("/") == f"{url}/api" else None


def safe_key(name: str) -> str:
    """Lowercase letters, digits and dashes. A name that is changed by this gets some of its hash, so two stay two."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _keys(store: Store, dataset: str, names: Names) -> list[str]:
    return [safe_key(name) for name in names.get(dataset) or [store.manifest(dataset).step]]


def _shown(store: Store, dataset: str, published: Published, names: Names) -> bool:
    """A name shows what it points to now; a step's key is a time line, where having been shown is enough."""
    versions = [published.get(key, []) for key in _keys(store, dataset, names)]
    if dataset in names:
        return all(v and v[-1].dataset == dataset for v in versions)
    return any(dataset == v.dataset for shown in versions for v in shown)


def _publish(
    client: SyncPrefectClient, store: Store, dataset: str, published: Published, names: Names, of: Run
) -> None:
    task_run, flow_run = of
    run = str(flow_run) if flow_run else None
    own: dict[str, Any] = {"description": dataset, "task_run_id": task_run, "flow_run_id": flow_run}
    for key in _keys(store, dataset, names):
        versions = published.setdefault(key, [])
        if versions and versions[-1].dataset == dataset and run in (None, versions[-1].flow_run):
            continue
        rows = json.dumps(sample_table(store, dataset))
        table = client.create_artifact(ArtifactCreate(key=f"sample-{key}", type="table", data=rows, **own))
        links = {d: _path(v.artifact) for d, v in _newest(published).items()} | {"table": _path(str(table.id))}
        links |= {"browser": "/datasets"} if browser_url(store) else {}
        page = card(store, dataset, links, names)
        shown = client.create_artifact(ArtifactCreate(key=f"dataset-{key}", type="markdown", data=page, **own))
        versions.append(_Version(dataset, run, str(shown.id)))
        note = {"key": key, **asdict(versions[-1])}
        client.create_artifact(ArtifactCreate(type=_NOTE, description=dataset, data=note))


def _published(client: SyncPrefectClient) -> Published:
    notes: list[dict[str, Any]] = []
    filter_ = ArtifactFilter(type=ArtifactFilterType(any_=[_NOTE]))
    while len(notes) % _PAGE == 0:
        page = client.read_artifacts(
            artifact_filter=filter_, sort=ArtifactSort.CREATED_DESC, limit=_PAGE, offset=len(notes)
        )
        notes += [artifact.data for artifact in page]
        if not page:
            break
    found: Published = {}
    for note in reversed(notes):
        found.setdefault(note["key"], []).append(_Version(note["dataset"], note["flow_run"], note["artifact"]))
    return found


def _newest(published: Published) -> dict[str, _Version]:
    return {version.dataset: version for versions in published.values() for version in versions}


def _addresses(published: Published) -> dict[str, str]:
    return {dataset: page_url(_path(v.artifact)[1:]) for dataset, v in _newest(published).items()}


def _path(artifact: str) -> str:
    return f"/artifacts/artifact/{artifact}"
