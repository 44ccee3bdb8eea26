"""What of a table is asked for: search, filters, order and page, as they stand in the address of a page."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

import polars as pl

from flows.reasons import alike
from storage.schema import SPOKEN

LONGEST = 1000  # characters of a search
STATES = {"live": "drop_reason", "dropped": "drop_reason", "taken": "taken", "left": "taken"}  # by what they need
TEXTS = ("prompt", "response")  # columns of a page that are made of the messages
_SORTED_BY = 80  # characters of a text


class Refused(Exception):
    """A page that cannot be shown: with the status code that says so and, in words, why and what to do."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass(frozen=True, slots=True)
class Query:
    """Empty: all rows in their order."""

    search: str = ""
    state: str = ""
    why: str = ""
    """A reason without its numbers and ids, or the step that gave it."""

    equal: Mapping[str, str] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)
    most: Mapping[str, float] = field(default_factory=dict)
    sort: str = ""
    down: bool = False
    page: int = 1

    @property
    def filters(self) -> bool:
        return bool(self.search or self.state or self.why or self.equal or self.least or self.most)

    @property
    def what(self) -> tuple[Any, ...]:
        """What decides which rows, and in which order: the same for all its pages."""
        dicts = (self.equal, self.least, self.most)
        return (self.search, self.state, self.why, *[tuple(sorted(d.items())) for d in dicts], self.sort, self.down)

    def but(self, **changes: Any) -> str:
        """The end of the address of the same with changes: from `?` on, or nothing."""
        other = replace(self, **{"page": 1, **changes})
        said = {"q": other.search, "state": other.state, "why": other.why}
        said |= {f"is.{c}": v for c, v in other.equal.items()}
        said |= {f"min.{c}": repr(v).removesuffix(".0") for c, v in other.least.items()}
        said |= {f"max.{c}": repr(v).removesuffix(".0") for c, v in other.most.items()}
        said |= {"sort": other.sort, "down": "1" if other.down else "", "page": "" if other.page == 1 else other.page}
        shown = urlencode({name: value for name, value in said.items() if value != ""})
        return f"?{shown}" if shown else ""


def parse(said: Iterable[tuple[str, str]], kinds: Mapping[str, pl.DataType]) -> Query:
    """The query in an address. Raises Refused where it asks for what the table does not have."""
    query, seen = Query(), set()
    for name, value in said:
        if name in seen:
            raise Refused(400, f"The address says {name} twice; leave one of them out.")
        seen.add(name)
        if value.strip():
            query = _with(query, name, value.strip(), kinds)
    return query


def _with(query: Query, name: str, value: str, kinds: Mapping[str, pl.DataType]) -> Query:
    before, _, column = name.partition(".")
    if name == "q":
        if len(value) > LONGEST:
            raise Refused(400, f"The search has {len(value):,} characters; {LONGEST:,} are the most.")
        return replace(query, search=value)
    if name == "state":
        if value not in STATES or STATES[value] not in kinds:
            raise Refused(400, f"These rows are not told apart as {value!r}.")
        return replace(query, state=value)
    if name == "why":
        if not {"drop_reason", "why"} & set(kinds):
            raise Refused(400, "These rows have no reasons.")
        return replace(query, why=value)
    if before == "is":
        _column(column, kinds)
        return replace(query, equal={**query.equal, column: value})
    if before in ("min", "max"):
        if not _column(column, kinds).is_numeric():
            raise Refused(400, f"{column} is no column of numbers.")
        bound = "least" if before == "min" else "most"
        return replace(query, **{bound: {**getattr(query, bound), column: _number(name, value)}})
    if name == "sort":
        if value not in sortable(kinds):
            raise Refused(400, f"The rows cannot be sorted by {value!r}; the headings of the table say by what.")
        return replace(query, sort=value)
    if name == "down":
        return replace(query, down=value != "0")
    if name == "page":
        if not (value.isdecimal() and value.isascii() and len(value) < 12 and int(value)):
            raise Refused(400, f"{value!r} is no number of a page.")
        return replace(query, page=int(value))
    raise Refused(400, f"The address asks for {name!r}, which means nothing here.")


