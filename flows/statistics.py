"""How sure one may be of a mean, or of a difference, over a few seeds and many held-out rows.

A result is a matrix x, shape (S seeds, R rows): whether seed s had row r right, or any other number. Other seeds and
other rows would have given others, so both count as drawn from more of their kind (two-way random effects):

    x_sr = mean + seed_s + row_r + rest_sr
    variance of the mean = (rest + max(seeds - rest, 0) + max(rows - rest, 0)) / (S R)      of mean squares
    interval = mean ± t(df) * error            df by Satterthwaite (1946), as Hillis (2007) has it for readers and cases

Why not the bootstrap over seeds that is common: the means of three numbers drawn from three never leave their range,
and with three seeds its "95 %" covers 82 % where seeds differ most (`bench/coverage.py`). With one seed, the interval
is that of a paired t-test over rows, and says nothing about other seeds.
"""

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
POWER = 0.8  # chance of showing an effect that is there, when asked how many seeds it takes
MOST = 20  # seeds that are thought of, as a power of two


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean squares of a matrix and what they are made of."""

    shape: tuple[int, int]
    seeds: float
    rows: float
    rest: float

    def error(self, seeds: int | None = None) -> tuple[float, float]:
        """Standard error of the mean and its degrees of freedom; `seeds`: had there been so many."""
        was, rows = self.shape
        seeds = seeds or was
        by_row = max(self.rows - self.rest, 0.0) / was * seeds  # mean squares as that many seeds would have them
        by_seed = max(self.seeds - self.rest, 0.0) if was > 1 else 0.0
        free_of_rest = 1 - (by_seed > 0) - (by_row > 0)
        terms = [(free_of_rest * self.rest, (seeds - 1) * (rows - 1))]
        terms += [(by_seed + self.rest, seeds - 1)] if by_seed > 0 else []
        terms += [(by_row + self.rest, rows - 1)] if by_row > 0 else []
        total = sum(term for term, _ in terms)
        spent = sum(term**2 / df for term, df in terms if df)
        return float(np.sqrt(total / (seeds * rows))), float(total**2 / spent) if spent else np.inf


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, its 95 % interval, the two-sided p that it is 0, and the chance that it is truly over 0."""

    mean: float
    low: float
    high: float
    p: float
    ahead: float


def spread(values: np.ndarray) -> Spread:
    """Mean squares of a matrix, shape (seeds, rows)."""
    seeds, rows = values.shape
    by_seed, by_row, mean = values.mean(1), values.mean(0), values.mean()
    rest = values - by_seed[:, None] - by_row[None, :] + mean
    return Spread(
        (seeds, rows),
        float(rows * by_seed.var(ddof=1)) if seeds > 1 else 0.0,
        float(seeds * by_row.var(ddof=1)) if rows > 1 else 0.0,
        float((rest**2).sum() / ((seeds - 1) * (rows - 1))) if seeds > 1 and rows > 1 else 0.0,
    )


def estimate(values: np.ndarray, least: float = -np.inf, most: float = np.inf) -> Estimate:
    """The mean of a matrix, shape (seeds, rows), over seeds and rows that might have been others.

    The interval does not leave `least` to `most`, such as 0 to 1 for shares.
    """
    mean, (error, df) = float(values.mean()), spread(values).error()
    if values.size == 1:  # one number tells nothing of how others would differ
        return Estimate(mean, least, most, 1.0, 0.5)
    if error == 0:
        return _all_alike(mean, max(values.shape), least, most)
    width, t = float(stats.t.ppf((1 + LEVEL) / 2, df) * error), mean / error
    low, high = max(mean - width, least), min(mean + width, most)
    return Estimate(mean, low, high, float(2 * stats.t.sf(abs(t), df)), float(stats.t.cdf(t, df)))


def _all_alike(mean: float, n: int, least: float, most: float) -> Estimate:
    """Where nothing differs: as many equal numbers leave room for others (Clopper and Pearson, 1934; sign test)."""
    room = 1 - ((1 - LEVEL) / 2) ** (1 / n)
    p = 2 * 0.5**n if mean else 1.0
    low, high = max(mean - room, least), min(mean + room, most)
    return Estimate(mean, low, high, p, 0.5 if not mean else 1 - p / 2 if mean > 0 else p / 2)


def holm(p: list[float]) -> list[float]:
    """Adjusted for as many comparisons (Holm, 1979): under 0.05 for all that can be claimed together."""
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(np.array(p)[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    out = np.empty(len(p))
    out[order] = adjusted
    return out.tolist()


def power(found: Spread, effect: float, seeds: int, level: float = 1 - LEVEL) -> float:
    """Chance that a true difference is shown (two-sided p under `level`) with so many seeds on the same rows."""
    error, df = found.error(seeds)
    if error == 0:
        return float(effect != 0)
    df = min(df, 1e6)  # the distribution is normal by then, and scipy's fails
    critical, away = stats.t.ppf(1 - level / 2, df), abs(effect) / error
    return float(stats.nct.sf(critical, df, away) + stats.nct.cdf(-critical, df, away))


def seeds_to_show(found: Spread, effect: float, level: float = 1 - LEVEL) -> int | None:
    """The fewest seeds that would show a difference with 80 % chance; None if no number would, on the same rows."""
    if power(found, effect, 2**MOST, level) < POWER:
        return None
    enough = next(2**n for n in range(1, MOST + 1) if power(found, effect, 2**n, level) >= POWER)
    return bisect_left(range(enough), True, lo=enough // 2, key=lambda s: power(found, effect, s, level) >= POWER)
