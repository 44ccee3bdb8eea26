"""How rows are written by a model: ask, read, refuse, ask again; bounded, and every answer is accounted for.

What comes of each answer is a row: one that is kept, or one that says in `drop_reason` why it is not, with what was
asked and said where that is no row at all. For each row that was wanted and is missing in the end there is one more,
`short of the quota`. So kept and missing rows are the quota, and the counts of a dataset say what a teacher is worth.

Beside a row stand `clear_writer` (the model that wrote it, as beside a correction), `grown_prompt` (the wording that it
was asked with) and `grown_seed` (of the attempt; where a bound makes it several calls, each draws by 2^24 more). Raw
answers lie in the store of responses: read by another parser they cost nothing.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from curation.step import Completion, Engine
from storage.schema import ROW, Messages, message, row_id

OF_GROWN = {"clear_writer": pl.String, "grown_prompt": pl.String, "grown_seed": pl.Int64}
_AT_ONCE = 64  # requests between two looks at the clock, where seconds are bounded
_APART = 1 << 24  # between the seeds of the calls of one attempt


@dataclass(frozen=True, slots=True)
class Place:
    """Where rows are wanted: so many from one parent; None is as many as come."""

    parent: dict[str, Any]
    quota: int | None = 1


@dataclass(frozen=True, slots=True)
class Question:
    prompt: Messages
    version: str


@dataclass(frozen=True, slots=True)
class Unread:
    """In the place of a row: what was said, and why it is none."""

    text: str
    why: str


@dataclass(frozen=True, slots=True)
class Written:
    place: Place
    messages: Messages
    version: str | None = None  # of the prompt; none where nothing was asked
    seed: int | None = None
    refused: str | None = None


class Allowance:
    """An engine with what may still be asked of it: tokens that it writes, and seconds that it works.

    Tokens that come out of the store of responses count like others, so that the same call ends where it ended before;
    seconds are those that the engine really took. What might pass the bound of tokens is not asked; no request in
    flight is cut for time.
    """

    def __init__(self, engine: Engine, tokens: int | None = None, seconds: float | None = None) -> None:
        self.engine, self.tokens, self.seconds = engine, tokens, seconds
        self.ended: str | None = None  # what ran out, once something did
        self._began = engine.used["seconds"]

    def ask(
        self, prompts: list[Messages], *, seed: int, max_tokens: int, n: int = 1, **how: Any
    ) -> list[list[Completion] | None]:
        """Completions of each prompt; None from where on nothing is left."""
        answers: list[list[Completion] | None] = []
        calls = 0
        while left := prompts[len(answers) :]:
            if not (some := left[: self._room(len(left), max_tokens * n)]):
                break
            found = self.engine.generate(some, max_tokens=max_tokens, n=n, seed=seed + _APART * calls, **how)
            if self.tokens is not None:
                self.tokens -= sum(c.tokens for row in found for c in row)
            answers += found
            calls += 1
        return answers + [None] * (len(prompts) - len(answers))

    def _room(self, wanted: int, tokens: int) -> int:
        if self.seconds is not None:
            if self.engine.used["seconds"] - self._began >= self.seconds:
                self.ended = "the seconds are over"
                return 0
            wanted = min(wanted, _AT_ONCE)
        if self.tokens is None:
            return wanted
        if self.tokens < tokens:
            self.ended = "the tokens are spent"
        return min(wanted, max(0, self.tokens) // tokens)


def grow(
    places: Sequence[Place],
    allowance: Allowance,
    *,
    attempts: int,
    seed: int,
    how: Mapping[str, Any],
    ask: Callable[[Place, int, list[Messages]], list[Question]],
    read: Callable[[Place, str, bool], list[Messages | Unread]],
    refuse: Callable[[Place, Messages], str | None],
    verify: Callable[[list[Messages]], list[str | None]] | None = None,
) -> list[Written]:
    """Ask for every place until its quota is there, so many times at most.

    `ask` gives the questions of a place in an attempt, told what it has got so far; `read` makes rows of a text, told
    whether it was cut at `max_tokens`; `refuse` says why a row is not taken, and `verify` of many at once.
    """
    kept: list[list[Written]] = [[] for _ in places]
    refused: list[Written] = []
    why_short = ["its parent has nothing to show"] * len(places)
    for attempt in range(attempts):
        wanting = [i for i, place in enumerate(places) if _wants(place, kept[i])]
        said = [(i, q) for i in wanting for q in ask(places[i], attempt, [w.messages for w in kept[i]])]
        if allowance.ended:
            for i in {i for i, _ in said}:
                why_short[i] = allowance.ended
        if not said or allowance.ended:
            break
        new: list[tuple[int, Written]] = []
        for (i, question), reply in zip(
            said, allowance.ask([q.prompt for _, q in said], seed=seed + attempt, **how), strict=True
        ):
            if reply is None:
                why_short[i] = allowance.ended or ""
                continue
            why_short[i] = f"asked {attempt + 1} times"
            for found in _items(places[i], reply[0], read):
                made = Written(places[i], [], question.version, seed + attempt)
                if isinstance(found, Unread):
                    talk = [message(m["role"], m["content"]) for m in question.prompt]
                    refused.append(replace(made, messages=[*talk, message("assistant", found.text)], refused=found.why))
                    continue
                why = refuse(places[i], found) if _wants(places[i], kept[i]) else "beyond the quota"
                made = replace(made, messages=found, refused=why)
                if why:
                    refused.append(made)
                else:
                    kept[i].append(made)
                    new.append((i, made))
        if verify and new:
            for (i, made), why in zip(new, verify([w.messages for _, w in new]), strict=True):
                if why:
                    kept[i].remove(made)
                    refused.append(replace(made, refused=why))
    short = [
        Written(place, _unanswered(place), refused=f"short of the quota: {why_short[i]}")
        for i, place in enumerate(places)
        for _ in range((place.quota or 0) - len(kept[i]))
    ]
    return [*[w for mine in kept for w in mine], *refused, *short]


def frame(step: str, written: Sequence[Written], writer: str, round_: int) -> pl.DataFrame:
    """The rows of a `make` step; each has an id of its own, also where the same was refused twice."""
    lines = [
        {
            "id": row_id(
                w.messages,
                w.place.parent["source"],
                w.place.parent["id"],
                copy=-(1 + i + 1_000_000 * round_) if w.refused else round_,
            ),
            "messages": w.messages,
            "source": w.place.parent["source"],
            "method": step,
            "parent_id": w.place.parent["id"],
            "round": round_,
            "drop_reason": w.refused and f"{step}: {w.refused}",
            "clear_writer": writer if w.version else None,
            "grown_prompt": w.version,
            "grown_seed": w.seed,
        }
        for i, w in enumerate(written)
    ]
    return pl.DataFrame(lines, schema={**pl.from_arrow(ROW.empty_table()).schema, **OF_GROWN})


def in_another_script(text: str, like: str) -> bool:
    """Whether more than half of the letters are of scripts that the other text has no letter of."""
    mine, theirs = _scripts(text), _scripts(like)
    strange = sum(n for script, n in mine.items() if script not in theirs)
    return bool(theirs) and strange > mine.total() / 2


def _scripts(text: str) -> Counter[str]:
    return Counter(unicodedata.name(c, "?").partition(" ")[0] for c in text if c.isalpha())


def _wants(place: Place, kept: list[Written]) -> bool:
    return place.quota is None or len(kept) < place.quota


def _items(
    place: Place, said: Completion, read: Callable[[Place, str, bool], list[Messages | Unread]]
) -> list[Messages | Unread]:
    """The rows of an answer, each as it can be read."""
    if said.error is not None:
        return [Unread("", f"failed request: {said.error}")]
    if not said.text.strip():
        return [Unread("", "empty")]
    return read(place, said.text.strip(), said.truncated) or [Unread(said.text, "unreadable")]


def _unanswered(place: Place) -> Messages:
    return [*place.parent["messages"][:-1], message("assistant", "")]
