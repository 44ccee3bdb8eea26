"""Subsets of a pool that differ in what they are made of, to learn from what each is worth after a training.

Subsets that are drawn evenly from one pool have nearly the same mean of every indicator, and nothing can be learnt from
them. So of every four one is drawn evenly, one as a mixture of the pool's sources or clusters with random shares
(Dirichlet; where there is but one, as the fourth), one from the upper or the lower end of one indicator, and one along
a random direction of all. A subset depends on the seed and its number alone: more subsets are more of the same list.
"""

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from curation.choice import ChoiceConfig, for_training, take_first
from curation.rule import column, known
from curation.step import StepError, step

PULL = 3.0  # exp(2 * PULL) between the odds of the highest and the lowest row
UNEVEN = 0.5  # of the Dirichlet distribution: under 1, one or two groups have most


class Subset(ChoiceConfig):
    rows: int = Field(200, ge=1)
    """Rows of a subset."""

    number: int = Field(0, ge=0)
    """Which of the subsets."""

    indicators: list[str] = Field(default_factory=list)
    """Indicators whose means the subsets are to differ in; repeat the option for each."""

    _known = field_validator("indicators")(known)

    def columns(self) -> tuple[str, ...]:
        return (*super().columns(), *map(column, self.indicators))


@step("instructmining-subset", kind="select", scope="dataset", takes="diversity_cluster", without="messages")
def draw_subset(rows: pl.DataFrame, cfg: Subset) -> pl.DataFrame:
    """One of many subsets that differ in their indicators; a row that lacks one of these is in none."""
    named = [column(name) for name in cfg.indicators]
    if missing := [name for name in named if name not in rows.columns]:
        raise StepError(f"instructmining-subset needs {missing[0]}, which the dataset lacks; score the rows first")
    pool = (
        for_training(rows).filter(pl.all_horizontal(pl.lit(True), *[pl.col(n).is_finite() for n in named])).sort("id")
    )
    rng = np.random.default_rng([cfg.seed, cfg.number])
    odds, why = _odds(pool, cfg, rng)
    key = odds + rng.gumbel(size=pool.height)  # the largest of these are a draw without replacement by exp(odds)
    order = pool.with_columns(key=pl.Series(key, dtype=pl.Float64)).sort("key", "id", descending=[True, False])
    return take_first(order.with_columns(why=pl.lit(why), weight=None), cfg)


def _odds(pool: pl.DataFrame, cfg: Subset, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """The log of each row's odds of being drawn, and what the draw is called."""
    kind, even = cfg.number % 4, np.zeros(pool.height)
    if kind == 1 and (group := _groups(pool)) is not None:
        shares = rng.dirichlet(np.full(int(group.max(initial=0)) + 1, UNEVEN))
        return np.log(np.maximum(shares[group], 1e-9) / np.bincount(group)[group]), "a mixture of groups"
    if kind == 0 or not cfg.indicators:
        return even, "drawn evenly"
    ranks = [pool[column(name)].rank("average").to_numpy() for name in cfg.indicators]
    ranks = np.array([2 * (r - 0.5) / max(pool.height, 1) - 1 for r in ranks])  # from -1 to 1
    if kind == 2:
        which, sign = cfg.number // 4 % len(cfg.indicators), rng.choice([-1, 1])
        return sign * PULL * ranks[which], f"much {'high' if sign > 0 else 'low'} {cfg.indicators[which]}"
    direction = rng.standard_normal(len(ranks))
    return PULL * (direction / np.linalg.norm(direction)) @ ranks, "along a direction of all indicators"


def _groups(pool: pl.DataFrame) -> np.ndarray | None:
    """Sources where there are several, else clusters if the rows have them; without either there is no mixture."""
    for name in ("source", "diversity_cluster"):
        if name in pool.columns and pool[name].n_unique() > 1:
            return pool[name].cast(pl.String).fill_null("").rank("dense").to_numpy().astype(int) - 1
    return None
