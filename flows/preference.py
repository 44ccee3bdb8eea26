"""Pairs of row ids, of which one has the better answer, and the training that learns from them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import polars as pl

from flows.engines import EngineSpec
from flows.trained import Job, planned, read, sized, speed, trained_once
from storage.preferences import MASK
from storage.schema import PAIR, prompt, response
from storage.store import Manifest, Store, StoreError, key_of
from training.settings import PreferConfig

VERSION = 3  # raise when the same pairs and settings would give another adapter
_TEXT = ["id", "messages", "parent_id", "method", "drop_reason"]


def pairs_of(store: Store, rows: str) -> str:
    """Pairs of a dataset: each live row that was made of another with the same prompt, preferred to that one.

    A correction is such a row (CLEAR's stand beside the rows that they correct); a row that was grown with a prompt of
    its own, or that was masked, is none. Returns the id of a table of pairs.
    """
    source = store.manifest(rows)
    made = Manifest(f"pairs-{key_of('pairs', 4, source.digest)[:12]}", "table", "pairs", 4, {}, {}, {"rows": rows})
    if store.exists(made.id):
        return made.id
    all_rows = store.read(rows, _TEXT)
    both = (
        all_rows.filter(pl.col("drop_reason").is_null() & pl.col("method").ne_missing(MASK))
        .join(all_rows.select(parent_id="id", parent="messages"), on="parent_id", how="inner", maintain_order="left")
        .select("id", "parent_id", "method", "messages", "parent")
    )
    pairs = [
        (row, parent, method or "import")
        for row, parent, method, messages, before in both.iter_rows()
        if prompt(messages) == prompt(before) and _answer(messages) != _answer(before)
    ]
    frame = pl.DataFrame(pairs, schema={name: pl.String for name in PAIR.names}, orient="row")
    part = store.put_part(key_of("pairs", made.id), frame, PAIR)
    return store.seal(dataclasses.replace(made, shards=((part,),), counts={"pairs": frame.height}))


def prefer_adapter(
    store: Store,
    pairs: str,
    base: EngineSpec,
    config: PreferConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    every: float = 60.0,
) -> str:
    """Learn from a table of pairs, starting from the adapter of `base` if it has one; returns the id of the adapter."""
    source = store.manifest(pairs)
    if source.step != "pairs":
        raise StoreError(f"{pairs} holds no pairs; `thresher prefer DATASET` makes them of a dataset of rows")
    job = sized(Job("prefer", pairs, base, config))
    both = read(store, job)
    made = planned(job, VERSION, both, {"pairs": pairs, "rows": source.inputs["rows"]})
    return trained_once(store, made, job, both, progress, every)


def summary(facts: dict[str, Any], counts: dict[str, int]) -> list[str]:
    """A run's facts as lines for a person."""
    return [
        f"loss {facts['final_loss']:.4f} at the end (0.6931 at the start), {facts['final_accuracy']:.0%} of the pairs "
        f"ranked right, margin {facts['final_margin']:.3f}; {counts['pairs']:,} pairs, {counts['steps']:,} steps",
        *speed(facts, counts),
    ]


def _answer(messages: list[dict[str, Any]]) -> tuple[str, str | None]:
    return response(messages), messages[-1].get("tool_calls")
