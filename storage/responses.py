"""What models answered, in one file beside the datasets. An answer that is stored stays: it is never written again."""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TABLE = """create table if not exists responses (
    key text, most integer, tokens integer, truncated integer, response text, primary key (key, most)
) without rowid"""
_FIND = """select key, response from responses
where key in (select value from json_each(?)) and (most = ? or (not truncated and tokens <= ?))
order by most = ?, most desc"""
_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Answer:
    key: str
    response: str
    """JSON."""
    most: int = 0
    """Tokens that it was allowed."""
    tokens: int = 0
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Responses:
    path: Path

    def find(self, keys: list[str], most: int = 0) -> dict[str, str]:
        """Answers that are right for so many tokens at most: made for as many, or for others and ended before."""
        found: dict[str, str] = {}
        if self.path.exists():
            with self._open() as database:
                for start in range(0, len(keys), _AT_ONCE):
                    wanted = json.dumps(keys[start : start + _AT_ONCE])
                    found.update(database.execute(_FIND, (wanted, most, most, most)))
        return found

    def put(self, answers: Iterable[Answer]) -> None:
        """Keep answers; where another process has kept one meanwhile, that one stays."""
        rows = [(a.key, a.most, a.tokens, a.truncated, a.response) for a in answers]
        with self._open() as database:
            database.executemany("insert or ignore into responses values (?, ?, ?, ?, ?)", rows)

    def copy_into(self, other: Path) -> int:
        """Add these answers to those in another file; one that is there stays. Returns how many were added."""
        with Responses(other)._open() as database:
            database.commit()  # none can be attached inside a transaction
            database.execute("attach ? as other", (str(self.path),))
            return database.execute("insert or ignore into responses select * from other.responses").rowcount

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self.path, timeout=600)
        try:
            with database:
                database.execute(_TABLE)
                yield database
        finally:
            database.close()
