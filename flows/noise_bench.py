"""How well a score step tells spoilt answers from right ones: spoil a clean dataset, score it, look at the flags."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from curation.noise import Noise, spoil
from curation.step import STEPS, Step, StepConfig, StepError
from flows.config import ConfigError, explain
from flows.run import with_counts
from storage.schema import ROW
from storage.store import Manifest, Store, StoreError, key_of

MIN_ROWS = 20
DRAWS = 2000
SHARES = [n / 100 for n in range(5, 55, 5)]
_VERSION = 1  # raise it when the same rows and settings would now be spoilt otherwise
_SHARD = 65_536

Run = Callable[[Step, StepConfig, str], str]  # a step on a dataset, with its engines: the dataset that it makes


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a drop of rows caught; a number is None where nothing stands under its fraction."""

    rows: float
    precision: float | None  # share of the dropped that is spoilt
    recall: float | None  # share of the spoilt that is dropped
    lift: float | None  # precision over the share of all rows that is spoilt, which a random drop would have


def noise_settings(said: Mapping[str, Any]) -> Noise:
    try:
        return Noise.model_validate(said)
    except ValidationError as wrong:
        raise ConfigError(f"noise-bench: {explain(wrong, Noise)}") from None


def check_step(step: Step) -> None:
    if step.kind != "score":
        scores = ", ".join(sorted(s.name for s in STEPS.values() if s.kind == "score"))
        raise StepError(f"{step.name} is a {step.kind} step; noise-bench measures a score step: {scores}")


def spoilt_dataset(store: Store, dataset: str, noise: Noise) -> str:
    """The live rows of a dataset with a share of them spoilt.

    Only the columns of a row come along: a score of the clean rows would tell. Which rows are spoilt stands in the
    side table `flags`, and no step is ever handed a side table.
    """
    source, settings = store.manifest(dataset), noise.model_dump(mode="json")
    if source.kind != "rows":
        raise StoreError(f"noise-bench works on rows, and {dataset} is a {source.kind}; name a dataset of rows")
    if source.step == "noise":
        raise StoreError(f"{dataset} was spoilt by noise-bench already; name the clean dataset it was made of")
    key = key_of("noise", _VERSION, settings, source.digest)
    made = Manifest(f"noise-{key[:12]}", "rows", "noise", _VERSION, settings, {}, {"rows": dataset})
    if store.exists(made.id):
        return made.id
    live = store.read(dataset, ROW.names).filter(pl.col("drop_reason").is_null())
    if live.height < MIN_ROWS:
        raise StoreError(
            f"{dataset} has {live.height} live rows, and noise-bench needs {MIN_ROWS} to say anything; import more"
        )
    spoilt = spoil(live, noise)
    starts = range(0, spoilt.rows.height, _SHARD)
    shards = [(store.put_part(key_of(key, "rows", s), spoilt.rows.slice(s, _SHARD), ROW),) for s in starts]
    counted = with_counts(store, made, shards)
    flags = (store.put_part(key_of(key, "flags"), spoilt.flags),)
    counts = counted.counts | {"spoilt": int(spoilt.flags["spoilt"].sum())}
    return store.seal(
        Manifest(**{**{f: getattr(counted, f) for f in made.__slots__}, "side": {"flags": flags}, "counts": counts})
    )


def scored_dataset(store: Store, rows: str, step: Step, config: StepConfig, run: Run) -> str:
    """The dataset with the step's columns. What the step reads is computed first, by the steps that write it."""
    has = {c for shard in store.manifest(rows).shards for part in shard for c in part.columns}
    for column in (*step.reads, *config.columns()):
        writers = [s for s in STEPS.values() if column in s.writes and s.kind == "score" and s is not step]
        if column not in has and writers:
            rows = scored_dataset(store, rows, writers[0], writers[0].config(), run)
            has |= set(writers[0].writes)
    return run(step, config, rows)


