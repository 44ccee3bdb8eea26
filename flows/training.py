"""Training as the store sees it: rows in, an adapter dataset out, never twice for the same rows, base and settings."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from flows.engines import EngineSpec, identity, model_folder, release
from flows.handoff import handed_off
from storage.store import Manifest, Store, StoreError, key_of
from training.settings import TrainConfig, TrainError
from training.sizes import parameters

VERSION = 3  # raise when the same rows and settings would give another adapter


def train_adapter(
    store: Store,
    rows: str,
    base: EngineSpec,
    config: TrainConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    processes: int = 1,
    every: float = 60.0,
) -> str:
    """Train on the live rows of a dataset; returns the id of the adapter, or of the model that a full run gives.

    The loaded models are freed first. A run that is killed leaves nothing to be seen, and goes on from its last
    checkpoint, one every so many seconds. Its side table `rows` tells of each row: tokens, how often it was seen, its
    loss the first and the last time, and why it was left out.
    """
    if base.adapter:
        raise StoreError(f"training starts from a base model, and {base.adapter} is an adapter; leave it out")
    live = store.read(rows, ["id", "messages", "drop_reason"]).filter(pl.col("drop_reason").is_null())
    config = sized(base.model, config)
    made = planned(base, config, live, rows)
    if store.exists(made.id):
        return made.id
    release()
    free = handed_off()
    started, folder = time.time(), store.scratch()
    told: Callable[[int, int, float], None] = lambda step, total, loss: progress(step, total)  # noqa: E731
    with store.workplace(made.id) as place:
        if store.exists(made.id):  # somebody else trained it while this process waited
            return made.id
        facts = _train(store, rows, live, base, config, folder, place, told, processes, every)
        part = store.put_part(key_of("train-curve", made.id), curve(facts.losses))
        seen = store.put_part(key_of("train-rows", made.id), facts.seen)
        files = store.put_folder(made.id, folder)
        store.note_run(made.id, started=started, **noted(facts), hand_off=dataclasses.asdict(free))
        counts = {"rows": facts.rows, "steps": len(facts.losses)}
        if left := facts.seen["left_out"].count():
            counts["left out"] = left
        sealed = dataclasses.replace(made, shards=((part,),), side={"rows": (seen,)}, files=files, counts=counts)
        return store.seal(sealed)


def sized(model: str, config: TrainConfig) -> TrainConfig:
    """The settings with what depends on the size of the model decided, as they stand in the key."""
    if config.learning_rate is not None:
        return config
    try:
        return config.for_model(parameters(model_folder(model)))
    except TrainError as why:
        raise StoreError(str(why)) from why


def planned(base: EngineSpec, config: TrainConfig, live: pl.DataFrame, rows: str) -> Manifest:
    """The dataset that a training would make; its id says whether it is there already."""
    engine, settings = identity(base), config.model_dump(mode="json")
    content = live.select("id", "messages").rows()
    return Manifest(
        id=f"train-{key_of('train', VERSION, settings, engine, content)[:12]}",
        kind="adapter",
        step="train",
        version=VERSION,
        config=settings,
        engines={"base": engine},
        inputs={"rows": rows},
    )


def base_name(base: EngineSpec) -> str:
    """What an adapter calls its base: a path would tell of the machine."""
    return Path(base.model).name if Path(base.model).is_dir() else base.model


def curve(losses: tuple[float, ...]) -> pl.DataFrame:
    return pl.DataFrame({"step": range(1, len(losses) + 1), "loss": losses})


def noted(facts: Any) -> dict[str, Any]:
    """What a run took, for its run.json."""
    return {
        "seconds": facts.seconds,
        "seconds_to_first_step": facts.first_step,
        "seconds_in_loop": facts.in_loop,
        "final_loss": facts.final_loss,
        "tokens": facts.tokens,
        "learnable_tokens": facts.learnable,
        "processes": facts.processes,
        "resumed_at": facts.resumed_at,
        "notes": list(facts.notes),
    }


def summary(facts: dict[str, Any], counts: dict[str, int]) -> list[str]:
    """A run's facts as lines for a person; docs/training.md says what each number is."""
    seconds, loop = facts["seconds"], facts["seconds_in_loop"]
    lines = [
        f"loss {facts['final_loss']:.4f} at the end, {counts['steps']:,} steps on {counts['rows']:,} rows; "
        f"{facts['tokens']:,} tokens, {facts['learnable_tokens']:,} of them learnt",
        f"{seconds:.1f} s, {facts['tokens'] / max(loop, 1e-9):,.0f} tokens/s in the loop; first step after "
        f"{facts['seconds_to_first_step']:.1f} s; {1 - loop / max(seconds, 1e-9):.0%} of the time outside the loop",
    ]
    if facts["resumed_at"]:
        lines.append(f"went on from the checkpoint of step {facts['resumed_at']:,}; the times are since then")
    if counts.get("left out"):
        lines.append(f"{counts['left out']:,} rows were left out; `thresher show ADAPTER --rows` lists them")
    return [*lines, *facts["notes"]]


def _train(
    store: Store,
    rows: str,
    live: pl.DataFrame,
    base: EngineSpec,
    config: TrainConfig,
    out: Path,
    place: Path,
    told: Callable[[int, int, float], None],
    processes: int,
    every: float,
) -> Any:
    began, first = time.monotonic(), [0.0]

    def tell(step: int, total: int, loss: float) -> None:
        first[0] = first[0] or time.monotonic()
        told(step, total, loss)

    if processes > 1:
        from flows.launch import launched

        facts = launched(store, rows, base, config, out, place, tell, processes, every)
    else:
        from training.sft import train  # TRL takes seconds to import, and a memoised run needs none of it

        folder, name = model_folder(base.model), base_name(base)
        try:
            facts = train(folder, live, out, config, name=name, progress=tell, checkpoints=place, every=every)
        except TrainError as why:
            raise StoreError(str(why)) from why
    # from here, so that imports and the start of processes count
    return dataclasses.replace(facts, seconds=round(time.monotonic() - began, 3), first_step=round(first[0] - began, 3))
