"""A row in full: what it says beside what it was made of and what was made of it, and all that is known of it."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flows.browser.rows import Looking, Table
from flows.explain import History, history
from storage.scan import AT
from storage.schema import SPOKEN
from storage.store import StoreError

OWN = "This row"
CHILDREN = 6  # that are shown; of the others their ids
_COMPARED = 1500  # words of a message; comparing takes as many steps as the product of two
_ALIKE = 0.4
_WORD = re.compile(r"\w+|\s+|[^\w\s]")

Piece = tuple[str, bool]  # text, and whether the other row does not have it


@dataclass(frozen=True, slots=True)
class Said:
    role: str
    pieces: Sequence[Piece]
    besides: Mapping[str, str]
    """Calls of tools and the like."""


@dataclass(frozen=True, slots=True)
class Version:
    """A row as one of those that are read side by side."""

    what: str
    id: str
    dataset: str
    place: int
    """From 1, in its dataset."""

    drop_reason: str | None
    method: str | None
    said: Sequence[Said]


@dataclass(frozen=True, slots=True)
class Seen:
    versions: Sequence[Version]
    facts: Mapping[str, Any]
    more_children: Sequence[str]
    history: History | None
    unknown: str
    """Why there is no history."""


def seen(looking: Looking, table: Table, place: int) -> Seen:
    """The row at a place of a table, from 0."""
    row = table.scan.take([place], list(table.kinds)).drop(AT).row(0, named=True)
    id_ = row.get("id")
    if id_ is None:
        return Seen((), row, (), None, "")
    whole = row
    if "messages" not in row:
        whole = {**(looking.nearest(table.texts.made, [id_]).get(id_, {}) if table.texts else {}), **row}
    try:
        told, unknown = history(looking.store, id_), ""
    except StoreError as why:
        told, unknown = None, str(why)
    versions = []
    if parent_id := whole.get("parent_id"):
        versions += [_version("It came from", row) for row in looking.nearest(table.made, [parent_id]).values()]
    if "messages" in whole:
        versions.append(_version(OWN, {**whole, "dataset": table.made.id, "place": place + 1}))
    grown = list(told.children.items()) if told else []
    for child, dataset in grown[:CHILDREN]:
        found = looking.nearest(looking.store.manifest(dataset), [child])
        versions += [_version("Made of it", row) for row in found.values()]
    facts = {name: value for name, value in row.items() if name not in ("messages", "id")}
    return Seen(_compared(versions), facts, [child for child, _ in grown[CHILDREN:]], told, unknown)


def _version(what: str, row: Mapping[str, Any]) -> Version:
    said = [
        Said(m["role"], [(m["content"] or "", False)], {k: m[k] for k in SPOKEN if m.get(k)})
        for m in row["messages"] or ()
    ]
    return Version(what, row["id"], row["dataset"], row["place"], row.get("drop_reason"), row.get("method"), said)


def _compared(versions: list[Version]) -> list[Version]:
    """The first two marked where they differ, and each further child where it differs from this row."""
    own = next((version for version in versions if version.what == OWN), None)
    if own is None or len(versions) < 2:
        return versions
    return [*_pair(versions[0], versions[1]), *[_pair(own, version)[1] for version in versions[2:]]]


def _pair(before: Version, after: Version) -> tuple[Version, Version]:
    marked = [_marked(a, b) for a, b in zip(before.said, after.said, strict=False)]
    old, new = ([pair[side] for pair in marked] for side in (0, 1))
    rest = len(marked)
    return replace(before, said=[*old, *before.said[rest:]]), replace(after, said=[*new, *after.said[rest:]])


def _marked(before: Said, after: Said) -> tuple[Said, Said]:
    """Both with the words marked that the other lacks; as they are where they have little in common."""
    old, new = (_WORD.findall(s.pieces[0][0])[: _COMPARED + 1] for s in (before, after))
    if max(len(old), len(new)) > _COMPARED or old == new:
        return before, after
    match = difflib.SequenceMatcher(None, old, new, autojunk=False)
    if match.ratio() < _ALIKE:
        return before, after
    left, right = [], []
    for tag, a, b, c, d in match.get_opcodes():
        same = tag == "equal" and not "".join(old[a:b]).isspace()  # a space between two words that differ
        left.append(("".join(old[a:b]), not same))
        right.append(("".join(new[c:d]), not same))
    kept = [[piece for piece in side if piece[0]] for side in (left, right)]
    return Said(before.role, kept[0], before.besides), Said(after.role, kept[1], after.besides)
