"""What rows say, where a dataset has their ids alone: it stands in the nearest one that this was made of."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from flows.sampling import spread
from storage.scan import AT, Scan
from storage.store import Manifest, Store

_READ = ["id", "messages", "parent_id", "method", "drop_reason"]
Kinds = Mapping[str, pl.DataType]
Open = Callable[[Manifest], tuple[Scan, Kinds]]


def sources_of_texts(store: Store, made: Manifest) -> Iterator[Manifest]:
    """The datasets with messages among this one and those that it was made of, the nearest first."""
    seen, layer = {made.id}, [made]
    while layer:
        yield from (m for m in layer if any("messages" in part.columns for shard in m.shards for part in shard))
        inputs = [of for one in layer for of in sorted(one.inputs.items(), key=lambda of: of[0] != "rows")]
        above = dict.fromkeys(d for _, d in inputs if d not in seen and store.exists(d))
        seen.update(above)
        layer = [store.manifest(d) for d in above]


def nearest(store: Store, made: Manifest, ids: Collection[str], open_: Open) -> dict[str, dict[str, Any]]:
    """Rows with their messages, from this dataset or the nearest it was made of; `dataset` and `place` say where.

    `open_` gives the rows of a dataset and the types of its columns.
    """
    found: dict[str, dict[str, Any]] = {}
    if not ids:
        return found
    for one in sources_of_texts(store, made):
        rows = find(*open_(one), [i for i in ids if i not in found], _READ)
        found |= {row["id"]: {**row, "dataset": one.id, "place": row.pop(AT) + 1} for row in rows.to_dicts()}
        if len(found) == len(ids):
            break
    return found


def find(scan: Scan, kinds: Kinds, ids: Sequence[str], columns: Sequence[str]) -> pl.DataFrame:
    """The rows with these ids, with AT; of a row that is there twice, the first. Columns it lacks are left out."""
    left, places = set(ids), []
    if "id" in kinds:
        for rows in scan.each(["id"], lambda f: f.filter(pl.col("id").is_in(list(left))), kinds):
            for place, id_ in rows.select(AT, "id").iter_rows():
                if id_ in left:
                    left.discard(id_)
                    places.append(place)
            if not left:
                break
    return scan.take(places, [c for c in columns if c in kinds])


def before_and_after(store: Store, made: Manifest, most: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Some rows that a step changed or grew: each as it was and as it is now, the live ones first."""

    def opened(one: Manifest) -> tuple[Scan, Kinds]:
        scan = Scan.of(store.root, one)
        return scan, scan.columns()[0]

    scan, kinds = opened(made)
    if made.kind != "rows" or not {"parent_id", "method"} <= kinds.keys():
        return []
    is_new = (pl.col("method") == made.step) & pl.col("parent_id").is_not_null()
    columns = ["id", "parent_id", "method", "drop_reason"]
    found = list(scan.each(columns, lambda f: f.filter(is_new).select(columns), kinds))
    new = pl.concat(found) if found else pl.DataFrame()
    if new.is_empty():
        return []
    live = new.filter(pl.col("drop_reason").is_null())
    some = spread(live if live.height >= most else new.sort(pl.col("drop_reason").is_not_null()), most)
    parents = nearest(store, made, set(some["parent_id"]), opened)
    rows = nearest(store, made, set(some["id"]), opened)
    return [(parents[p], rows[i]) for i, p in some.select("id", "parent_id").iter_rows() if p in parents and i in rows]
