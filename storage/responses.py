"""What models answered, in one file beside the datasets. An answer that is stored stays: it is never written again.

Beside the answers lie sums of what was spent that no dataset tells of (yet): by a run under a budget, and by steps that
were cut short.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TABLE = """create table if not exists responses (
    key text, most integer, tokens integer, truncated integer, response text, primary key (key, most)
) without rowid"""
_FIND = """select key, response from responses
where key in (select value from json_each(?)) and (most = ? or (not truncated and tokens <= ?))
order by most = ?, most desc"""
_SUMS = (
    "create table if not exists sums (account text, what text, amount real, primary key (account, what)) without rowid"
)
_ADD = """insert into sums values (?, ?, ?)
on conflict (account, what) do update set amount = amount + excluded.amount"""
_LARGER = """insert into sums select * from other.sums where true
on conflict (account, what) do update set amount = excluded.amount where excluded.amount > amount"""
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
        """Add these answers to those in another file; one that is there stays. Returns how many were added.

        Of a sum that both have the larger one is kept: sums only grow, and a copy of a copy counts nothing twice.
        """
        with self._open() as mine:
            mine.execute(_SUMS)
        with Responses(other)._open() as database:
            database.execute(_SUMS)
            database.commit()  # none can be attached inside a transaction
            database.execute("attach ? as other", (str(self.path),))
            added = database.execute("insert or ignore into responses select * from other.responses").rowcount
            return added + database.execute(_LARGER).rowcount

    def add(self, account: str, amounts: Mapping[str, float]) -> dict[str, float]:
        """Add to the sums of an account, and tell them."""
        with self._open() as database:
            database.execute(_SUMS)
            database.executemany(_ADD, [(account, what, amount) for what, amount in amounts.items()])
            return dict(database.execute("select what, amount from sums where account = ?", (account,)))

    def sums(self, account: str) -> dict[str, float]:
        return self.add(account, {}) if self.path.exists() else {}

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
