"""The whole history of one row: where it came from, every score, why it was kept or dropped, what was trained on it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import polars as pl

from storage.scan import AT, Scan
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
    children: dict[str, str] = field(default_factory=dict)
    """The rows that came from it, each with the dataset where it first stood."""


def history(store: Store, row: str) -> History:
    """Everything the store knows of a row; an id may be cut short as long as one row alone begins so."""
    names = {dataset: name for name, dataset in store.names().items()}
    found: dict[str, dict] = {}
    dropped: dict[str, str | None] = {}
    events, grown, origins = [], [], {}
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
                is_meant = pl.col("id").str.starts_with(row)
                if "parent_id" in part.columns:
                    is_meant |= pl.col("parent_id").str.starts_with(row)
                for said in _rows(Scan(store.root, ((part,),)), part.columns, is_meant):
                    grown.append((said.get("parent_id"), said["id"], made.id))
                    if not said["id"].startswith(row):
                        continue
                    known = found.setdefault(said["id"], {})
                    known.update(
                        {k: v for k, v in said.items() if k in ROW.names and k not in known and k != "drop_reason"}
                    )
                    hidden = _OF_THE_ROW if "messages" in part.columns else ()
                    facts = {k: v for k, v in said.items() if k not in ("id", *hidden) and v is not None}
                    if facts.get("drop_reason") == dropped.get(said["id"]):  # said before, and carried along
                        facts.pop("drop_reason", None)
                    dropped[said["id"]] = said.get("drop_reason", dropped.get(said["id"]))
                    if facts or made.step in ("import", "taken"):
                        events.append((said["id"], Event(made.id, made.step, names.get(made.id, ""), facts)))
        if trainings := adapters_of.get(made.id):
            is_meant = pl.col("id").str.starts_with(row) & pl.col("drop_reason").is_null()
            ids = [r["id"] for r in _rows(Scan.of(store.root, made), ["id", "drop_reason"], is_meant)]
        for trained in trainings or ():
            told = {r["id"]: r for r in _side(store, trained, "rows", pl.col("id").is_in(ids))}
            for i in ids:
                facts = {k: told[i][k] for k in _OF_THE_TRAINING if told.get(i, {}).get(k) is not None}
                events.append((i, Event(trained.id, "train", names.get(trained.id, ""), facts)))
        for said in _side(store, made, "origin", pl.col("id").str.starts_with(row)):
            origins[said["id"]] = said
    if not found:
        raise StoreError(f"there is no row {row!r} in {store.root}; `thresher show DATASET` lists ids")
    found = {row: found[row]} if row in found else found
    if len(found) > 1:
        raise StoreError(
            f"{len(found)} rows begin with {row!r}, such as {', '.join(list(found)[:3])}; give more of the id"
        )
    ((id_, said),) = found.items()
    children: dict[str, str] = {}
    for parent, child, dataset in grown:
        if parent == id_:
            children.setdefault(child, dataset)
    events_of = [e for i, e in events if i == id_]
    return History({"id": id_, **said}, origins.get(id_), events_of, dict(sorted(children.items())))


_OF_THE_TRAINING = ("times", "first_loss", "last_loss", "left_out")
_OF_THE_ROW = ("messages", "source", "method", "parent_id", "round")


def _rows(scan: Scan, columns: Iterable[str], are_meant: pl.Expr) -> list[dict]:
    """The few rows that are meant; of the others little more is read than what tells that they are not."""
    wanted = [c for c in columns if c != "embedding"]
    return [said for rows in scan.each(wanted, lambda f: f.filter(are_meant)) for said in rows.drop(AT).to_dicts()]


def _side(store: Store, made: Manifest, table: str, are_meant: pl.Expr) -> list[dict]:
    parts = made.side.get(table, ())
    return _rows(Scan.of(store.root, made, table), parts[0].columns, are_meant) if parts else []
