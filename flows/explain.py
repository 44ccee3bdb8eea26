"""The whole history of one row: where it came from, every score, why it was kept or dropped, what was trained on it."""

from dataclasses import dataclass, field

import polars as pl

from storage.schema import ROW
from storage.store import Manifest, Store, StoreError


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a row: the dataset where it did, and what was said of the row there."""

    dataset: str
    step: str
    name: str
    facts: dict[str, object]


@dataclass(frozen=True, slots=True)
class History:
    row: dict
    origin: dict | None
    events: list[Event]
    children: list[str] = field(default_factory=list)


def history(store: Store, row: str) -> History:
    """Everything the store knows of a row; an id may be cut short as long as one row alone begins so."""
    names = {dataset: name for name, dataset in store.names().items()}
    found: dict[str, dict] = {}
    dropped: dict[str, str | None] = {}
    events, children, origin = [], set(), None
    adapters_of: dict[str, list[Manifest]] = {}
    manifests = [store.manifest(d) for d in store.ids()]
    for made in manifests:
        if made.step == "train":  # what `prefer` learnt from are the pairs, which tell of their rows themselves
            adapters_of.setdefault(made.inputs["rows"], []).append(made)
    seen_parts: set[str] = set()
    for made in manifests:
        for shard in made.shards:
            own = [p for p in shard if p.file not in seen_parts and "id" in p.columns]
            seen_parts.update(p.file for p in own)
            for part in own:
                rows = store.read_shard((part,))
                for said in rows.filter(pl.col("id").str.starts_with(row)).to_dicts():
                    known = found.setdefault(said["id"], {})
                    known.update(
                        {k: v for k, v in said.items() if k in ROW.names and k not in known and k != "drop_reason"}
                    )
                    hidden = _OF_THE_ROW if "messages" in part.columns else ("embedding",)
                    facts = {k: v for k, v in said.items() if k not in ("id", *hidden) and v is not None}
                    if facts.get("drop_reason") == dropped.get(said["id"]):  # said before, and carried along
                        facts.pop("drop_reason", None)
                    dropped[said["id"]] = said.get("drop_reason", dropped.get(said["id"]))
                    if facts or made.step in ("import", "taken"):
                        events.append((said["id"], Event(made.id, made.step, names.get(made.id, ""), facts)))
                if "parent_id" in part.columns:
                    children.update(rows.filter(pl.col("parent_id").str.starts_with(row))["id"].to_list())
        for trained in adapters_of.get(made.id, []):
            live = store.read(made.id, ["id", "drop_reason"]).filter(pl.col("drop_reason").is_null())
            ids = live.filter(pl.col("id").str.starts_with(row))["id"].to_list()
            seen = store.read_side(trained.id, "rows")
            told = {r["id"]: r for r in seen.filter(pl.col("id").is_in(ids)).to_dicts()} if seen.width else {}
            for i in ids:
                facts = {k: told[i][k] for k in _OF_THE_TRAINING if told.get(i, {}).get(k) is not None}
                events.append((i, Event(trained.id, "train", names.get(trained.id, ""), facts)))
        if "origin" in made.side:
            for said in store.read_side(made.id, "origin").filter(pl.col("id").str.starts_with(row)).to_dicts():
                origin = said
    if not found:
        raise StoreError(f"there is no row {row!r} in {store.root}; `thresher show DATASET` lists ids")
    if len(found) > 1:
        raise StoreError(
            f"{len(found)} rows begin with {row!r}, such as {', '.join(list(found)[:3])}; give more of the id"
        )
    ((id_, said),) = found.items()
    return History({"id": id_, **said}, origin, [e for i, e in events if i == id_], sorted(children))


_OF_THE_TRAINING = ("times", "first_loss", "last_loss", "left_out")
_OF_THE_ROW = ("messages", "source", "method", "parent_id", "round", "embedding")
