"""The elements of a JSON array, read line by line, past what is broken in it."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any


def _number(text: str) -> float | str:
    """A number, or the text of one that is too large for a float."""
    value = float(text)
    return value if math.isfinite(value) else text


# NaN and Infinity are no JSON; what is written later holds their names.
DECODER = json.JSONDecoder(parse_constant=str, parse_float=_number)
LONGEST_ELEMENT = 1 << 24  # characters that are read on for the end of an element
_APART = " \t\r\n,"
_BETWEEN = re.compile(rf"[{_APART}]*")
_CUT = 16  # characters from the end within which an error may come of where a line was cut into pieces


@dataclass(frozen=True, slots=True)
class Found:
    """One record of a file, or why there is none."""

    line: int
    raw: str
    record: Any = None
    reason: str | None = None
    note: str | None = None
    ends: bool = True  # False for a part of a line that goes on


@dataclass(slots=True)
class _Ahead:
    """What was read and not yet understood."""

    text: str = ""
    line: int = 1  # the line on which the text starts
    last_line: int = 1
    partial: bool = False  # the text ends within a line
    note: str | None = None
    closed: bool = False
    lost: Found | None = None  # a broken element, and where the next one may start
    resume: re.Pattern[str] | None = None

    def add(self, found: Found) -> None:
        if not self.text:
            self.line = self.last_line = found.line
        self.text += "\n" * (found.line - self.last_line) + found.raw
        self.last_line, self.partial = found.line, not found.ends
        self.note = self.note or found.note


def in_array(lines: Iterator[Found], opened: bool = False) -> Iterator[Found]:
    """The elements of an array. A broken one is a reject, and reading goes on at the next that starts like it.

    Lines may come in parts. With `opened`, the objects follow each other without brackets around them.
    """
    ahead, bare = _Ahead(), opened
    for line in lines:
        if line.reason:
            yield line
            continue
        if not line.raw.strip():
            continue
        if not opened:
            line, opened = replace(line, raw=line.raw.split("[", 1)[1]), True
        if ahead.closed:
            yield replace(line, raw=line.raw.strip(), reason="not JSON: text after the end of the array")
            continue
        if ahead.lost:
            if not (here := ahead.resume.search(line.raw)):
                continue
            yield ahead.lost
            ahead.lost, line = None, replace(line, raw=line.raw[here.start() :])
        ahead.add(line)
        closes = line.raw.rstrip().rstrip(",").endswith(("}", "]"))
        if closes or not line.ends or ahead.text.lstrip(_APART)[:1] not in ("{", "["):
            yield from _elements(ahead)
    start = _BETWEEN.match(ahead.text).end()
    if ahead.lost:
        yield ahead.lost
    elif rest := ahead.text[start:].strip():
        line = ahead.line + ahead.text.count("\n", 0, start)
        yield Found(line, rest, reason="not JSON: the file ends in the middle of an element")
    elif not ahead.closed and not bare:
        yield Found(ahead.last_line, "", reason="not JSON: the array has no end, so the file may be cut off")


def _elements(ahead: _Ahead) -> Iterator[Found]:
    """Take from the text ahead every element that is complete."""
    text, at, line = ahead.text, 0, ahead.line
    while (start := _BETWEEN.match(text, at).end()) < len(text):
        here = line + text.count("\n", at, start)
        if text[start] == "]":
            ahead.closed, at = True, len(text)
            if rest := text[start + 1 :].strip():
                yield Found(here, rest, reason="not JSON: text after the end of the array")
            break
        try:
            record, end = DECODER.raw_decode(text, start)
            yield Found(here, text[start:end], record, note=ahead.note)
        except (ValueError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError) and _goes_on(error, text, start, ahead.partial):
                break
            ahead.resume = _next_element(text, start)
            after = ahead.resume.search(text, getattr(error, "pos", start) + 1)
            end = after.start() if after else len(text)
            lost = Found(here, text[start:end].strip(), reason=why_not_json(error, start), note=ahead.note)
            if after is None:
                ahead.lost, at = lost, end
                break
            yield lost
        line, at = here + text.count("\n", start, end), end
    ahead.text, ahead.line = text[at:], line
    if not ahead.text.strip():
        ahead.text, ahead.note = "", None


def _goes_on(error: json.JSONDecodeError, text: str, start: int, partial: bool) -> bool:
    """Whether an element is only cut: by the end of a line, or anywhere if a line comes in parts."""
    if not partial:
        return len(text[error.pos :].strip()) <= 1
    cut = error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip()) - _CUT
    return cut and len(text) - start <= LONGEST_ELEMENT


def _next_element(text: str, at: int) -> re.Pattern[str]:
    """How a line that starts an element looks: indented as this one is, if this one starts its line."""
    before = text[text.rfind("\n", 0, at) + 1 : at]
    if before.strip():
        return re.compile(r"(?m)^[ \t]*\{|(?<=\}),[ \t]*(?=\{)|^,[ \t]*(?=\{)")
    return re.compile(rf"(?m)^{before}\{{")


def why_not_json(error: ValueError | RecursionError, start: int = 0) -> str:
    if isinstance(error, RecursionError):
        return "not JSON: nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg.removesuffix(' at')} at character {error.pos - start + 1}"
    return f"not JSON: {error}"  # a number of more digits than Python reads