def sortable(kinds: Mapping[str, pl.DataType]) -> set[str]:
    return {c for c, kind in kinds.items() if not kind.is_nested()} | (set(TEXTS) if "messages" in kinds else set())


def needed(query: Query, kinds: Mapping[str, pl.DataType]) -> list[str]:
    """The columns that must be read to say which rows, and in which order."""
    wanted = {*query.equal, *query.least, *query.most, query.sort}
    wanted |= {STATES[query.state]} if query.state else set()
    wanted |= {"drop_reason", "why"} if query.why else set()
    wanted |= {"messages"} if query.search or query.sort in TEXTS else set()
    wanted |= {c for c, kind in kinds.items() if kind == pl.String} if query.search else set()
    return [c for c in kinds if c in wanted]


def condition(query: Query, kinds: Mapping[str, pl.DataType], found: pl.Series | None = None) -> pl.Expr:
    """Whether a row is asked for; `found` are the ids of rows whose text lies elsewhere and has what is searched."""
    said = [pl.lit(True)]
    if query.state:
        column = pl.col(STATES[query.state])
        is_so = {"live": column.is_null(), "dropped": column.is_not_null(), "taken": column, "left": ~column}
        said.append(is_so[query.state])
    if query.why:
        reason = pl.col("why" if "why" in kinds else "drop_reason")
        said.append((alike(reason) == query.why) | (reason == query.why) | reason.str.starts_with(f"{query.why}: "))
    for column, value in query.equal.items():
        said.append(pl.col(column).cast(pl.String) == value)
    for column, value in query.least.items():
        said.append(_finite(column, kinds) & (pl.col(column) >= value))
    for column, value in query.most.items():
        said.append(_finite(column, kinds) & (pl.col(column) <= value))
    if query.search:
        said.append(_has(query.search, kinds, found))
    return pl.all_horizontal(said)


def key(query: Query, kinds: Mapping[str, pl.DataType]) -> pl.Expr:
    """What the rows are sorted by; what is no number stands at the end with what is missing."""
    messages = pl.col("messages")
    if query.sort == "response":
        return messages.list.last().struct.field("content").str.slice(0, _SORTED_BY)
    if query.sort == "prompt":
        said = messages.list.head(messages.list.len() - 1).list.eval(pl.element().struct.field("content").fill_null(""))
        return said.list.join("\n").str.slice(0, _SORTED_BY)
    return pl.col(query.sort).fill_nan(None) if kinds[query.sort].is_float() else pl.col(query.sort)


def _has(search: str, kinds: Mapping[str, pl.DataType], found: pl.Series | None) -> pl.Expr:
    """Upper and lower case are one, and so is space of any kind; an id is found by its beginning."""
    pattern = "(?i)" + r"\s+".join(pl.escape_regex(word) for word in search.split())
    texts = [c for c, kind in kinds.items() if kind == pl.String and c != "id"]
    said = [pl.col(c).str.contains(pattern).fill_null(False) for c in texts]
    if "id" in kinds:
        said.append(pl.col("id").str.starts_with(search))
    if "messages" in kinds:
        fields = [pl.element().struct.field(name).str.contains(pattern) for name in ("content", *SPOKEN)]
        said.append(pl.col("messages").list.eval(pl.any_horizontal(fields).fill_null(False)).list.any())
    if found is not None:
        said.append(pl.col("id").is_in(found.implode()))
    return pl.any_horizontal(said)


def _finite(column: str, kinds: Mapping[str, pl.DataType]) -> pl.Expr:
    return pl.col(column).is_finite() if kinds[column].is_float() else pl.lit(True)


def _column(column: str, kinds: Mapping[str, pl.DataType]) -> pl.DataType:
    if column not in kinds or kinds[column].is_nested():
        raise Refused(400, f"There is no column {column!r} to filter by.")
    return kinds[column]


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Refused(400, f"{name} is {value!r}, which is no number.")
    return number
