"""One choice from several scores: combined by rank or z-score, with quotas, a budget and a draw by clusters.

Every row that may be trained on stands in the choice with the reason why it was taken or left.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from curation.choice import ChoiceConfig, for_training, most_within
from curation.draw import exponential_keys, largest_remainder, softmax_rates, uniform
from curation.step import StepError, step


class Choose(ChoiceConfig):
    scores: list[str] = Field(default_factory=list)
    """Columns that say how good a row is, column=weight; a negative weight where low is good. None: a random order."""

    combine: Literal["rank", "zscore"] = "rank"
    """How columns of different scales become one score: their ranks, or their distances from the mean in deviations."""

    draw: Literal["best", "proportional"] = "best"
    """Take the best rows, or draw them in proportion to the score (its exponential, for z-scores)."""

    clusters: bool = False
    """Split the budget over the clusters of kmeans-cluster, by their share of the pool or the `weights` table."""

    quotas: list[str] = Field(default_factory=list)
    """Most of the budget, in rows or in tokens, that a source may have: source=share, such as dolly=0.2."""

    tokens: int = Field(0, ge=0)
    """In the place of rows: tokens that the choice may hold, counted by the step `tokens`; 0 counts rows."""

    def columns(self) -> tuple[str, ...]:
        more = ("diversity_cluster", "diversity_share") if self.clusters else ()
        more += ("tokens",) if self.tokens else ()
        return (*super().columns(), *dict(parsed(self.scores)), *more)

    @field_validator("scores", "quotas", mode="before")
    @classmethod
    def _pairs(cls, said: Any) -> Any:
        """A config may write them as a mapping."""
        return [f"{name}={number}" for name, number in said.items()] if isinstance(said, Mapping) else said

    @field_validator("scores", "quotas")
    @classmethod
    def _numbers(cls, said: list[str]) -> list[str]:
        names = [name for name, _ in parsed(said)]
        if len(set(names)) < len(names):
            raise ValueError("a name stands there twice")
        return said

    @field_validator("quotas")
    @classmethod
    def _shares(cls, said: list[str]) -> list[str]:
        if any(not 0 <= share <= 1 for _, share in parsed(said)):
            raise ValueError("a quota is a share of the budget, from 0 to 1")
        return said


def parsed(pairs: list[str]) -> list[tuple[str, float]]:
    """name=number, or a name alone for 1; ValueError where it is neither."""
    out = []
    for pair in pairs:
        name, equals, number = pair.partition("=")
        try:
            out.append((name.strip(), float(number) if equals else 1.0))
        except ValueError:
            raise ValueError(f"{pair!r} is not name=number") from None
        if not name.strip() or not np.isfinite(out[-1][1]):
            raise ValueError(f"{pair!r} is not name=number")
    return out


@step("choose", kind="select", scope="dataset", without="messages", version=2)
def choose(rows: pl.DataFrame, cfg: Choose, weights: pl.DataFrame | None = None) -> pl.DataFrame:
    """Take rows by several scores together, within quotas for sources and a budget of rows or tokens.

    The budget is split over the clusters where that is asked for; in each the best rows are taken, or rows drawn in
    proportion to the score. `why` says of every row why it was taken or left.
    """
    if missing := [c for c in cfg.columns() if c not in rows.columns and c != "split"]:
        raise StepError(f"choose needs {missing}, which the dataset lacks; run the step that writes it")
    named, pool = parsed(cfg.scores), for_training(rows)
    reasons = [
        pl.when(~pl.col(name).cast(pl.Float64).is_finite().fill_null(False)).then(pl.lit(f"left: no value in {name}"))
        for name, _ in named
    ]
    if cfg.clusters:
        reasons.append(pl.when(pl.col("diversity_cluster").is_null()).then(pl.lit("left: no cluster")))
    pool = pool.with_columns(lost=pl.coalesce(*reasons, pl.lit(None, dtype=pl.String)))
    able = _ordered(pool.filter(pl.col("lost").is_null()), cfg)
    shares = _shares(able, cfg, weights)
    found = _allocate(able, cfg, shares, _most_rows(able, cfg, shares))
    drawn = pl.format("score {}, ", pl.col("score").round(3)) if named else pl.lit("")
    within = (
        pl.format("of cluster {}, which has {}", "group", "budget") if cfg.clusters else pl.format("of {}", "budget")
    )
    place = pl.format("{}number {} {}", drawn, "place", within)
    said = pl.concat([able, found], how="horizontal").select(
        "id",
        "taken",
        why=pl.when("taken")
        .then(pl.format("taken: {}", place))
        .when("full")
        .then(pl.format("left: source {} has its quota", "source"))
        .otherwise(pl.format("left: {}", place)),
        weight="share",
    )
    lost = pool.drop_nulls("lost").select("id", taken=pl.lit(False), why="lost", weight=pl.lit(None, dtype=pl.Float64))
    return pl.concat([said, lost]).with_columns(round=pl.lit(cfg.round, dtype=pl.Int32))


def _ordered(able: pl.DataFrame, cfg: Choose) -> pl.DataFrame:
    """The rows with `score`, in the order in which each `group` gives them."""
    u = uniform(able["id"], cfg.seed, "choose", cfg.round)
    score = _score(able, cfg)
    key = u
    if cfg.scores and cfg.draw == "best":
        key = -score
    elif cfg.scores:
        key = exponential_keys(u, softmax_rates(score) if cfg.combine == "zscore" else score)
    group = pl.col("diversity_cluster") if cfg.clusters else pl.lit(0)
    numbers = {"score": score, "key": key, "u": u}
    able = able.with_columns(
        group=group.cast(pl.Int32), **{n: pl.Series(v, dtype=pl.Float64) for n, v in numbers.items()}
    )
    return able.sort("group", "key", "u", "id")


def _score(able: pl.DataFrame, cfg: Choose) -> np.ndarray:
    """The weighted mean of ranks between 0 and 1, or of z-scores; a column where all rows are equal tells nothing."""
    total, mass = np.zeros(able.height), 0.0
    for name, weight in parsed(cfg.scores):
        column = able[name].cast(pl.Float64)
        if cfg.combine == "rank":
            own = (column.rank("average").to_numpy() - 0.5) / max(able.height, 1)
            total += abs(weight) * (own if weight > 0 else 1 - own)
        else:
            spread = column.std(ddof=0) or 1.0
            total += weight * (column - (column.mean() or 0.0)).to_numpy() / spread
        mass += abs(weight)
    return total / (mass or 1.0)


def _shares(able: pl.DataFrame, cfg: Choose, weights: pl.DataFrame | None) -> np.ndarray:
    """The share of the budget of each group, by rising group."""
    groups = able.select(pl.col("group").unique().sort())
    if not cfg.clusters:
        return np.ones(groups.height)
    known = able.group_by("group").agg(share=pl.col("diversity_share").first())
    if weights is None:
        moved = pl.DataFrame(schema={"group": pl.Int32, "weight": pl.Float64})
    else:
        moved = weights.select(pl.col("cluster").cast(pl.Int32).alias("group"), "weight")
    found = groups.join(known, on="group", how="left", maintain_order="left")
    found = found.join(moved, on="group", how="left", maintain_order="left")
    # a cluster that had no row when weights were learnt has its share of the pool
    return found.select(pl.coalesce("weight", "share", pl.lit(0.0))).to_series().to_numpy()


def _most_rows(able: pl.DataFrame, cfg: Choose, shares: np.ndarray) -> int:
    """The budget in rows."""
    if not cfg.tokens:
        return cfg.rows
    tokens = able["tokens"].fill_null(0)
    return most_within(
        cfg.tokens, lambda n: int(tokens.filter(_allocate(able, cfg, shares, n)["taken"]).sum()), able.height
    )


def _allocate(able: pl.DataFrame, cfg: Choose, shares: np.ndarray, rows: int) -> pl.DataFrame:
    """Of each row: `taken`, its `place` in its group, the group's `budget` and `share`; `full`: its source has enough.

    A source over its quota keeps the rows that come first in their clusters; what it loses goes to the others. Of a
    budget in tokens it has its share in tokens.
    """
    size = able["tokens"].fill_null(0).cast(pl.Int64).to_numpy() if cfg.tokens else np.ones(able.height, np.int64)
    source, group = able["source"].to_numpy(), np.unique(able["group"].to_numpy(), return_inverse=True)[1]
    free, over = np.ones(able.height, bool), True
    while over:
        sizes = np.bincount(group[free], minlength=len(shares))
        budget = largest_remainder(shares, sizes, rows)
        place = np.cumsum(free) - (np.cumsum(sizes) - sizes)[group]
        taken, over = free & (place <= budget[group]), False
        for name, quota in parsed(cfg.quotas):
            mine = np.flatnonzero(taken & (source == name))
            most = int(Decimal(str(quota)) * (cfg.tokens or rows))  # as it was written: 0.29 * 100 is under 29
            if size[mine].sum() > most:
                first = mine[np.argsort(place[mine] / budget[group[mine]], kind="stable")]
                first = first[size[first] <= most]  # one that is over the quota alone keeps no other out
                kept = first[np.cumsum(size[first]) <= most]
                gone = source == name
                gone[kept] = False
                free, over = free & ~gone, True
    columns = {
        "taken": taken,
        "place": place,
        "budget": budget[group],
        "share": shares[group].astype(float),
        "full": ~free,
    }
    return pl.DataFrame(columns)