def measured(store: Store, spoilt: str, scored: str, step: Step, run: Run) -> dict[str, Any]:
    """All that the page says, as plain values for JSON. A row without a score is not judged, only counted.

    Raises StepError where the step gives no number that could tell.
    """
    flags = store.read_side(spoilt, "flags")
    rows = store.read(scored, ["id", *step.writes]).join(flags, on="id", how="left", maintain_order="left")
    numbers = [c for c in step.writes if rows[c].dtype.is_numeric() or rows[c].dtype == pl.Boolean]
    if not numbers:
        raise StepError(f"{step.name} writes no number by which right and wrong rows could be told apart")
    columns = {c: found for c in numbers if (found := column_figures(rows, c, step.good.get(c)))}
    headline = next(iter(step.good), None) or max(columns, key=lambda c: columns[c]["auroc"], default=numbers[0])
    if headline not in columns:
        raise StepError(f"{step.name} gave no {headline} to right rows, or none to spoilt ones: nothing can be told")
    judged, goodness = _judged(rows, headline, columns[headline]["direction"])
    wrong = judged["spoilt"].to_numpy()
    by, dropped = _own_threshold(store, scored, headline, judged, run)
    if dropped is None:
        dropped = worst(goodness, int(wrong.sum()))
    at = asdict(caught(dropped, wrong))
    return {
        "dataset": store.manifest(spoilt).inputs["rows"],
        "spoilt_dataset": spoilt,
        "scored_dataset": scored,
        "step": step.name,
        "settings": store.manifest(scored).config,
        "noise": store.manifest(spoilt).config,
        "rows": rows.height,
        "spoilt": int(rows["spoilt"].sum()),
        "share_spoilt": float(rows["spoilt"].mean()),
        "unjudged": rows.height - judged.height,
        "column": headline,
        **columns[headline],
        "threshold": by,
        "dropped": at.pop("rows"),
        **at,
        "by_kind": _by_kind(store.manifest(spoilt).config["kinds"], rows, judged, goodness, dropped),
        "curve": curve(goodness, wrong),
        "columns": columns,
    }


def column_figures(rows: pl.DataFrame, column: str, sign: int | None) -> dict[str, Any] | None:
    """AUROC of a column of numbers and its 95 % interval; None where it has only right or only wrong rows.

    Without a declared sign it is taken from the flags: the one that tells better.
    """
    judged, goodness = _judged(rows, column, "higher" if sign in (1, None) else "lower")
    right = ~judged["spoilt"].to_numpy()
    if right.all() or not right.any():
        return None
    direction, auroc = "lower" if sign == -1 else "higher", float(roc_auc_score(right, goodness))
    if sign is None and auroc < 0.5:
        direction, auroc, goodness = "lower", 1 - auroc, -goodness
    low, high = auroc_interval(goodness, ~right)
    return {
        "auroc": auroc,
        "low": low,
        "high": high,
        "direction": direction,
        "declared": sign is not None,
        "unjudged": rows.height - judged.height,
    }


def auroc_interval(goodness: np.ndarray, wrong: np.ndarray, draws: int = DRAWS) -> tuple[float, float]:
    """95 % bootstrap interval of the AUROC over rows; shapes (rows,).

    The rows of a draw are counted per distinct score, right and wrong apart, so no draw has to be sorted.
    """
    score = np.unique(goodness, return_inverse=True)[1]
    cell, cells = 2 * score + wrong, 2 * (int(score.max()) + 1)
    rng, n, found = np.random.default_rng(0), len(cell), np.full(draws, np.nan)
    for i in range(draws):
        right, bad = np.bincount(cell[rng.integers(0, n, n)], minlength=cells).reshape(-1, 2).T.astype(float)
        above = right.sum() - right.cumsum()
        if pairs := right.sum() * bad.sum():
            found[i] = bad @ (above + right / 2) / pairs
    low, high = np.nanpercentile(found, [2.5, 97.5])
    if low == high:  # nothing to draw from: as few rows leave room for others (Clopper and Pearson, 1934)
        room = 1 - 0.025 ** (1 / min(wrong.sum(), (~wrong).sum()))
        low, high = max(low - room, 0.0), min(high + room, 1.0)
    return float(low), float(high)


