"""Pairs of row ids, of which one has the better answer, and the training that learns from them."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl

from flows.engines import EngineSpec, identity, model_folder, release
from flows.handoff import handed_off
from flows.training import base_name
from storage.schema import PAIR, prompt, response
from storage.store import Manifest, Store, StoreError, key_of
from training.settings import PreferConfig, TrainError
from training.sizes import parameters

VERSION = 1  # raise when the same pairs and settings would give another adapter
_TEXT = ["id", "messages", "parent_id", "method", "drop_reason"]


def pairs_of(store: Store, rows: str) -> str:
    """Pairs of a dataset: each live row that was made of another with the same prompt, preferred to that one.

    A correction is such a row (CLEAR's stand beside the rows that they correct); a row that was grown with a prompt of
    its own is none. Returns the id of a table of pairs.
    """
    source = store.manifest(rows)
    made = Manifest(f"pairs-{key_of('pairs', 1, source.digest)[:12]}", "table", "pairs", 1, {}, {}, {"rows": rows})
    if store.exists(made.id):
        return made.id
    all_rows = store.read(rows, _TEXT)
    both = (
        all_rows.filter(pl.col("drop_reason").is_null())
        .join(all_rows.select(parent_id="id", parent="messages"), on="parent_id", how="inner", maintain_order="left")
        .select("id", "parent_id", "method", "messages", "parent")
    )
    pairs = [
        (row, parent, method or "import")
        for row, parent, method, messages, before in both.iter_rows()
        if prompt(messages) == prompt(before) and response(messages) != response(before)
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
    every: float = 60.0,
) -> str:
    """Learn from a table of pairs, starting from the adapter of `base` if it has one; returns the id of the adapter.

    Like any training it is not made twice, and goes on from its last checkpoint if it was killed.
    """
    source = store.manifest(pairs)
    if source.step != "pairs":
        raise StoreError(f"{pairs} holds no pairs; `thresher prefer DATASET` makes them of a dataset of rows")
    rows, both = source.inputs["rows"], _answers(store, pairs, source.inputs["rows"])
    folder, adapter = model_folder(base.model), base.adapter
    try:
        config = config.for_model(parameters(folder))
        engine, settings = identity(base), config.model_dump(mode="json")
        made = Manifest(
            id=f"prefer-{key_of('prefer', VERSION, settings, engine, both.rows())[:12]}",
            kind="adapter",
            step="prefer",
            version=VERSION,
            config=settings,
            engines={"base": engine},
            inputs={"pairs": pairs, "rows": rows},
        )
        if store.exists(made.id):
            return made.id
        release()
        free = handed_off()
        from training.dpo import prefer

        started, out = time.time(), store.scratch()
        with store.workplace(made.id) as place:
            if store.exists(made.id):  # somebody else trained it while this process waited
                return made.id
            facts = prefer(
                folder,
                None if adapter is None else _folder(adapter),
                both,
                out,
                config,
                name=base_name(base),
                progress=lambda step, total, loss: progress(step, total),
                checkpoints=place,
                every=every,
            )
            part = store.put_part(key_of("prefer-curve", made.id), facts.curve)
            files = store.put_folder(made.id, out)
            last = facts.curve.tail(max(1, facts.curve.height // 10)).select("loss", "accuracy", "margin").mean()
            store.note_run(
                made.id,
                started=started,
                seconds=facts.seconds,
                resumed_at=facts.resumed_at,
                hand_off=dataclasses.asdict(free),
                **{f"final_{k}": v for k, v in last.row(0, named=True).items()},
            )
            counts = {"pairs": facts.pairs, "steps": facts.curve.height}
            return store.seal(dataclasses.replace(made, shards=((part,),), files=files, counts=counts))
    except TrainError as why:
        raise StoreError(str(why)) from why


def _answers(store: Store, pairs: str, rows: str) -> pl.DataFrame:
    """The conversations of each pair: id, chosen, rejected."""
    texts = store.read(rows, ["id", "messages"])
    both = (
        store.read(pairs)
        .join(texts.rename({"messages": "chosen"}), on="id", how="left", maintain_order="left")
        .join(texts.rename({"id": "rejected", "messages": "worse"}), on="rejected", how="left", maintain_order="left")
        .select("id", "chosen", rejected="worse")
    )
    if both.is_empty():
        raise StoreError(
            f"{rows} holds no pair: no live row in it answers the prompt of the row that it was made of otherwise; "
            "correct some rows first"
        )
    return both


def _folder(adapter: str) -> Path:
    folder = Path(adapter).expanduser()
    if not (folder / "adapter_config.json").exists():
        raise StoreError(f"there is no adapter in {adapter}; give the name of one, or a folder")
    return folder
