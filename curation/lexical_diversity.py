"""MTLD, the measure of textual lexical diversity (McCarthy and Jarvis, 2010): the mean length of the runs of words that
keep their share of different words over 0.72, read forwards and backwards.

Words and values are those of the package `lexicalrichness` (Shen, 2022), at many times its speed: lower case, digits
and dashes left out, other ASCII punctuation between words. Where no word comes twice there is no run that ends, and the
measure is the number of words, its natural bound; so a text without words has 0.
"""

import functools
import string
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import polars as pl

FACTOR = 0.72
_WIDE_DASH = "[\u2013\u2014]"
_WIDE_SPACE = r"[\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"
_SPACE = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f "  # as Python's split has it
_AT_ONCE = 1 << 24  # bytes that are looked at together, so that memory stays flat
_INSIDE, _BETWEEN, _LEFT_OUT = 0, 1, 2
_KINDS = np.zeros(256, np.uint8)
_KINDS[[ord(c) for c in string.punctuation + _SPACE]] = _BETWEEN
_KINDS[[ord(c) for c in string.digits + "-"]] = _LEFT_OUT


def mtld(texts: pl.Series) -> pl.Series:
    """MTLD of each text; float64, no nulls."""
    together = np.cumsum(texts.str.len_bytes().fill_null(0).cast(pl.Int64).to_numpy()) // _AT_ONCE
    starts = np.flatnonzero(np.diff(together, prepend=-1))
    found = [_of_some(texts[a:b]) for a, b in pairwise([*starts, len(texts)])]
    return pl.Series(np.concatenate(found) if found else [], dtype=pl.Float64)


def _of_some(texts: pl.Series) -> np.ndarray:
    low = texts.fill_null("").str.to_lowercase().str.replace_all(_WIDE_DASH, "").str.replace_all(_WIDE_SPACE, " ")
    ends = np.cumsum(low.str.len_bytes().cast(pl.Int64).to_numpy())
    return _compiled()(np.frombuffer(low.str.join("").item().encode(), np.uint8), ends, _KINDS)


@functools.cache
def _compiled() -> Callable[..., np.ndarray]:
    import numba  # takes longer than most commands, which need none of it

    return numba.njit(nogil=True)(_measure)


def _measure(text: np.ndarray, ends: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """MTLD of each text; `ends` says where in the bytes it ends. Words are told apart by a hash of 64 bits."""
    longest, start = 0, 0
    for end in ends:
        longest, start = max(longest, end - start), end
    size = 2
    while size < longest:  # a text of so many bytes has half as many words, at most
        size *= 2
    words, runs = np.empty(size, np.uint64), np.zeros(size, np.int64)  # a set; a slot with another run's number is free
    said, out, run, start = np.empty(longest // 2 + 1, np.uint64), np.zeros(len(ends)), 0, 0
    for row in range(len(ends)):
        n, hashed, inside = 0, np.uint64(0), False
        for k in range(start, ends[row] + 1):
            kind = kinds[text[k]] if k < ends[row] else 1
            if kind == 0:
                hashed = (hashed ^ np.uint64(text[k] + 1)) * np.uint64(0x100000001B3)
                hashed ^= hashed >> np.uint64(29)
                inside = True
            elif kind == 1 and inside:
                said[n] = hashed
                n, hashed, inside = n + 1, np.uint64(0), False
        start = ends[row]
        for step in (1, -1):
            factors, different, length = 0.0, 0, 0
            run += 1
            for k in range(n):
                word = said[k] if step == 1 else said[n - 1 - k]
                slot = np.int64(word & np.uint64(size - 1))
                while runs[slot] == run and words[slot] != word:
                    slot = (slot + 1) & (size - 1)
                if runs[slot] != run:
                    words[slot], runs[slot] = word, run
                    different += 1
                length += 1
                if different / length <= FACTOR:
                    factors, different, length = factors + 1, 0, 0
                    run += 1
            if length:
                factors += (1 - different / length) / (1 - FACTOR)
            out[row] += (n / factors if factors else n) / 2
    return out
