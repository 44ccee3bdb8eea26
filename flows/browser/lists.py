"""What stands on each page of the browser of datasets."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from flows.browser.family import seen
from flows.browser.query import TEXTS, Query, Refused, sortable
from flows.browser.rows import PAGE, Facets, Looking, Table
from flows.store_commands import age
from storage.manifest import read_manifest
from storage.scan import AT
from storage.store import Store, StoreError

LISTED = 100  # datasets on a page
_FIRST = ("id", *TEXTS, "taken", "why", "drop_reason")
_LAST = ("source", "method", "round", "parent_id")  # columns that say least


def listed(store: Store, said: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The datasets, the newest first; `q` is part of a name, a step or an id, `kind` one of the kinds."""
    asked = {"q": "", "kind": "", "page": "1"} | dict(said)
    if unknown := sorted(set(asked) - {"q", "kind", "page"}):
        raise Refused(400, f"The address asks for {unknown[0]!r}, which means nothing here.")
    names, found, kinds = store.called(), [], set()
    for dataset in reversed(store.ids()):
        made, broken, at = None, "", 0.0
        path = store.folder(dataset) / "manifest.json"
        try:
            at, made = path.stat().st_mtime, read_manifest(path)
        except FileNotFoundError:  # removed meanwhile
            continue
        except StoreError as why:
            broken = str(why)
        kinds.add(made.kind if made else "broken")
        called = names.get(dataset, [])
        if asked["kind"] not in ("", made.kind if made else "broken"):
            continue
        if all(asked["q"].strip().lower() not in text.lower() for text in (dataset, *called)):
            continue
        found.append({"id": dataset, "names": called, "made": made, "broken": broken, "age": age(time.time() - at)})
    page = asked["page"]
    last = max((len(found) - 1) // LISTED, 0) + 1
    if not (page.isascii() and page.isdecimal() and len(page) < 12 and 1 <= int(page) <= last):
        raise Refused(404, f"There is no page {page!r} of the list; the last one is {last}.")
    start = (int(page) - 1) * LISTED
    shown = {"datasets": found[start : start + LISTED], "found": len(found), "kinds": sorted(kinds)}
    return shown | {"asked": asked, "page": int(page), "last": last, "empty": not kinds, "names": names}


def rows(eyes: Looking, table: Table, query: Query) -> dict[str, Any]:
    page = eyes.page(table, query)
    try:
        facets, unread = eyes.facets(table), ""
    except StoreError as why:  # the rows of this page lie in other parts
        facets, unread = Facets((), 0, {}), str(why)
    columns = _columns(page.rows.columns, table, query)
    numbers = [c for c, kind in table.kinds.items() if kind.is_numeric() and c != "round"]
    return _of(eyes, table, query) | {
        "page": page,
        "lines": page.rows.to_dicts(),
        "columns": columns,
        "sortable": sortable(table.kinds),
        "numbers": numbers,
        "facets": facets,
        "unread": unread,
        "last": max((page.found - 1) // PAGE, 0) + 1,
        "AT": AT,
    }


def row(eyes: Looking, table: Table, query: Query, place: int) -> dict[str, Any]:
    before, after = _beside(eyes.order(table, query), place)
    return _of(eyes, table, query) | {
        "place": place + 1,
        "before": before,
        "after": after,
        "seen": seen(eyes, table, place),
    }


def _of(eyes: Looking, table: Table, query: Query) -> dict[str, Any]:
    """What every page of a table says of it."""
    made, names = table.made, eyes.store.called()
    inputs = {role: d if eyes.store.exists(d) else None for role, d in made.inputs.items()}
    tables = {side: sum(part.rows for part in parts) for side, parts in made.side.items()}
    return {"made": made, "table": table, "query": query, "names": names, "inputs": inputs, "tables": tables}


def _columns(present: Sequence[str], table: Table, query: Query) -> list[str]:
    """From left to right: what a row says, what was decided, what is asked for, the scores, and the rest."""
    kept = [c for c in present if c != AT]
    first = [c for c in _FIRST if c in kept]
    asked = [c for c in (query.sort, *query.least, *query.most, *query.equal) if c in kept and c not in first]
    rest = [c for c in kept if c not in (*first, *asked, *_LAST)]
    return list(dict.fromkeys([*first, *asked, *rest, *[c for c in _LAST if c in kept]]))


def _beside(order: Sequence[int], place: int) -> tuple[int | None, int | None]:
    """The places, from 1, of the rows before and after one in an order; None at its ends, and where it is not in it."""
    if isinstance(order, range):
        at = place
    else:
        found = np.flatnonzero(order.to_numpy() == place)
        if not len(found):
            return None, None
        at = int(found[0])
    before = order[at - 1] + 1 if at > 0 else None
    return before, order[at + 1] + 1 if at + 1 < len(order) else None
