"""Training as the store sees it: rows in, an adapter dataset out, never twice for the same rows, base and settings."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl

from flows.engines import EngineSpec, identity, model_folder, release
from storage.store import Manifest, Store, StoreError, key_of
from training.settings import TrainConfig

VERSION = 2  # raise when the same rows and settings would give another adapter


def train_adapter(
    store: Store,
    rows: str,
    base: EngineSpec,
    config: TrainConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Train a fresh adapter on the live rows of a dataset; returns the id of the adapter.

    The loaded models are freed first. A run that is killed leaves nothing to be seen, and starts again.
    """
    if base.adapter:
        raise StoreError(f"training starts from a base model, and {base.adapter} is an adapter; leave it out")
    engine, settings = identity(base), config.model_dump(mode="json")
    live = store.read(rows, ["id", "messages", "drop_reason"]).filter(pl.col("drop_reason").is_null())
    content = live.select("id", "messages").rows()
    made = Manifest(
        id=f"train-{key_of('train', VERSION, settings, engine, content)[:12]}",
        kind="adapter",
        step="train",
        version=VERSION,
        config=settings,
        engines={"base": engine},
        inputs={"rows": rows},
    )
    if store.exists(made.id):
        return made.id
    release()
    from training.sft import TrainError, train  # TRL takes seconds to import, and a memoised run needs none of it

    started, folder = time.time(), store.scratch()
    try:
        facts = train(
            model_folder(base.model),
            live,
            folder,
            config,
            name=Path(base.model).name if Path(base.model).is_dir() else base.model,  # a path would tell of the machine
            progress=lambda step, total, loss: progress(step, total),
        )
    except TrainError as why:
        raise StoreError(str(why)) from why
    curve = pl.DataFrame({"step": range(1, len(facts.losses) + 1), "loss": facts.losses})
    part = store.put_part(key_of("train-curve", made.id), curve)
    files = store.put_folder(made.id, folder)
    store.note_run(
        made.id,
        started=started,
        seconds=facts.seconds,
        final_loss=facts.final_loss,
        tokens=facts.tokens,
        learnable_tokens=facts.learnable,
    )
    counts = {"rows": facts.rows, "steps": len(facts.losses)}
    return store.seal(dataclasses.replace(made, shards=((part,),), files=files, counts=counts))
