"""Which Prefect server is configured, whether it answers, and what it is told of who asks.

The store's own server asks for THRESHER_AUTH=user:password, which is read by whoever starts it and by whoever uses it.
It is handed on in the environment of processes, where other users of the machine cannot see it, and is written nowhere.
A server that is configured is told what Prefect's own settings say, PREFECT_API_AUTH_STRING or PREFECT_API_KEY, and
never THRESHER_AUTH.
"""

import os
import tomllib
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import httpx

from storage.store import StoreError

AUTH = "THRESHER_AUTH"
EVERYWHERE = ("0.0.0.0",)
LOOPBACK = ("127.0.0.1", "localhost")


class ServerError(StoreError):
    """The server cannot be had; the message names it and the remedy."""


def configured_api() -> str | None:
    """The API that the environment or the active Prefect profile names."""
    api = _setting("PREFECT_API_URL")
    return api.rstrip("/") if api else None


def _setting(name: str) -> str | None:
    """A setting of Prefect's, of the environment or the active profile, read without importing Prefect (2 s)."""
    if said := os.environ.get(name):
        return said
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser()
    if not path.exists():
        return None
    try:
        profiles = tomllib.loads(path.read_text(encoding="utf-8"))
        active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
        return profiles.get("profiles", {}).get(active, {}).get(name)
    except (OSError, ValueError, AttributeError) as error:  # no file to read, no text or no TOML, no tables
        raise ServerError(f"Prefect's profiles in {path} cannot be read: {error}; mend or remove the file") from error


def credentials() -> str | None:
    """`user:password` for the store's own server, of the environment; ServerError, without it, where it is no such."""
    said = os.environ.get(AUTH)
    if not said:
        return os.environ.get("PREFECT_API_AUTH_STRING") or None
    user, colon, password = said.partition(":")
    if not (user.strip() and colon and password.strip()):
        raise ServerError(f"{AUTH} is user:password, such as {AUTH}=me:$(openssl rand -hex 12)")
    return said


def client(api: str, given: str | None = None, key: str | None = None) -> httpx.Client:
    """Speaks to a server as `user:password`, or with a key; to one on this machine past any proxy."""
    user, _, password = (given or "").partition(":")
    return httpx.Client(
        timeout=5,
        trust_env=urlsplit(api).hostname not in (*LOOPBACK, "::1"),
        auth=(user, password) if given else None,
        headers={"Authorization": f"Bearer {key}"} if key and not given else None,
    )


def known_client(api: str) -> httpx.Client:
    """As `client`, with what this server is to be told of who asks."""
    if api == configured_api():
        return client(api, _setting("PREFECT_API_AUTH_STRING"), _setting("PREFECT_API_KEY"))
    return client(api, credentials())


def health(api: str, given: str | None = None) -> Literal["well", "silent", "refused"]:
    """Whether a server answers, and takes this `user:password`; `refused` is a 401 or 403."""
    try:
        with client(api, given) as asks:
            if asks.get(f"{api}/health").status_code >= 500:
                return "silent"
            return "refused" if asks.get(f"{api}/admin/version").status_code in (401, 403) else "well"
    except (httpx.HTTPError, httpx.InvalidURL):
        return "silent"


def check_access(api: str, given: str | None) -> None:
    """Raises ServerError where the store's own server wants another `user:password` than this."""
    if health(api, given) == "refused":
        wants = f"refuses what {AUTH} says" if given else f"asks for user and password, and {AUTH} is not set"
        raise ServerError(f"the Prefect server at {api} {wants}; set {AUTH}=user:password as its starter has it")


def check_configured(api: str) -> None:
    """Raises ServerError where the configured server refuses this process, which Prefect's settings are set for.

    Prefect itself asks, since it alone knows all that may be set; what else goes wrong is for those who use the server.
    """
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as prefect:
            prefect.request("POST", "/flow_runs/count", json={})  # which Prefect Cloud answers too
    except httpx.HTTPStatusError as why:
        if why.response.status_code == 401:
            raise ServerError(
                f"the Prefect server at {api} refuses what Prefect's settings say, or wants to be told who asks; set "
                f"PREFECT_API_AUTH_STRING=user:password or PREFECT_API_KEY ({AUTH} is for a store's own server)"
            ) from None
    except httpx.HTTPError:
        pass
