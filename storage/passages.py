"""Text and Markdown cut into passages: at headings, else between paragraphs, none much longer than LONGEST."""

import re
from collections.abc import Iterator

from storage.arrays import Found

LONGEST = 4000  # characters of a passage; one paragraph may be longer, up to what a line may be
_HEADING = re.compile(r"(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$")
_FENCE = re.compile(r"[ ]{0,3}(```|~~~)")


def passages(lines: Iterator[Found], markdown: bool) -> Iterator[Found]:
    """Passages as records with `text`, and in Markdown the `heading` they stand under, as "Guide > Install".

    A passage ends where a heading or, once it is long, where a paragraph begins. Blank lines are not among `lines`:
    a gap in the numbers tells them. A heading in a fenced block of code is none.
    """
    under: list[tuple[int, str]] = []
    said: list[Found] = []
    length, fence = 0, ""
    for line in lines:
        if line.reason:
            yield from _passage(said, under)
            said, length = [], 0
            yield line
            continue
        if markdown and (mark := _FENCE.match(line.raw)):
            fence = mark[1] if not fence else "" if mark[1] == fence else fence
        heading = _HEADING.match(line.raw) if markdown and not fence else None
        apart = bool(said) and line.line > said[-1].line + 1
        if said and (heading or (apart and not fence and length >= LONGEST)):
            yield from _passage(said, under)
            said, length = [], 0
        if heading:
            under = [h for h in under if h[0] < len(heading[1])] + [(len(heading[1]), heading[2])]
        said.append(line)
        length += len(line.raw)
        if length > 4 * LONGEST and not apart and len(said) > 1:  # no paragraph ends: cut it at this line
            yield from _passage(said, under)
            said, length = [], 0
    yield from _passage(said, under)


def _passage(said: list[Found], under: list[tuple[int, str]]) -> Iterator[Found]:
    if not said:
        return
    pieces, last = [], said[0].line
    for line in said:
        pieces.append("\n" * (line.line - last) + line.raw.rstrip("\r\n"))
        last = line.line
    text = "".join(pieces)
    record = {"text": text} | ({"heading": " > ".join(title for _, title in under)} if under else {})
    yield Found(said[0].line, text, record, note=next((line.note for line in said if line.note), None))
