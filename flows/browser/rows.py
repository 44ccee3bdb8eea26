"""A table of the store as it is looked at: which rows, in which order, and a page of them.

Datasets never change, so what was found once is kept as long as there is room: paging through a search searches once.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import polars as pl

from flows.browser.query import TEXTS, Query, Refused, condition, key, needed
from flows.nearest import Kinds, find, nearest, sources_of_texts
from flows.reasons import alike, tally
from storage.scan import AT, Scan
from storage.schema import instruction, response
from storage.store import Manifest, Store

PAGE = 50  # rows
KEPT = 64 << 20  # bytes of orders that are kept: 4 for each row that was found
TABLES = 32
_CHOICES = 20  # values of a column that can be chosen from a list
_REASONS = 40
_NO_CHOICE = ("id", "parent_id", "drop_reason", "why")

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Table:
    made: Manifest
    side: str | None
    scan: Scan
    kinds: dict[str, pl.DataType]
    ranges: dict[str, tuple[float, float]]
    texts: "Table | None" = None
    """The rows that have the messages, where these have an id alone."""


@dataclass(frozen=True, slots=True)
class Facets:
    """What a table can be filtered by, each with how many rows it is true of, the most first."""

    reasons: Sequence[tuple[str, int]]
    more_reasons: int
    """Reasons that are not listed."""

    values: dict[str, list[tuple[str, int]]]
    """The values of columns that have few."""


@dataclass(frozen=True, slots=True)
class Page:
    rows: pl.DataFrame
    """With AT, and prompt and response where there are messages."""

    found: int
    first: int
    """Place of the first one among those found, from 0."""


@dataclass(slots=True)
class Looking:
    """One store, looked at. One query at a time goes through many rows: many readers take no more memory than one."""

    store: Store
    tables: OrderedDict[Hashable, Table] = field(default_factory=OrderedDict)
    facets_of: OrderedDict[Hashable, Facets] = field(default_factory=OrderedDict)
    orders: OrderedDict[Hashable, pl.Series] = field(default_factory=OrderedDict)
    one_at_a_time: threading.RLock = field(default_factory=threading.RLock)

    def table(self, made: Manifest, side: str | None = None) -> Table:
        def opened() -> Table:
            scan = Scan.of(self.store.root, made, side)
            kinds, ranges = scan.columns()
            bare = "id" in kinds and "messages" not in kinds
            source = next(sources_of_texts(self.store, made), None) if bare else None
            return Table(made, side, scan, kinds, ranges, self.table(source) if source else None)

        return self._once(self.tables, (made.id, side), opened, lambda: len(self.tables) > TABLES)

    def nearest(self, made: Manifest, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """See `flows.nearest.nearest`."""

        def opened(one: Manifest) -> tuple[Scan, Kinds]:
            table = self.table(one)
            return table.scan, table.kinds

        return nearest(self.store, made, ids, opened)

    def facets(self, table: Table) -> Facets:
        where = (table.made.id, table.side)
        return self._once(self.facets_of, where, lambda: _facets(table), lambda: len(self.facets_of) > TABLES)

    def order(self, table: Table, query: Query) -> Sequence[int]:
        """Places of the rows that are asked for, in the order that is asked for."""
        if not query.filters and not query.sort:
            return range(table.scan.rows)

        def full() -> bool:
            return sum(4 * len(order) for order in self.orders.values()) > KEPT

        return self._once(self.orders, (table.made.id, table.side, query.what), lambda: _order(table, query), full)

    def page(self, table: Table, query: Query) -> Page:
        """Raises Refused for a page beyond the last."""
        order = self.order(table, query)
        first, last = (query.page - 1) * PAGE, max((len(order) - 1) // PAGE, 0) + 1
        if query.page > last:
            raise Refused(404, f"There is no page {query.page:,}; the last one is {last:,}.")
        shown = [c for c, kind in table.kinds.items() if not kind.is_nested() or c == "messages"]
        rows = table.scan.take(list(order[first : first + PAGE]), shown)
        return Page(readable(with_messages(table, rows)), len(order), first)

    def _once(
        self, kept: OrderedDict[Hashable, Made], what: Hashable, make: Callable[[], Made], full: Callable[[], bool]
    ) -> Made:
        """What was made of it before, else what is made now; the longest unused goes where there is no more room."""
        with self.one_at_a_time:
            found = kept.pop(what) if what in kept else make()
            kept[what] = found
            while len(kept) > 1 and full():
                kept.popitem(last=False)
        return found


def with_messages(table: Table, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows that have an id alone, with what they say."""
    if table.texts is None or rows.is_empty():
        return rows
    said = find(table.texts.scan, table.texts.kinds, rows["id"].to_list(), ["id", "messages"])
    return rows.join(said.drop(AT), on="id", how="left", maintain_order="left") if said.height else rows


def readable(rows: pl.DataFrame) -> pl.DataFrame:
    """With prompt and response for messages."""
    if "messages" not in rows.columns:
        return rows
    said = rows["messages"].to_list()
    texts = zip(TEXTS, (instruction, response), strict=True)
    made = [pl.Series(name, [of(m) if m else "" for m in said], dtype=pl.String) for name, of in texts]
    return rows.drop("messages").with_columns(made)


def _order(table: Table, query: Query) -> pl.Series:
    wanted, elsewhere = needed(query, table.kinds), None
    if query.search and table.texts is not None:
        wanted, elsewhere = list(dict.fromkeys([*wanted, "id"])), _ids_that_say(table.texts, query.search)
    is_asked_for = condition(query, table.kinds, elsewhere)
    kept = [AT, key(query, table.kinds).alias("key")] if query.sort else [AT]
    found = list(table.scan.each(wanted, lambda f: f.filter(is_asked_for).select(kept), table.kinds))
    rows = pl.concat(found) if found else pl.DataFrame({AT: [], "key": []})
    if query.sort:
        rows = rows.sort("key", descending=query.down, nulls_last=True, maintain_order=True)
    return rows[AT]


def _ids_that_say(table: Table, search: str) -> pl.Series:
    kinds = {c: table.kinds[c] for c in ("id", "messages")}
    has = condition(Query(search=search), kinds)
    found = list(table.scan.each(list(kinds), lambda f: f.filter(has).select("id"), kinds))
    return pl.concat(found)["id"] if found else pl.Series("id", [], dtype=pl.String)


def _facets(table: Table) -> Facets:
    reason = next((c for c in ("drop_reason", "why") if c in table.kinds), None)
    reasons = (tally(table.scan, table.kinds, reason, alike(pl.col(reason))) if reason else None) or []
    values = {}
    for column, kind in table.kinds.items():
        if (kind in (pl.String, pl.Boolean) or column == "round") and column not in _NO_CHOICE:
            found = tally(table.scan, table.kinds, column, pl.col(column).cast(pl.String), _CHOICES)
            if found and len(found) > 1:
                values[column] = found
    return Facets(reasons[:_REASONS], max(len(reasons) - _REASONS, 0), values)
