"""Fitting a rule of InstructMining's kind: what the indicators' means of a subset say of the loss after training on it.

Ordinary least squares on the log of the loss. The paper's way to choose variables was not found; here all candidates
are taken, those that the others tell already are left out, and then, one by one, those without which rows that were
left out are predicted better. All of that sees the fitting subsets alone; whether the rule is worth anything is told
by Spearman's correlation of predicted and true losses on subsets that were kept apart.

Trainings with other settings (the loop's) have losses of another level: each kind gets an intercept of its own, so it
tells what its choices differ in. A kind with fewer than three trainings tells nothing and is left out.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from curation.rule import Term
from curation.step import StepError

GATE = 0.3  # Spearman's correlation on subsets that were kept apart, under which a rule is refused
TOLD_ALREADY = 100.0  # variance inflation from which an indicator is left out: its coefficient is a guess
LEAST = 3  # trainings of a kind
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Observations:
    """Trainings with the mean indicators of their rows, shape (trainings, indicators)."""

    names: tuple[str, ...]
    means: np.ndarray
    loss: np.ndarray  # the log of the mean validation loss
    kind: np.ndarray  # of training, as a number; 0 is the fit's own

    def where(self, some: np.ndarray) -> "Observations":
        return Observations(self.names, self.means[some], self.loss[some], self.kind[some])

    def only(self, names: tuple[str, ...]) -> "Observations":
        kept = [self.names.index(name) for name in names]
        return Observations(names, self.means[:, kept], self.loss, self.kind)


@dataclass(frozen=True, slots=True)
class Regression:
    """Least squares with an intercept for each kind of training; arrays follow the indicators' names."""

    names: tuple[str, ...]
    intercept: float  # of the fit's own trainings
    coefficients: np.ndarray
    errors: np.ndarray
    inflation: np.ndarray
    r2: float
    leave_one_out_r2: float

    def predict(self, given: Observations) -> np.ndarray:
        return self.intercept + given.only(self.names).means @ self.coefficients


@dataclass(frozen=True, slots=True)
class Fit:
    """What came of it; `terms` is empty where no indicator told anything."""

    regression: Regression
    terms: dict[str, Term]
    left_out: dict[str, str]
    fitted: int  # observations that the regression is of
    own: int  # of them, those of the fit's own kind
    alone: dict[str, float]  # Spearman's correlation of each candidate alone with the loss, over the fit's own
    predicted: np.ndarray  # of the subsets that were kept apart
    true: np.ndarray
    spearman: float  # NaN where the predictions are all alike
    low: float
    high: float

    @property
    def passes(self) -> bool:
        return bool(self.terms) and self.spearman >= GATE


def fit(fitting: Observations, apart: Observations, bounds: dict[str, tuple[float, float]]) -> Fit:
    """Fit a rule and try it on subsets that were kept apart, all of the fit's own kind.

    `bounds` are between which each indicator was held. Raises StepError where there are too few subsets.
    """
    fitting = fitting.where(np.bincount(fitting.kind)[fitting.kind] >= LEAST)
    needed = len(fitting.names) + len(np.unique(fitting.kind)) + 2
    if (fitting.kind == 0).sum() < LEAST or len(fitting.loss) < needed or len(apart.loss) < 4:
        raise StepError(
            f"{len(fitting.loss)} subsets to fit on and {len(apart.loss)} kept apart cannot tell of "
            f"{len(fitting.names)} indicators; ask for {round(10 * (len(fitting.names) + 1) / 0.75)} subsets, or for "
            "fewer indicators"
        )
    left_out: dict[str, str] = {}
    names = _varied(fitting, left_out)
    found = _chosen(fitting, names, left_out)
    own = fitting.where(fitting.kind == 0)
    alone = {name: _spearman(own.only((name,)).means[:, 0], own.loss) for name in fitting.names}
    terms = {}
    for i, name in enumerate(found.names):
        values = own.only((name,)).means[:, 0]
        low, high = bounds[name]
        terms[name] = Term(
            coefficient=float(found.coefficients[i]),
            error=float(found.errors[i]),
            mean=float(values.mean()),
            std=float(values.std(ddof=1)),
            low=low,
            high=high,
            inflation=float(found.inflation[i]),
            alone=None if np.isnan(alone[name]) else alone[name],
        )
    predicted = found.predict(apart)
    spearman = _spearman(predicted, apart.loss)
    low, high = interval(spearman, len(apart.loss))
    counted = len(fitting.loss), len(own.loss)
    return Fit(found, terms, left_out, *counted, alone, predicted, apart.loss, spearman, low, high)


