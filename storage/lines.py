"""Pieces of a file as its lines."""

from collections.abc import Iterator

from storage.arrays import Found
from storage.encodings import Guess, is_utf8

LONGEST_LINE = 1 << 24  # bytes; a longer one is not parsed
_SHOWN = 8000  # bytes of such a line that are kept

Numbered = tuple[list[int], list[bytes], list[Found]]  # numbers and bytes of lines, and lines that are too long


def line_groups(pieces: Iterator[bytes], first: int = 1) -> Iterator[Numbered]:
    """All lines that are not blank with their numbers from `first`, a piece's worth at a time."""
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
        yield *_filled(lines, number), too_long
        number += len(lines)
        rest, held = [last], len(last)
    if held > LONGEST_LINE:
        yield [], [], [_too_long(number, held, rest[0])]
    else:
        yield *_filled([b"".join(rest)], number), []


def text_lines(pieces: Iterator[bytes], guess: Guess, blank: bool = False) -> Iterator[Found]:
    """Lines as text, without their ends; `blank` ones too if wanted."""
    expected = 1
    for numbers, lines, too_long in line_groups(pieces):
        guess_from(lines, guess)
        for number, line in zip(numbers, lines, strict=True):
            text, note = guess.decode(line)
            for gap in range(expected, number if blank else expected):
                yield Found(gap, "")
            expected = number + 1
            yield Found(number, text.removesuffix("\r"), note=note)
        yield from too_long


def array_pieces(pieces: Iterator[bytes], guess: Guess) -> Iterator[Found]:
    """Text of a file that may be one line of any length: lines, or parts of one cut after a brace."""
    number, rest = 1, b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        guess_from(lines, guess)
        for line in lines:
            yield _text(number, line, guess)
            number += 1
        if cut := rest.rfind(b"}") + 1:
            yield _text(number, rest[:cut], guess, ends=False)
            rest = rest[cut:]
        elif len(rest) > LONGEST_LINE:
            yield _too_long(number, len(rest), rest, "element")
            rest = b""
    yield _text(number, rest, guess)


def guess_from(lines: list[bytes], guess: Guess) -> None:
    """Learn the encoding of a file from the first of its lines that are no UTF-8, all of a piece at once."""
    if not is_utf8(b"\n".join(lines)):
        guess.learn([line for line in lines if not is_utf8(line)])


def _text(number: int, line: bytes, guess: Guess, ends: bool = True) -> Found:
    text, note = guess.decode(line)
    return Found(number, text, note=note, ends=ends)


def _filled(lines: list[bytes], first: int) -> tuple[list[int], list[bytes]]:
    if all(lines) and not any(map(bytes.isspace, lines)):
        return list(range(first, first + len(lines))), lines
    both = [(n, line) for n, line in enumerate(lines, first) if line and not line.isspace()]
    return [n for n, _ in both], [line for _, line in both]


def _too_long(number: int, length: int, start: bytes, what: str = "line") -> Found:
    raw = start[:_SHOWN].decode("utf-8", "replace")
    return Found(number, raw, reason=f"{what} of {length:,} bytes is over the limit of {LONGEST_LINE:,}")
