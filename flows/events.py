"""Word of an import to a Prefect server that is running; free of Prefect, which takes seconds to load."""

import uuid
from datetime import UTC, datetime
from pathlib import Path

import httpx
from rich.markup import escape

from flows.access import AUTH, ServerError, known_client
from flows.progress import say
from flows.server import running_api

IMPORTED = "thresher.dataset.imported"


def tell_imported(root: Path, name: str, dataset: str) -> bool:
    """Whether a server heard that a dataset was imported. None is started for it, and none is no error.

    The import is done by then: where a server could not be told, that is said, and nothing fails.
    """
    try:
        if (api := running_api(root)) is None:
            return False
        with known_client(api) as told:
            sent = told.post(f"{api}/events", json=[_event(root, name, dataset)])
        why = None if sent.is_success else f"the Prefect server at {api} answered {sent.status_code}"
        if sent.status_code == 401:
            why += f": set {AUTH} as its starter has it, or PREFECT_API_AUTH_STRING if it is not the store's own"
    except ServerError as error:
        why = str(error)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = f"the Prefect server at {api} could not be reached: {error}"
    if why:
        say(f"[yellow]nobody was told of the import, so no schedule starts by it: {escape(why)}[/yellow]")
    return not why


def _event(root: Path, name: str, dataset: str) -> dict[str, object]:
    return {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": IMPORTED,
        "resource": {
            "prefect.resource.id": f"thresher.dataset.{name}",
            "prefect.resource.name": name,
            "thresher.store": str(root),
        },
        "payload": {"name": name, "dataset": dataset},
    }
