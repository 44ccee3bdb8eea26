"""Pieces of a file as its lines."""

from collections.abc import Iterator

from storage.arrays import Found
from storage.encodings import Guess, is_utf8

LONGEST_LINE = 1 << 24  # bytes; a longer one is not parsed
_SHOWN = 8000  # bytes of such a line that are kept

Numbered = tuple[list[int], list[bytes], list[Found]]  # numbers and bytes of lines, and lines that are too long


def line_groups(pieces: Iterator[bytes], first: int = 1, blank: bool = False) -> Iterator[Numbered]:
    """All lines with their numbers from `first`, a piece's worth at a time; those that are blank only if wanted."""
    rest: list[bytes] = []  # of a line that goes on
    held, number = 0, first
    for piece in pieces:
        *lines, last = piece.split(b"\n")
        too_long: list[Found] = []
        if not lines:  # the piece is all of one line
            held += len(last)
            rest += [last] if held <= LONGEST_LINE + len(last) else []
            continue
        length = held + len(lines[0])
        if length > LONGEST_LINE:
            too_long.append(_too_long(number, length, rest[0] if rest else lines[0]))
            lines[0] = b""
        else:
            lines[0] = b"".join([*rest, lines[0]])
        yield *_numbered(lines, number, blank), too_long
        number += len(lines)
        rest, held = [last], len(last)
    if held > LONGEST_LINE:
        yield [], [], [_too_long(number, held, rest[0])]
    else:
        yield *_numbered([b"".join(rest)], number, blank), []


def text_lines(pieces: Iterator[bytes], guess: Guess, blank: bool = False) -> Iterator[Found]:
    """Lines as text, without their ends; with `blank` those that are blank too, and of ends like \\r\\n the \\r."""
    for numbers, lines, too_long in line_groups(pieces, blank=blank):
        guess_from(lines, guess)
        instead = {found.line: found for found in too_long}
        there = dict(zip(numbers, lines, strict=True))
        for number in sorted({*there, *instead}) if instead else numbers:
            if number in instead:
                yield instead[number]
                continue
            text, note = guess.decode(there[number])
            yield Found(number, text if blank else text.removesuffix("\r"), note=note)


def array_pieces(pieces: Iterator[bytes], guess: Guess) -> Iterator[Found]:
    """Text of a file that may be one line of any length: lines, or parts of one cut after a brace.

    What is too long without one is told once, and its end follows.
    """
    number, rest = 1, b""
    dropped, shown = 0, b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        guess_from(lines, guess)
        cut = rest.rfind(b"}") + 1
        if dropped and (lines or cut):
            yield _too_long(number, dropped, shown, "element")
            dropped = 0
        for line in lines:
            yield _text(number, line, guess)
            number += 1
        if cut:
            yield _text(number, rest[:cut], guess, ends=False)
            rest = rest[cut:]
        elif len(rest) > LONGEST_LINE:
            shown, dropped, rest = shown if dropped else rest[:_SHOWN], dropped + len(rest), b""
    if dropped:
        yield _too_long(number, dropped, shown, "element")
    yield _text(number, rest, guess)


def guess_from(lines: list[bytes], guess: Guess) -> None:
    """Learn the encoding of a file from the first of its lines that are no UTF-8, all of a piece at once."""
    if not is_utf8(b"\n".join(lines)):
        guess.learn([line for line in lines if not is_utf8(line)])


def _text(number: int, line: bytes, guess: Guess, ends: bool = True) -> Found:
    text, note = guess.decode(line)
    return Found(number, text, note=note, ends=ends)


def _numbered(lines: list[bytes], first: int, blank: bool) -> tuple[list[int], list[bytes]]:
    if blank or (all(lines) and not any(map(bytes.isspace, lines))):
        return list(range(first, first + len(lines))), lines
    both = [(n, line) for n, line in enumerate(lines, first) if line and not line.isspace()]
    return [n for n, _ in both], [line for _, line in both]


def _too_long(number: int, length: int, start: bytes, what: str = "line") -> Found:
    raw = start[:_SHOWN].decode("utf-8", "replace")
    return Found(number, raw, reason=f"{what} of {length:,} bytes is over the limit of {LONGEST_LINE:,}")