def regress(given: Observations) -> Regression:
    """Least squares of the log loss on the indicators, with an intercept for each kind."""
    _, kind = np.unique(given.kind, return_inverse=True)
    kinds = np.eye(int(kind.max()) + 1)[kind]
    counts = kinds.sum(axis=0)
    means, n, p = given.means, len(given.loss), len(given.names)
    centred = means - kinds @ (kinds.T @ means / counts[:, None])  # within each kind
    y = given.loss - kinds @ (kinds.T @ given.loss / counts)
    scale = np.sqrt((centred**2).sum(axis=0) / n)
    x = centred / np.where(scale > 0, scale, 1.0)
    inverse = np.linalg.pinv(x.T @ x)
    slopes = inverse @ x.T @ y
    rest = y - x @ slopes
    leverage = np.einsum("ij,jk,ik->i", x, inverse, x) + (1 / counts)[kind]
    spread = float(rest @ rest) / max(n - p - len(counts), 1)
    without = rest / np.maximum(1 - leverage, 1e-9)
    bare = y / (1 - 1 / counts)[kind]  # each from the mean of the others of its kind
    total = float(y @ y)
    coefficients = slopes / np.where(scale > 0, scale, 1.0)
    own = given.kind == 0
    return Regression(
        given.names,
        float(given.loss[own].mean() - means[own].mean(axis=0) @ coefficients),
        coefficients,
        np.sqrt(spread * np.diag(inverse)) / np.where(scale > 0, scale, 1.0),
        np.diag(inverse) * n,  # with unit variances, the diagonal of the inverse correlation matrix
        1 - float(rest @ rest) / total if total > 0 else 0.0,
        1 - float(without @ without) / float(bare @ bare) if total > 0 else 0.0,
    )


def _varied(given: Observations, left_out: dict[str, str]) -> tuple[str, ...]:
    """The indicators that differ from subset to subset and that the others do not tell already."""
    names: list[str] = []
    for i, name in enumerate(given.names):
        values = given.means[given.kind == 0, i]
        if np.ptp(values) <= 1e-9 * max(1.0, float(np.abs(values).max())):
            left_out[name] = "is the same in every subset"
        else:
            names.append(name)
    while len(names) > 1:
        inflation = regress(given.only(tuple(names))).inflation
        worst = int(np.argmax(inflation))
        if inflation[worst] < TOLD_ALREADY:
            break
        left_out[names.pop(worst)] = f"the others tell it already (variance inflation {inflation[worst]:.3g})"
    return tuple(names)


def _chosen(given: Observations, names: tuple[str, ...], left_out: dict[str, str]) -> Regression:
    """Leave out, one by one, the indicator without which left-out subsets are predicted best, as long as it helps."""
    best = regress(given.only(names))
    while best.names:
        fewer = [regress(given.only(tuple(n for n in best.names if n != name))) for name in best.names]
        candidate = max(fewer, key=lambda found: found.leave_one_out_r2)
        if candidate.leave_one_out_r2 < best.leave_one_out_r2:
            break
        gone = next(name for name in best.names if name not in candidate.names)
        left_out[gone] = (
            f"subsets that were left out are predicted no better with it (R² {best.leave_one_out_r2:.3f}, without "
            f"{candidate.leave_one_out_r2:.3f})"
        )
        best = candidate
    return best


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(stats.spearmanr(a, b).statistic) if np.ptp(a) > 0 < np.ptp(b) else float("nan")


def interval(r: float, n: int) -> tuple[float, float]:
    """95 % of Spearman's r over n pairs, by Fisher's transformation with the error of Bonett and Wright (2000).

    A perfect r, which would leave no room at all, counts as one where two neighbours have changed places. Three pairs
    tell nothing.
    """
    if np.isnan(r):
        return r, r
    if n < 4:
        return -1.0, 1.0
    most = 1 - 12 / (n * (n**2 - 1))
    at = np.arctanh(np.clip(r, -most, most))
    wide = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt((1 + r**2 / 2) / (n - 3))
    return min(r, float(np.tanh(at - wide))), max(r, float(np.tanh(at + wide)))
