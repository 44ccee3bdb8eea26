"""The bytes of a file, unpacked and as UTF-8, a piece at a time."""

import bz2
import codecs
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

PIECE = 1 << 20  # bytes read at once
BOMB_FROM, BOMB_RATIO = 1 << 28, 250  # a file that unpacks to more than this, and to so many times its size, is refused
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MARKS = (  # the longer first: UTF-32's begins like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Damaged(Exception):
    """The file cannot be read on from here."""


@dataclass(slots=True)
class Stream:
    """An open file: its unpacked pieces, how many of its stored bytes are read, and how it was stored."""

    pieces: Iterator[bytes]
    reached: Callable[[], int]
    packed: str | None
    encoding: str | None
    """What the bytes were before they were made UTF-8, if something else."""
    close: Callable[[], None]


def open_stream(file: BinaryIO) -> Stream:
    """Unpack a file by what it begins with; its name does not matter."""
    unpacked, packed = _unpacked(file)
    pieces = _pieces(unpacked, file, packed)
    first = next(pieces, b"")
    encoding = _wide(first)
    pieces = _chained(first, pieces)
    if encoding:
        pieces = _as_utf8(pieces, encoding)
    at = [0]

    def reached() -> int:
        if not getattr(file, "closed", False):  # who unpacks zstd closes the file at its end
            at[0] = file.tell()
        return at[0]

    return Stream(pieces, reached, packed, encoding, file.close)


def _unpacked(file: BinaryIO) -> tuple[Any, str | None]:
    if not hasattr(file, "seek"):  # rows of the Hub
        return file, None
    try:
        start = file.read(8)
    except (EOFError, zlib.error, zipfile.BadZipFile) as e:  # a small member of an archive is unpacked by this
        raise Damaged(f"the compressed file is cut off or damaged: {e}") from e
    file.seek(0)
    packed = next((name for magic, name in _PACKED.items() if start.startswith(magic)), None)
    if packed == "zstd":
        return pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"), packed
    opened = {"gzip": gzip.GzipFile, "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile, None: lambda f: f}[packed]
    return opened(fileobj=file) if packed == "gzip" else opened(file), packed


def _pieces(stream: Any, file: BinaryIO, packed: str | None) -> Iterator[bytes]:
    """About PIECE bytes at a time; what can be read of a file that is cut off comes before the error."""
    read = stream.read if packed == "zstd" or not hasattr(stream, "read1") else stream.read1
    size = 1 << 16 if packed == "zstd" else PIECE
    given, held, length = 0, [], 0
    while True:
        try:
            piece = read(size)
        except (
            EOFError,
            zlib.error,
            lzma.LZMAError,
            zipfile.BadZipFile,
            pa.ArrowException,
            OSError,
            RuntimeError,
        ) as e:
            if isinstance(e, OSError) and (packed is None or not of_decoder(e)):
                raise  # a disk or a network that fails is no damage of the file: nothing is sealed
            if held:
                yield b"".join(held)
            raise Damaged(f"the compressed file is cut off or damaged: {e}") from e
        if piece:
            held.append(piece)
            length += len(piece)
            given += len(piece)
        if length >= PIECE or (held and not piece):
            yield b"".join(held)
            held, length = [], 0
        if not piece:
            return
        if packed and is_bomb(given, file.tell()):
            raise Damaged(
                f"the file unpacks to more than {BOMB_RATIO} times its size, so it is read no further; "
                "unpack it yourself if you trust it"
            )


def is_bomb(unpacked: int, stored: int) -> bool:
    """Whether so many bytes are too many to come of so few."""
    return unpacked > BOMB_FROM and unpacked > BOMB_RATIO * max(stored, 1)


def of_decoder(error: OSError) -> bool:
    """Whether a library that decodes says that the data is damaged: it knows no number of an error, and no timeout."""
    return error.errno is None and type(error) in (OSError, gzip.BadGzipFile)


def _chained(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first.removeprefix(codecs.BOM_UTF8)
    yield from rest


def _wide(start: bytes) -> str | None:
    """UTF-16 or UTF-32 by its mark, or by the zeros that it has for every second byte of plain text."""
    for mark, name in _MARKS:
        if start.startswith(mark):
            return name
    seen = start[:4096]
    if len(seen) >= 16 and not seen.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
        for name, zeros, texts in (("utf-16-le", seen[1::2], seen[::2]), ("utf-16-be", seen[::2], seen[1::2])):
            if zeros.count(0) > 0.7 * len(zeros) and texts.count(0) < 0.1 * len(texts):
                return name
    return None


def _as_utf8(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    for n, piece in enumerate(pieces):
        text = decoder.decode(piece)
        yield (text.removeprefix("\ufeff") if n == 0 else text).encode("utf-8", "replace")
    if rest := decoder.decode(b"", final=True):
        yield rest.encode("utf-8", "replace")
