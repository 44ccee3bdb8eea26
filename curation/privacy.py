"""Private things in rows: found, and then the row dropped, or a row without them put in its place."""

import json
import re
from typing import Literal

import polars as pl
from pydantic import Field

from curation.private import PEOPLE, Found, all_kinds, keys, people
from curation.step import StepConfig, StepError, step
from storage.schema import SPOKEN, row_id

FOUND = pl.List(pl.Struct({"kind": pl.String, "text": pl.String}))


class PrivacyFind(StepConfig):
    look_for: Literal["all", "people", "keys"] = "all"
    """What tells who somebody is, keys and passwords of machines, or both."""

    kinds: str = " ".join(PEOPLE)
    """Kinds of presidio's to find, with spaces between."""

    least: float = Field(0.4, ge=0, le=1)
    """Presidio's score from which on something counts; 0.4 is that of a telephone number."""

    guesses: bool = False
    """Also count as keys what only looks like one: quoted strings of high entropy, and what a password is set to."""


@step("privacy-find", kind="score", writes="privacy_kinds privacy_found")
def find_private(rows: pl.DataFrame, cfg: PrivacyFind) -> pl.DataFrame:
    """Find e-mail addresses, telephone and card numbers and the like, and keys of machines, in all messages of a row.

    Names of persons and places are not found.
    """
    kinds = cfg.kinds.split()
    if strange := sorted(set(kinds) - set(PEOPLE)):
        raise StepError(f"privacy-find: there is no kind {strange[0]!r}; there are {' '.join(PEOPLE)}")

    def look(text: str) -> list[Found]:
        found = list(keys(text, cfg.guesses)) if cfg.look_for != "people" else []
        return found + (list(people(text, kinds, cfg.least)) if cfg.look_for != "keys" else [])

    said = [[text for m in messages for text in _texts(m)] for messages in rows["messages"].to_list()]
    found = [list(dict.fromkeys(one for text in texts for one in look(text))) for texts in said]
    return rows.drop("privacy_kinds", "privacy_found", strict=False).with_columns(
        privacy_kinds=pl.Series([", ".join(sorted({f.kind for f in fs})) or None for fs in found], dtype=pl.String),
        privacy_found=pl.Series([[f._asdict() for f in fs] for fs in found], dtype=FOUND),
    )


class PrivacyDrop(StepConfig):
    kinds: str = ""
    """Only rows with one of these kinds are dropped, with spaces between; with any if none is named."""


@step("privacy-drop", kind="filter", reads="privacy_kinds")
def drop_private(rows: pl.DataFrame, cfg: PrivacyDrop) -> pl.DataFrame:
    """Drop the rows in which something private was found."""
    kinds = cfg.kinds.split()
    if strange := sorted(set(kinds) - set(all_kinds())) if kinds else []:
        raise StepError(f"privacy-drop: there is no kind {strange[0]!r}; there are {' '.join(all_kinds())}")
    there = pl.col("privacy_kinds").cast(pl.String).str.split(", ")
    counted = there.list.set_intersection(pl.lit(kinds)) if kinds else there
    found = counted.list.len().fill_null(0) > 0
    why = pl.format("privacy-drop: {}", counted.list.sort().list.join(", "))
    return rows.with_columns(drop_reason=pl.when(found).then(why))


class PrivacyMask(StepConfig):
    """It has no settings: what is masked is what was found."""


@step("privacy-mask", kind="revise", reads="privacy_found", takes="split privacy_kinds")
def mask_private(rows: pl.DataFrame, cfg: PrivacyMask) -> pl.DataFrame:
    """Put in the place of a row with something private a new one that says <EMAIL_ADDRESS> and the like instead.

    The same text becomes the same mask wherever it stands in the row, in calls of tools too.
    """
    found = rows.filter(pl.col("privacy_found").list.len() > 0)
    new = _masked(found)
    by = new.select(id="parent_id", by="id")
    reason = pl.when(pl.col("by").is_not_null()).then(pl.format("privacy-mask: replaced by {}", "by"))
    marked = rows.join(by, on="id", how="left", maintain_order="left").with_columns(
        drop_reason=pl.coalesce(reason, "drop_reason")
    )
    return pl.concat([marked.drop("by"), new], how="diagonal_relaxed")


def _masked(parents: pl.DataFrame) -> pl.DataFrame:
    """A new row for each parent, of the same round: masking is part of bringing data in."""
    said = zip(parents["messages"].to_list(), parents["privacy_found"].to_list(), strict=True)
    made = [[_without(m, [Found(**f) for f in found]) for m in messages] for messages, found in said]
    ids = [
        row_id(messages, source, parent)
        for messages, source, parent in zip(made, parents["source"], parents["id"], strict=True)
    ]
    nothing = {"privacy_found": pl.lit([], dtype=FOUND), "privacy_kinds": pl.lit(None, dtype=pl.String)}
    return parents.select(
        *[c for c in ("split",) if c in parents.columns],
        *[value.alias(c) for c, value in nothing.items() if c in parents.columns],
        pl.Series("id", ids, dtype=pl.String),
        pl.Series("messages", made, dtype=parents.schema["messages"]),
        "source",
        method=pl.lit("privacy-mask"),
        parent_id="id",
        round="round",
        drop_reason=pl.lit(None, dtype=pl.String),
    )


def _texts(message: dict[str, str | None]) -> list[str]:
    """All that a message says: what is beside its content too, such as its reasoning."""
    return [text for text in (message["content"], *(message.get(name) for name in SPOKEN)) if text]


def _without(message: dict[str, str | None], found: list[Found]) -> dict[str, str | None]:
    """The message with masks in it. A bare number in a tool call's JSON becomes a text, so that it stays JSON."""
    said = {name: text and _mask(text, found) for name, text in message.items() if name != "role"}
    calls, masked = message.get("tool_calls"), said.get("tool_calls")
    if masked and not _is_json(masked) and _is_json(calls):
        said["tool_calls"] = _mask(calls, found, quoted=True)
    return {**message, **said}


def _mask(text: str, found: list[Found], quoted: bool = False) -> str:
    """Longest first, so that what stands within another is gone by then; within a longer word only if nowhere else.

    A word is of ASCII: Chinese has no spaces around an address.
    """
    for one in sorted(found, key=lambda f: -len(f.text)):
        mask = f"<{one.kind}>"
        there = rf"(?<!\w){re.escape(one.text)}(?!\w)"
        if quoted:
            text = re.sub(rf"(?<=[:,\[\s]){re.escape(one.text)}(?=[,\]}}\s])", lambda _, mask=mask: f'"{mask}"', text)
        text, times = re.subn(there, lambda _, mask=mask: mask, text, flags=re.ASCII)
        text = text if times else text.replace(one.text, mask)
    return text


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
