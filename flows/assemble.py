"""Datasets made of others without any judgement: several together, or the rows that a choice took."""

import polars as pl

from curation.step import find_step
from flows.run import with_counts
from storage.schema import ROW
from storage.store import Manifest, Store, StoreError, key_of


def together(store: Store, datasets: list[str]) -> str:
    """One dataset of the shards of several; nothing is copied. The first alone if there is no other."""
    if len(datasets) == 1:
        return datasets[0]
    sources = [store.manifest(d) for d in datasets]
    made = _manifest("together", {}, dict(zip(map(str, range(len(datasets))), datasets, strict=True)), sources)
    return (
        made.id
        if store.exists(made.id)
        else store.seal(with_counts(store, made, [s for m in sources for s in m.shards]))
    )


def taken(store: Store, rows: str, choice: str) -> str:
    """The rows that a choice took, as they were when they were chosen. Refuses a row that is no longer live."""
    source, chosen = store.manifest(rows), store.manifest(choice)
    made = _manifest("taken", {}, {"rows": rows, "choice": choice}, [source, chosen])
    if store.exists(made.id):
        return made.id
    ids = store.read(choice).filter("taken").select("id")
    picked = store.read(rows, ROW.names).join(ids, on="id", how="semi", maintain_order="left")
    if picked.height != ids.height or picked["drop_reason"].null_count() != picked.height:
        raise StoreError(
            f"choice {choice} took rows that {rows} does not have or has dropped; choose again from {rows}"
        )
    return store.seal(with_counts(store, made, [(store.put_part(key_of(made.id), picked, ROW),)]))


def where(store: Store, rows: str, column: str, value: str) -> str:
    """The live rows with a value in a column, such as those of the validation split."""
    made = _manifest("where", {"column": column, "value": value}, {"rows": rows}, [store.manifest(rows)])
    if store.exists(made.id):
        return made.id
    live = pl.col("drop_reason").is_null() & (pl.col(column) == value)
    picked = store.read(rows, list(dict.fromkeys([*ROW.names, column]))).filter(live).select(ROW.names)
    return store.seal(with_counts(store, made, [(store.put_part(key_of(made.id), picked, ROW),)]))


def live(store: Store, rows: str) -> str:
    """The live rows with all their columns; the dataset itself where no row is dropped."""
    source = store.manifest(rows)
    if source.counts["live"] == source.counts["rows"]:
        return rows
    made = _manifest("live", {}, {"rows": rows}, [source])
    if store.exists(made.id):
        return made.id
    kept = [store.read_shard(s).filter(pl.col("drop_reason").is_null()) for s in source.shards]
    parts = [(store.put_part(key_of(made.id, i), frame, ROW),) for i, frame in enumerate(kept)]
    return store.seal(with_counts(store, made, parts))


def standing(store: Store, rows: str, revised: list[str]) -> str:
    """The rows as they came, with the marks of the steps that revised them and what these keep of a row for good.

    What the others said is said anew in the next round.
    """
    made = _manifest("standing", {"steps": revised}, {"rows": rows}, [store.manifest(rows)])
    if store.exists(made.id):
        return made.id
    steps = [find_step(name) for name in revised]
    for_good = [column for step in steps for column in step.writes if column in step.takes]
    columns = [*ROW.names, *dict.fromkeys(for_good)]
    mark = pl.any_horizontal([pl.col("drop_reason").str.starts_with(f"{name}: ") for name in revised])
    marked = pl.when(mark).then("drop_reason")
    kept = [store.read_shard(s, columns).with_columns(drop_reason=marked) for s in store.manifest(rows).shards]
    parts = [(store.put_part(key_of(made.id, i), frame, ROW),) for i, frame in enumerate(kept)]
    return store.seal(with_counts(store, made, parts))


def _manifest(step: str, config: dict, inputs: dict[str, str], sources: list[Manifest]) -> Manifest:
    key = key_of(step, config, [source.digest for source in sources])[:12]
    return Manifest(f"{step}-{key}", "rows", step, 1, config, {}, inputs)
