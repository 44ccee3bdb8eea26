"""The browser of datasets: pages under /datasets, made here and now from the store, that change nothing.

    /datasets                             what is in the store
    /datasets/<name or id>                its rows, by the page; sorted, filtered, searched by what stands after ?
    /datasets/<name or id>/row/<place>    one row in full, from 1, beside what it was made of; its history
    /datasets/<name or id>/id/<row>       leads to the row with this id
    /datasets/<name or id>/<table>        a table beside it: what an import rejected, what a training saw of each row
    /datasets/<name or id>/<table>/row/<place>

No page has a script or loads anything from elsewhere, and the browser is told to allow neither.
"""

import base64
import binascii
import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.browser import lists, words
from flows.browser.query import Query, Refused, parse
from flows.browser.rows import Looking, Table
from flows.nearest import find
from storage.scan import AT
from storage.store import Store, StoreError
from storage.using import looking

STYLE = Path(__file__).with_name("templates") / "style.css"
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def browser(root: Path, auth: str | None = None) -> ASGIApp:
    """The application; with `auth`, as `name:password`, it answers only who says them."""
    eyes, pages = Looking(Store(root)), words.pages()

    def page(name: str, said: dict[str, Any], status: int = 200) -> HTMLResponse:
        return HTMLResponse(pages.get_template(name).render(said), status)

    def refused(_request: Request, why: Exception) -> Response:
        status = why.status if isinstance(why, Refused) else why.status_code if isinstance(why, HTTPException) else 500
        told = {404: "There is no such page.", 405: "Pages here are only read."}.get(status, "The page failed.")
        told = str(why) if isinstance(why, Refused | StoreError) else told
        return page("refused.html", {"status": status, "why": told}, status)

    def listed(request: Request) -> Response:
        return page("list.html", lists.listed(eyes.store, request.query_params.multi_items()))

    def rows(request: Request) -> Response:
        table, query = _asked(eyes, request)
        return page("rows.html", lists.rows(eyes, table, query) | _where(request))

    def row(request: Request) -> Response:
        table, query = _asked(eyes, request)
        place = _place(request.path_params["place"], table)
        return page("row.html", lists.row(eyes, table, query, place) | _where(request))

    def by_id(request: Request) -> Response:
        table, _ = _asked(eyes, request)
        found = find(table.scan, table.kinds, [request.path_params["row"]], ["id"])
        if not found.height:
            raise Refused(404, f"{request.path_params['name']} has no row {request.path_params['row']}.")
        return RedirectResponse(f"{_where(request)['here']}/row/{found[AT][0] + 1}")

    def style(_request: Request) -> Response:
        return FileResponse(STYLE, media_type="text/css")

    routes = {
        "/datasets": listed,
        "/datasets/": listed,
        "/datasets/-/style.css": style,
        "/datasets/{name}": rows,
        "/datasets/{name}/row/{place}": row,
        "/datasets/{name}/id/{row}": by_id,
        "/datasets/{name}/{table}": rows,
        "/datasets/{name}/{table}/row/{place}": row,
    }
    return Starlette(
        routes=[Route(path, _only_looking(eyes.store, of), methods=["GET"]) for path, of in routes.items()],
        exception_handlers={Refused: refused, StoreError: refused, HTTPException: refused, Exception: refused},
        middleware=[Middleware(_Guarded, auth=auth)],
    )


def _only_looking(store: Store, of: Callable[[Request], Response]) -> Callable[[Request], Response]:
    """Nothing that is looked at is held: `gc` may take it at any time, which the page says then."""

    def answered(request: Request) -> Response:
        with looking():
            try:
                return of(request)
            except (StoreError, FileNotFoundError):
                if (dataset := getattr(request.state, "dataset", None)) and not store.exists(dataset):
                    raise Refused(410, f"{dataset} was removed from the store meanwhile.") from None
                raise

    return answered


def _asked(eyes: Looking, request: Request) -> tuple[Table, Query]:
    """The table and the query that an address means."""
    side = request.path_params.get("table")
    try:
        dataset = eyes.store.resolve(request.path_params["name"])
    except StoreError as why:
        raise Refused(404, str(why)) from None
    if not eyes.store.exists(dataset):
        raise Refused(410, f"{request.path_params['name']} points to {dataset}, which was removed from the store.")
    request.state.dataset = dataset
    made = eyes.store.manifest(dataset)
    if side is not None and side not in made.side:
        raise Refused(404, f"{dataset} has no table {side!r}; it has {', '.join(made.side) or 'none'}.")
    table = eyes.table(made, side)
    return table, parse(request.query_params.multi_items(), table.kinds)


def _where(request: Request) -> dict[str, str]:
    """The name that the dataset is called by, and the address of the table."""
    name, side = request.path_params["name"], request.path_params.get("table")
    return {"name": name, "here": f"/datasets/{name}" + (f"/{side}" if side else "")}


def _place(said: str, table: Table) -> int:
    """From 0."""
    if not (said.isascii() and said.isdecimal() and len(said) < 12):
        raise Refused(404, f"{said!r} is no number of a row.")
    if not 1 <= int(said) <= table.scan.rows:
        raise Refused(404, f"There is no row {int(said):,}; there are {table.scan.rows:,}.")
    return int(said) - 1


class _Guarded:
    """Says to a browser what no page here does, and asks for name and password where they are set."""

    def __init__(self, app: ASGIApp, auth: str | None) -> None:
        self.app, self.auth = app, auth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if self.auth is None or _is_allowed(Headers(scope=scope).get("authorization", ""), self.auth):
            return await self.app(scope, receive, with_headers)
        asked = PlainTextResponse("name and password, please", 401, {"www-authenticate": 'Basic realm="Thresher"'})
        await asked(scope, receive, with_headers)


def _is_allowed(said: str, auth: str) -> bool:
    kind, _, code = said.partition(" ")
    try:
        given = base64.b64decode(code, validate=True) if kind.lower() == "basic" else b""
    except binascii.Error:
        return False
    return hmac.compare_digest(given, auth.encode())
