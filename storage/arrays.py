"""The elements of a JSON array, read line by line, past what is broken in it."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
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
_NEXT = re.compile(r"(?m)^[ \t]*\{|(?<=\}),[ \t]*(?=\{)|^,[ \t]*(?=\{)")
_SHORT = 1 << 13  # characters of an element that is tried at each of its lines
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

    held: list[str] = field(default_factory=list)
    length: int = 0
    line: int = 1  # the line on which the text starts
    last_line: int = 1
    partial: bool = False  # the text ends within a line
    note: str | None = None
    closed: bool = False
    lost: Found | None = None  # a broken element, and where the next one may start
    resume: re.Pattern[str] | None = None
    wait: int = 0  # characters until which a long element that goes on is not tried again

    @property
    def text(self) -> str:
        if len(self.held) > 1:
            self.held = ["".join(self.held)]
        return self.held[0] if self.held else ""

    @text.setter
    def text(self, text: str) -> None:
        self.held, self.length = [text], len(text)

    def add(self, found: Found) -> None:
        if not self.length:
            self.line = self.last_line = found.line
        self.held += ["\n" * (found.line - self.last_line), found.raw]
        self.length += found.line - self.last_line + len(found.raw)
        self.last_line, self.partial = found.line, not found.ends
        self.note = self.note or found.note


def in_array(lines: Iterator[Found], opened: bool = False) -> Iterator[Found]:
    """The elements of an array. A broken one is a reject, and reading goes on at the next that starts like it.

    Lines may come in parts. With `opened`, the objects follow each other without brackets around them.
    """
    ahead, bare = _Ahead(), opened
    for line in lines:
        if line.reason:  # the element that it is of is lost, and with the first one the bracket before it
            if ahead.length and not ahead.lost:
                yield from _elements(ahead)  # what waited for the end of a long one
            if ahead.lost:
                yield ahead.lost
            start = _BETWEEN.match(ahead.text).end()
            ahead.resume = _next_element(ahead.text, start) if ahead.text[start:] else _NEXT
            ahead.lost, ahead.text, ahead.wait, opened = line, "", 0, True
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
        if (closes or not line.ends or not _begun(ahead)) and ahead.length >= ahead.wait:
            yield from _elements(ahead)
    if ahead.wait:
        yield from _elements(ahead)
    start = _BETWEEN.match(ahead.text).end()
    if ahead.lost:
        yield ahead.lost
    elif rest := ahead.text[start:].strip():
        line = ahead.line + ahead.text.count("\n", 0, start)
        yield Found(line, rest, reason="not JSON: the file ends in the middle of an element")
    elif not ahead.closed and not bare:
        yield Found(ahead.last_line, "", reason="not JSON: the array has no end, so the file may be cut off")


def _begun(ahead: _Ahead) -> bool:
    """Whether the text ahead begins with an object or a list; what is apart before it is short."""
    for piece in ahead.held:
        if (start := _BETWEEN.match(piece).end()) < len(piece):
            return piece[start] in "{["
    return False


def _elements(ahead: _Ahead) -> Iterator[Found]:
    """Take from the text ahead every element that is complete."""
    text, at, line, goes_on = ahead.text, 0, ahead.line, False
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
                goes_on = True
                break
            ahead.resume = _next_element(text, start)
            after = ahead.resume.search(text, getattr(error, "pos", start) + 1)
            end = after.start() if after else len(text)
            why = _why_too_long(len(text) - start) or why_not_json(error, start)
            lost = Found(here, text[start:end].strip(), reason=why, note=ahead.note)
            if after is None:
                ahead.lost, at = lost, end
                break
            yield lost
        line, at = here + text.count("\n", start, end), end
    ahead.text, ahead.line = text[at:], line
    # A long one is tried again when half as much has come again, so that each character is read a few times at most.
    ahead.wait = ahead.length * 3 // 2 if goes_on and ahead.length > _SHORT else 0
    if not ahead.text.strip():
        ahead.text, ahead.note = "", None


def _goes_on(error: json.JSONDecodeError, text: str, start: int, partial: bool) -> bool:
    """Whether an element is only cut: by the end of a line, or anywhere if a line comes in parts."""
    if _why_too_long(len(text) - start):
        return False
    if not partial:
        return len(text[error.pos :].strip()) <= 1
    return error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip()) - _CUT


def _why_too_long(length: int) -> str | None:
    if length <= LONGEST_ELEMENT:
        return None
    return f"element of more than {LONGEST_ELEMENT:,} characters, or one that has no end"


def _next_element(text: str, at: int) -> re.Pattern[str]:
    """How a line that starts an element looks: indented as this one is, if this one starts its line."""
    before = text[text.rfind("\n", 0, at) + 1 : at]
    if before.strip() or "\n" not in text:  # which may be a part of a line
        return _NEXT
    return re.compile(rf"(?m)^{before}\{{")


def why_not_json(error: ValueError | RecursionError, start: int = 0) -> str:
    if isinstance(error, RecursionError):
        return "not JSON: nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg.removesuffix(' at')} at character {error.pos - start + 1}"
    return f"not JSON: {error}"  # a number of more digits than Python reads
