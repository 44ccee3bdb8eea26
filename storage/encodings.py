"""Text that is no UTF-8: its encoding is guessed once for a file, and used for the lines that need it."""

from charset_normalizer import from_bytes

from storage.turns import storable

ENOUGH = 64  # bytes beyond ASCII from which a guess is better than Latin-1


class Guess:
    """How the lines of one file that are no UTF-8 are read."""

    def __init__(self) -> None:
        self._encoding: str | None = None

    def learn(self, lines: list[bytes]) -> None:
        """Guess from the first lines that are no UTF-8; with too little to tell, Latin-1, which reads every byte."""
        if self._encoding is None:
            said = b"\n".join(lines)[: 1 << 16]
            best = from_bytes(said).best() if sum(byte > 127 for byte in said) >= ENOUGH else None
            self._encoding = best.encoding if best and best.encoding not in ("ascii", "utf_8") else "latin-1"

    def decode(self, line: bytes) -> tuple[str, str | None]:
        """The text of a line, and a note on how it was read if not as UTF-8."""
        try:
            return line.decode(), None
        except UnicodeDecodeError:
            self.learn([line])
        if self._encoding != "latin-1":
            try:
                said = f"decoded as {self._encoding}, guessed from the file, since it was no UTF-8"
                return storable(line.decode(self._encoding)), said
            except UnicodeDecodeError:
                pass
        return line.decode("latin-1"), "decoded as Latin-1, since it was no UTF-8"


def is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
