"""Questions to a server: as many at once as it bears, each tried again where that may help, within a budget."""

import asyncio
import os
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from curation.step import Failed
from synthesis.fingerprint import EngineError

_AGAIN = {408, 409, 425, 429}  # and all of 500 and more: another try may be answered
_FIRST, _TOLERANCE = 8, 2.0
_KEEP_EVERY = 2.0  # seconds
_WAIT = wait_random_exponential(multiplier=0.5, max=30)


Questions = dict[Any, tuple[str, dict[str, Any]]]  # path and body, by whatever name the asker knows it


class BudgetSpent(EngineError):
    """What the user would pay is paid; what was answered is kept."""


@dataclass
class Purse:
    """What was paid, in the currency of the prices, which are for a million tokens."""

    price_in: float = 0.0
    price_out: float = 0.0
    budget: float | None = None
    ledger: Callable[[float], float] | None = None
    """Adds what was paid to a sum that outlives this engine and this process, and gives the sum."""
    spent: float = 0.0
    unkept: float = 0.0
    kept: float = 0.0  # when

    def pay(self, tokens_in: int, tokens_out: int) -> float:
        cost = (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6
        self.spent, self.unkept = self.spent + cost, self.unkept + cost
        if time.monotonic() - self.kept > _KEEP_EVERY:
            self.keep()
        return cost

    def keep(self) -> None:
        """Write down what was paid, and hear what others did meanwhile."""
        if self.ledger and (self.price_in or self.price_out):
            self.spent = self.ledger(self.unkept)
            self.unkept, self.kept = 0.0, time.monotonic()

    def check(self) -> None:
        if self.budget is not None and self.spent >= self.budget:
            raise BudgetSpent(
                f"the budget of {self.budget:g} is spent ({self.spent:.4g}, with what earlier commands paid); what was "
                "answered is kept: raise `budget` and run the same command to go on"
            )


def key_in(variable: str) -> str | None:
    """The key that an environment variable holds, without the white space around it that files and shells leave.

    Raises EngineError, which does not show it, where it could not stand in a header.
    """
    said = os.environ.get(variable, "").strip()
    if not re.fullmatch(r"[!-~]*", said):
        raise EngineError(
            f"the environment variable {variable} holds no key: there is a character inside it that no key has "
            "(white space, a line end, a letter outside ASCII); set it anew"
        )
    return said or None


def headers(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


class Limit:
    """How many requests may be in flight. Doubles each round trip until the server first says no, then grows by one;
    shrinks when the server says no (429), or takes twice as long as it used to. That it takes longer for more at once,
    in proportion, is none of it: such a server is only busy."""

    def __init__(self, most: int) -> None:
        self.most, self.size = most, float(min(_FIRST, most))
        self.flying = 0
        self.usual, self.recent = Pace(0.02), Pace(0.2)
        self.shrunk = 0.0  # when
        self.changed = asyncio.Condition()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        async with self.changed:
            await self.changed.wait_for(lambda: self.flying < int(self.size))
            self.flying += 1
        try:
            yield
        finally:
            async with self.changed:
                self.flying -= 1
                self.changed.notify_all()

    def answered(self, seconds: float, flying: int) -> None:
        """`flying` were in flight when the question was sent, itself among them."""
        for pace in (self.usual, self.recent):
            pace.take(seconds, flying)
        if self.recent.seconds > _TOLERANCE * self.usual.seconds * max(1.0, self.recent.flying / self.usual.flying):
            self.refused()
        else:
            self.size = min(float(self.most), self.size + (1 / self.size if self.shrunk else 1.0))

    def refused(self) -> None:
        """Once a round trip: all that were in flight are refused together."""
        if time.monotonic() - self.shrunk > max(self.recent.seconds, 0.05):
            self.size, self.shrunk = max(1.0, self.size * 0.7), time.monotonic()


@dataclass
class Pace:
    """How long answers take, and how many were in flight then: means in which `share` is the weight of the newest."""

    share: float
    seconds: float = 0.0
    flying: float = 0.0

    def take(self, seconds: float, flying: int) -> None:
        share = self.share if self.flying else 1.0
        self.seconds += share * (seconds - self.seconds)
        self.flying += share * (flying - self.flying)


class _Again(Exception):
    """Another try may be answered; `after` is how long the server asks to wait."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


@dataclass
class Server:
    """Any server that takes JSON by POST. `key` gives the secret at the moment that it is needed, and never stays."""

    url: str
    key: Callable[[], str | None]
    at_once: int = 64
    timeout: float = 300.0
    attempts: int = 6
    purse: Purse = field(default_factory=Purse)
    tries: int = 0

    def ask(self, questions: Questions, told: Callable[[Any, Any], Questions | None]) -> None:
        """Ask each (path, body); `told` hears the parsed JSON, or a `Failed`, as it comes, and may ask more for it.

        Raises EngineError where no question can be answered (no server, no such model, key refused, budget spent), or
        what `told` raised, after those in flight have come back.
        """
        self.purse.keep()
        try:
            asyncio.run(self._ask(questions, told))
        finally:
            self.purse.keep()

    def post(self, path: str, body: dict[str, Any]) -> None:
        """Have the server do something that costs nothing, such as to load an adapter; also while Python ends."""
        try:
            response = httpx.post(self.url + path, json=body, headers=headers(self.key()), timeout=self.timeout)
        except httpx.HTTPError as why:
            raise EngineError(f"{self.url}{path}: {self.clean(why)}") from None
        if response.status_code >= 400:
            raise EngineError(
                f"{self.url}{path}: the server refuses ({response.status_code}): {self.clean(_message(response))}"
            )

    async def _ask(self, questions: Questions, told: Callable[[Any, Any], Questions | None]) -> None:
        limit, waiting, workers = Limit(self.at_once), deque(questions.items()), 0
        stopped: list[Exception] = []

        def check() -> None:
            if stopped:
                raise stopped[0]
            self.purse.check()

        def put_to_work() -> None:
            nonlocal workers
            for _ in range(min(self.at_once - workers, len(waiting))):
                workers += 1
                group.create_task(work())

        async def work() -> None:
            nonlocal workers
            try:
                while waiting:
                    key, (path, body) = waiting.popleft()
                    if more := told(key, await self._one(client, limit, path, body, check)):
                        waiting.extendleft(reversed(more.items()))  # what is begun is finished first
                        put_to_work()
            except Exception as why:  # what `told` met too, such as a full disk: the group would wrap it up
                stopped.append(why)
            finally:
                workers -= 1

        pool = httpx.Limits(max_connections=None, max_keepalive_connections=self.at_once)
        connected = httpx.AsyncClient(timeout=self.timeout, limits=pool, headers=headers(self.key()))
        async with connected as client, asyncio.TaskGroup() as group:
            put_to_work()
        if stopped:
            raise stopped[0]

    async def _one(
        self, client: httpx.AsyncClient, limit: Limit, path: str, body: dict[str, Any], check: Callable[[], None]
    ) -> Any:
        tries = AsyncRetrying(
            stop=stop_after_attempt(self.attempts), wait=_wait, retry=retry_if_exception_type(_Again), reraise=True
        )
        try:
            async for attempt in tries:
                with attempt:
                    async with limit.slot():
                        check()
                        return await self._try(client, limit, path, body)
        except _Again as why:
            if isinstance(why.__cause__, httpx.ConnectError):
                told = f"there is no server at {self.url} ({why}); start it, or mend the url"
                raise EngineError(told) from why.__cause__
            return Failed(f"{why}, {self.attempts} times")

    async def _try(self, client: httpx.AsyncClient, limit: Limit, path: str, body: dict[str, Any]) -> Any:
        began, flying = time.monotonic(), limit.flying
        self.tries += 1
        try:
            async with asyncio.timeout(self.timeout):  # of the whole: a server that drips never times out by itself
                response = await client.post(self.url + path, json=body)
        except (TimeoutError, httpx.TimeoutException):
            limit.refused()
            raise _Again(f"the server gave no answer within {self.timeout:g} s") from None
        except httpx.TransportError as why:
            raise _Again(f"the connection broke: {self.clean(why)}") from why
        status = response.status_code
        if status in _AGAIN or status >= 500:
            limit.refused()
            raise _Again(f"the server is not ready ({status}): {self.clean(response.text)}", _after(response))
        if status in (401, 403):
            raise EngineError(
                f"{self.url} refuses the key ({status}: {self.clean(_message(response))}): "
                "set the environment variable that `key` names"
            )
        if status == 404:
            raise EngineError(f"{self.url}{path} is not there (404): {self.clean(_message(response))}")
        if status >= 400:
            return Failed(f"the server refuses ({status}): {self.clean(_message(response))}")
        limit.answered(time.monotonic() - began, flying)
        kind = response.headers.get("content-type", "")
        try:
            if "html" in kind:  # a proxy's page, and perhaps gone the next time
                raise ValueError
            return response.json() if "json" in kind else response.text
        except ValueError:
            raise _Again(f"the server's answer is no JSON: {self.clean(response.text)!r}") from None

    def clean(self, said: object) -> str:
        """One short line without the key, which some servers repeat: whole, or it would be cut in its middle."""
        line, secret = " ".join(str(said).split()), self.key()
        return (line.replace(secret, "…") if secret else line)[:200]


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return max(_WAIT(state), getattr(error, "after", 0.0))


def _after(response: httpx.Response) -> float:
    try:
        return min(60.0, float(response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


def _message(response: httpx.Response) -> str:
    try:
        said = response.json()
        error = said.get("error", said) if isinstance(said, dict) else said
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except ValueError:
        return response.text
