"""Word of an import to a Prefect server that is running; free of Prefect, which takes seconds to load."""

import uuid
from datetime import UTC, datetime
from pathlib import Path

import httpx

from flows.access import credentials
from flows.server import running_api

IMPORTED = "thresher.dataset.imported"


def tell_imported(root: Path, name: str, dataset: str) -> bool:
    """Whether a server heard that a dataset was imported. None is started for it, and none is no error."""
    if (api := running_api(root)) is None:
        return False
    event = {
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
    user, _, password = (credentials() or "").partition(":")
    try:
        sent = httpx.post(f"{api}/events", json=[event], timeout=5, auth=(user, password) if user else None)
    except httpx.HTTPError:
        return False
    return sent.is_success
