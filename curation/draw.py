"""Seeded draws that depend on a row's id alone: other rows, their order and their number change nothing for it."""

from hashlib import sha256

import numpy as np
import polars as pl

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's step: 2^64 over the golden ratio


def uniform(ids: pl.Series, seed: int, step: str = "", round: int = 0) -> np.ndarray:
    """One number in (0, 1) for each id (ids are hex hashes), seed, step and round.

    A step names itself, so that its draw has nothing to do with another step's of the same seed. The baseline `random`
    and the steps that only part equals draw by the seed alone.
    """
    text = pl.when(ids.str.contains(r"^[0-9a-f]{16}")).then(ids.str.slice(0, 16)).otherwise(pl.lit(None))
    whole = pl.select(text).to_series().str.to_integer(base=16, dtype=pl.UInt64, strict=False)
    if whole.null_count():
        whole = whole.fill_null(pl.Series([int.from_bytes(i.encode()[-8:], "big") for i in ids], dtype=pl.UInt64))
    if step:
        said = sha256(f"{step} {seed} {round}".encode()).digest()
        seed = int.from_bytes(said[:8], "big") >> 1
    with np.errstate(over="ignore"):
        z = whole.to_numpy() ^ (np.uint64(seed) + np.uint64(1)) * GOLDEN
    return (mixed(z) >> np.uint64(11)).astype(np.float64) / 2**53 + 2**-54


def exponential_keys(u: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """Keys whose rising order is a draw without replacement in proportion to `rate` (Efraimidis and Spirakis, 2006)."""
    return -np.log(u) / np.maximum(rate, 1e-9)


def softmax_rates(score: np.ndarray) -> np.ndarray:
    """Rates in proportion to the exponential of a score."""
    return np.exp(score - score.max(initial=-np.inf))


def mixed(numbers: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014): a fixed permutation of 64 bits that looks random."""
    with np.errstate(over="ignore"):
        numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def largest_remainder(weights: np.ndarray, capacity: np.ndarray, total: int) -> np.ndarray:
    """Split a total by weights into whole numbers, none over its capacity; what does not fit goes to the others.

    Sums to min(total, sum of capacities). Equal remainders go to the lower index.
    """
    out = np.zeros(len(weights), dtype=int)
    while (left := int(min(total, capacity.sum())) - out.sum()) > 0:
        room = out < capacity
        share = np.where(room, weights, 0.0)
        share = share if share.sum() > 0 else room.astype(float)
        ideal = share / share.sum() * left
        whole = np.floor(ideal + 1e-9).astype(int)
        whole[np.argsort(whole - ideal, kind="stable")[: left - whole.sum()]] += 1
        out += np.minimum(whole, capacity - out)
    return out
