"""How much of a choice grown rows may be: `budget: {grown: 0.3}`.

A choice that keeps to the share stands as it is. Else imported and grown rows are chosen apart, by the same step with
the same settings: the imported ones get what is left of the budget, the grown ones the whole rows or tokens that the
share allows of what is then taken, so that it is never passed. Where the imported rows do not fill their part, no grown
row takes their place.
"""

from collections.abc import Callable
from fractions import Fraction

import polars as pl

from curation.step import STEPS
from flows.run import with_counts
from storage.schema import CHOICE
from storage.store import Manifest, Store, key_of

Pick = Callable[[str, int, str], str]  # rows, amount, what of them it is: the choice
_OF = "apart"


def within_share(store: Store, rows: str, choice: str, share: float, budget: int, unit: str, pick: Pick) -> str:
    """The choice, or one of as much of the budget (rows or tokens) in which grown rows are no more than the share."""
    exact = Fraction(str(share))  # as it was written: 0.29 * 100 is under 29
    took = amounts(store, rows, choice, unit)
    if took[True] <= exact * (took[False] + took[True]):
        return choice
    imported, grown = apart(store, rows, grown=False), apart(store, rows, grown=True)
    first = pick(imported, budget - int(exact * budget), "imported")
    have = amounts(store, rows, first, unit)[False]
    most = min(int(exact * budget), int(exact * have / (1 - exact)), budget - have)
    least = _least(store, grown, unit)
    second = pick(grown, max(most, least), "grown")  # asked for, so that each row has its reason, also where none fits
    return _joined(store, rows, first, second, most >= least, f"grown {unit} may be {most:,} beside {have:,} imported")


def grown_rows() -> pl.Expr:
    """Whether a row was written by a step that makes rows; a correction stands in the place of a row, and was not."""
    return pl.col("method").is_in([s.name for s in STEPS.values() if s.kind == "make"]).fill_null(False)


def apart(store: Store, rows: str, grown: bool) -> str:
    """The rows with the grown ones alone live, or with the others; only the marks are written."""
    source, told = store.manifest(rows), {"grown": grown}
    made = Manifest(f"{_OF}-{key_of(_OF, told, source.digest)[:12]}", "rows", _OF, 1, told, {}, {"rows": rows})
    if store.exists(made.id):
        return made.id
    other = pl.lit(f"{_OF}: chosen with the {'imported' if grown else 'grown'} rows")
    shards = []
    for i, shard in enumerate(source.shards):
        frame = store.read_shard(shard, ["id", "method", "drop_reason"])
        mark = pl.coalesce("drop_reason", pl.when(grown_rows() != grown).then(other))
        part = store.put_part(key_of(made.id, i), frame.select("id", drop_reason=mark))
        shards.append((*shard, part))
    return store.seal(with_counts(store, made, shards))


def amounts(store: Store, rows: str, choice: str, unit: str = "rows") -> dict[bool, int]:
    """What a choice took, in rows or in tokens, by whether it was grown."""
    columns = ["id", "method", *(["tokens"] if unit == "tokens" else [])]
    took = store.read(rows, columns).join(store.read(choice).filter("taken"), on="id", how="semi")
    size = pl.col("tokens").sum() if unit == "tokens" else pl.len()
    found = dict(took.group_by(grown_rows().alias("grown")).agg(size.cast(pl.Int64)).iter_rows())
    return {False: 0, True: 0} | found


def _least(store: Store, rows: str, unit: str) -> int:
    """What the smallest live row takes of a budget."""
    if unit == "rows":
        return 1
    live = store.read(rows, ["tokens", "drop_reason"]).filter(pl.col("drop_reason").is_null())
    return int(live["tokens"].min() or 1)


def _joined(store: Store, rows: str, first: str, second: str, fits: bool, why: str) -> str:
    inputs, told = {"rows": rows, "imported": first, "grown": second}, {"grown": why if fits else f"{why}: none fits"}
    digests = [store.manifest(dataset).digest for dataset in inputs.values()]
    made = Manifest(f"grown-share-{key_of(told, digests)[:12]}", "choice", "grown-share", 1, told, {}, inputs)
    if store.exists(made.id):
        return made.id
    grown = store.read(second)
    said = pl.when(fits).then("why").otherwise(pl.lit("left"))
    grown = grown.with_columns(taken=pl.col("taken") & fits, why=pl.format("{}; {}", said, pl.lit(told["grown"])))
    part = store.put_part(key_of(made.id), pl.concat([store.read(first), grown]), CHOICE)
    return store.seal(with_counts(store, made, [(part,)]))
