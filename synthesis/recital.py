"""What of a text a model was trained on word for word: a teacher that recites has written nothing.

A text is recited where more than half of its words stand in runs of eight that the training text has too (the rule by
which `heldout-overlap` finds quotations, Lambert et al., 2024, arXiv 2411.15124). A text of four to seven words is
recited if it is a whole text of the training; under four, anybody says the same.

The training text is known by its runs, hashed: 32 bits of each, so that a run that it does not have passes for one in
about (runs / 2^32) of cases, and the text itself cannot be read out of them.
"""

import functools
import hashlib
import re
from collections.abc import Iterable

import numpy as np
import polars as pl

from curation.step import StepError
from storage.schema import Messages

RUN, LEAST, SHARE = 8, 4, 0.5  # words of a run, of the shortest text that is looked at, share that must be in runs
_WORD = re.compile(r"\w+")
_POWERS = np.array([pow(0x9E3779B97F4A7C15, k, 2**64) for k in range(RUN)], dtype=np.uint64)


class Recited:
    """Texts that a model was trained on; empty where they are not known.

    `known` has the column `run` (see `runs`), or is a dataset of rows, all of whose texts count; else StepError.
    """

    def __init__(self, known: pl.DataFrame | None) -> None:
        self._runs = np.empty(0, np.uint32)
        if known is not None:
            if not {"run", "messages"} & {*known.columns}:
                raise StepError("--training-text wants a dataset of rows, and this is a choice or a table")
            found = known["run"].to_numpy() if "run" in known.columns else runs(_said(known["messages"].to_list()))
            self._runs = np.unique(found.astype(np.uint32))

    def __contains__(self, text: str) -> bool:
        words = _words(text)
        if len(words) < LEAST or not len(self._runs):
            return False
        mine = _hashed(words)
        place = np.minimum(np.searchsorted(self._runs, mine), len(self._runs) - 1)
        starts = np.flatnonzero(self._runs[place] == mine)
        covered = np.zeros(len(words), bool)
        for start in starts:
            covered[start : start + RUN] = True
        return bool(covered.mean() > SHARE)


def runs(texts: Iterable[str]) -> np.ndarray:
    """The runs of eight words of some texts, and the whole of shorter ones, hashed: uint32, sorted, each once."""
    found = [_hashed(words) for text in texts if len(words := _words(text)) >= LEAST]
    return np.unique(np.concatenate(found)) if found else np.empty(0, np.uint32)


def _said(conversations: list[Messages]) -> Iterable[str]:
    """Each message, and each line of it: an input below an instruction is a text of its own."""
    for m in (m for messages in conversations for m in messages):
        yield from {m["content"] or "", *(m["content"] or "").splitlines()}


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _hashed(words: list[str]) -> np.ndarray:
    """Of each run of eight words one number; of fewer words one number in all, which no longer text has."""
    numbers = np.array([_number(word) for word in words], dtype=np.uint64)
    if len(words) < RUN:
        numbers = np.concatenate([numbers, np.full(RUN - len(words), _number(""), np.uint64)])
    summed = np.lib.stride_tricks.sliding_window_view(numbers, RUN) * _POWERS
    mixed = summed.sum(axis=1, dtype=np.uint64) * np.uint64(0xFF51AFD7ED558CCD)
    return (mixed >> np.uint64(32)).astype(np.uint32)


@functools.lru_cache(1 << 17)
def _number(word: str) -> int:
    """The same on every machine and for ever, as it stands in files."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