def worst(goodness: np.ndarray, n: int) -> np.ndarray:
    """How much of each row goes when the n worst go: 1, 0, or a share where equal scores stand across the edge."""
    if n == 0:
        return np.zeros(len(goodness))
    edge = np.partition(goodness, n - 1)[n - 1]
    below, at = goodness < edge, goodness == edge
    return below + at * (n - below.sum()) / at.sum()


def caught(dropped: np.ndarray, wrong: np.ndarray) -> Dropped:
    """What a drop caught; `dropped` says how much of each row goes, both of shape (rows,)."""
    n, hit, spoilt = float(dropped.sum()), float(dropped[wrong].sum()), int(wrong.sum())
    precision = hit / n if n else None
    return Dropped(n, precision, hit / spoilt if spoilt else None, precision / wrong.mean() if n and spoilt else None)


def curve(goodness: np.ndarray, wrong: np.ndarray, among: np.ndarray | slice = slice(None)) -> list[dict[str, Any]]:
    """What dropping the worst 5 %, 10 %, … 50 % of the judged rows would catch, counted among some of them."""
    drops = [(share, worst(goodness, round(share * len(wrong)))) for share in SHARES]
    return [{"share": share, **asdict(caught(dropped[among], wrong[among]))} for share, dropped in drops]


def _judged(rows: pl.DataFrame, column: str, direction: str) -> tuple[pl.DataFrame, np.ndarray]:
    """The rows that have a score, and how good each is by it: ranks, so that an infinite score is one like others."""
    judged = rows.with_columns(pl.col(column).cast(pl.Float64).fill_nan(None)).drop_nulls(column)
    rank = judged[column].rank("dense").cast(pl.Float64).to_numpy()
    return judged, rank if direction == "higher" else -rank


def _own_threshold(
    store: Store, scored: str, column: str, judged: pl.DataFrame, run: Run
) -> tuple[str | None, np.ndarray | None]:
    """The filter that reads the column, and which of the judged rows it drops by its own settings; or None, None."""
    filters = sorted(
        s.name for s in STEPS.values() if s.kind == "filter" and column in s.reads and not any(s.tables.values())
    )
    if not filters:
        return None, None
    step = STEPS[filters[0]]
    marks = store.read(scored_dataset(store, scored, step, step.config(), run), ["id", "drop_reason"])
    gone = judged.select("id").join(marks, on="id", how="left", maintain_order="left")
    return step.name, gone["drop_reason"].is_not_null().to_numpy().astype(float)


def _by_kind(
    kinds: list[str], rows: pl.DataFrame, judged: pl.DataFrame, goodness: np.ndarray, dropped: np.ndarray
) -> dict[str, Any]:
    """Each kind's spoilt rows against all right ones: AUROC, and what the drop and the curve catch among these."""
    counts = dict.fromkeys(kinds, 0) | dict(rows["kind"].drop_nulls().value_counts().iter_rows())
    kind, right, out = judged["kind"].to_numpy(), ~judged["spoilt"].to_numpy(), {}
    for name, n in counts.items():
        mine = kind == name
        among = mine | right
        at = asdict(caught(dropped[among], mine[among]))
        found = {"rows": n, "auroc": None, "low": None, "high": None, "dropped": at.pop("rows"), **at}
        if mine.any():
            found["auroc"] = float(roc_auc_score(right[among], goodness[among]))
            found["low"], found["high"] = auroc_interval(goodness[among], mine[among])
        out[name] = found | {"curve": curve(goodness, mine, among)}
    return out
