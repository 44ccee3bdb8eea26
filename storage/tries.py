"""What is asked over a network, tried again with growing pauses where another try may be answered."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from storage.addresses import shown, without_secrets
from storage.manifest import StoreError

TRIES = 5
_AGAIN = {408, 409, 425, 429}  # and all of 500 and more
_WAIT = wait_random_exponential(multiplier=0.5, max=30)

Given = TypeVar("Given")


def again(do: Callable[..., Given], *given: Any, never: tuple[type[Exception], ...] = (), **named: Any) -> Given:
    """Do it; up to five times while a server is silent, busy or broken. What it said last is raised as it is.

    Not for what stays as it is, such as 404 or 403, nor for an error that has one of `never` behind it.
    """
    hopeful = retry_if_exception(lambda why: _may_pass(why, never))
    return Retrying(retry=hopeful, wait=_WAIT, stop=stop_after_attempt(TRIES), reraise=True)(do, *given, **named)


def opened(files: Any, path: str, address: str) -> Any:
    """An open file of an fsspec file system. Each of its pieces is asked for again too, where it comes in pieces."""
    file = again(files.open, path, "rb")
    try:
        file.seek(0, 2)
        file.seek(0)
    except ValueError:  # of fsspec: the server told no length
        raise StoreError(
            f"{shown(address)} is sent without its length and cannot be read in pieces: fetch it, and import the file"
        ) from None
    cache = getattr(file, "cache", None)
    if getattr(cache, "fetcher", None):
        cache.fetcher = partial(_piece, cache.fetcher, address)
    return file


def network_errors() -> tuple[type[Exception], ...]:
    """What is raised where a server is silent or refuses, besides OSError, by the libraries that are loaded."""
    aiohttp = sys.modules.get("aiohttp")
    return (httpx.HTTPError, *([aiohttp.ClientError] if aiohttp else []))


def _piece(fetch: Callable[[int, int], bytes], address: str, start: int, end: int) -> bytes:
    try:
        return again(fetch, start, end)
    except (OSError, *network_errors()) as why:
        said = without_secrets(" ".join(f"{type(why).__name__}: {why}".split()), address)[:300]
        raise StoreError(
            f"{shown(address)} was answered no further ({said}), {TRIES} times where that may help; nothing is "
            "imported: run the same command when it is there again"
        ) from why


def _may_pass(error: BaseException, never: tuple[type[Exception], ...]) -> bool:
    """By what the server answered, which libraries put behind errors of their own."""
    behind = list(_behind(error))
    if any(isinstance(one, never) for one in behind):
        return False
    if answers := [status for one in behind if (status := _status(one))]:
        return answers[-1] in _AGAIN or answers[-1] >= 500
    aiohttp = sys.modules.get("aiohttp")
    if aiohttp and any(isinstance(one, aiohttp.ClientSSLError) for one in behind):
        return False
    lost = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) if aiohttp else ()
    return any(isinstance(one, (ConnectionError, TimeoutError, httpx.TransportError, *lost)) for one in behind)


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    """Of an answer over HTTP, as aiohttp or as httpx and requests tell it."""
    said = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    return said if isinstance(said, int) else None
