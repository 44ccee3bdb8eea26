"""Which Prefect server is configured, whether it answers, and the user and password that it asks for.

THRESHER_AUTH=user:password is read by whoever starts a server and by whoever uses it. It is handed on in the
environment of processes, where other users of the machine cannot see it, and is written nowhere.
"""

import os
import tomllib
from pathlib import Path
from typing import Literal

import httpx

from storage.store import StoreError

AUTH = "THRESHER_AUTH"
EVERYWHERE = ("0.0.0.0",)
LOOPBACK = ("127.0.0.1", "localhost")


class ServerError(StoreError):
    """The server cannot be had; the message names it and the remedy."""


def configured_api() -> str | None:
    """The API that the environment or the active Prefect profile names, read without importing Prefect (2 s)."""
    if api := os.environ.get("PREFECT_API_URL"):
        return api.rstrip("/")
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser()
    if not path.exists():
        return None
    try:
        profiles = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ServerError(f"Prefect's profiles in {path} cannot be read: {error}; mend or remove the file") from error
    active = os.environ.get("PREFECT_PROFILE") or profiles.get("active")
    api = profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")
    return api.rstrip("/") if api else None


def credentials() -> str | None:
    """`user:password` of the environment; ServerError where it has not that shape, without showing it."""
    said = os.environ.get(AUTH)
    if not said:
        return os.environ.get("PREFECT_API_AUTH_STRING") or None
    user, colon, password = said.partition(":")
    if not (user.strip() and colon and password.strip()):
        raise ServerError(f"{AUTH} is user:password, such as {AUTH}=me:$(openssl rand -hex 12)")
    return said


def health(api: str, given: str | None = None) -> Literal["well", "silent", "refused"]:
    """Whether a server answers, and takes these credentials; `refused` is a 401 or 403."""
    loopback = api.split("//")[-1].startswith(LOOPBACK)
    user, _, password = (given or "").partition(":")
    try:
        with httpx.Client(timeout=5, trust_env=not loopback, auth=(user, password) if given else None) as client:
            if client.get(f"{api}/health").status_code >= 500:
                return "silent"
            return "refused" if client.get(f"{api}/admin/version").status_code in (401, 403) else "well"
    except httpx.HTTPError:
        return "silent"


def check_access(api: str, given: str | None) -> None:
    """Raises ServerError where the server wants other credentials than these."""
    if health(api, given) == "refused":
        wants = f"refuses what {AUTH} says" if given else f"asks for user and password, and {AUTH} is not set"
        raise ServerError(f"the Prefect server at {api} {wants}; set {AUTH}=user:password as its starter has it")
