"""A training as the store sees it, of rows or of pairs: an adapter dataset out, never made twice."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import polars as pl

from flows.engines import EngineSpec, adapter_folder, dataset_of, model_folder, release, trained_on
from flows.handoff import handed_off
from storage.store import Manifest, Store, StoreError, key_of
from synthesis.fingerprint import folder_digest
from training.settings import EXECUTION, PreferConfig, TrainConfig
from training.sizes import parameters

Told = Callable[[int, int, float], None]  # step, steps in all, loss
# What decides how a run is carried out is no part of its key: it stands there as it did when nothing was asked.
_AS_EVER = {"train": {"rows_at_once": None, "gradient_checkpointing": "auto"}, "prefer": {}}


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """What is learnt from what; `data` is a dataset of rows to train on, or a table of pairs to prefer by."""

    kind: Literal["train", "prefer"]
    data: str
    base: EngineSpec
    config: TrainConfig | PreferConfig


def sized(job: Job) -> Job:
    """With what depends on the size of the model decided, as it stands in the key."""
    if job.config.learning_rate is not None:
        return job
    return dataclasses.replace(job, config=job.config.for_model(parameters(model_folder(job.base.model))))


def read(store: Store, job: Job) -> pl.DataFrame:
    """What the job learns from: id and messages of rows, or id, chosen and rejected of pairs."""
    if job.kind == "train":
        return store.read(job.data, ["id", "messages", "drop_reason"]).filter(pl.col("drop_reason").is_null())
    rows = store.manifest(job.data).inputs["rows"]
    texts = store.read(rows, ["id", "messages"])
    both = (
        store.read(job.data)
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


def planned(job: Job, version: int, said: pl.DataFrame, inputs: dict[str, str]) -> Manifest:
    """The dataset that a sized job would make of what was read; its id says whether it is there already."""
    settings = job.config.model_dump(mode="json", exclude=set(EXECUTION))
    engine = trained_on(job.base)
    content = said.drop("drop_reason", strict=False).rows()
    return Manifest(
        id=f"{job.kind}-{key_of(job.kind, version, settings | _AS_EVER[job.kind], engine, content)[:12]}",
        kind="adapter",
        step=job.kind,
        version=version,
        config=settings,
        engines={"base": engine},
        inputs=inputs,
    )


def trained_once(
    store: Store, made: Manifest, job: Job, said: pl.DataFrame, progress: Callable[[int, int], None], every: float
) -> str:
    """Carry out a job whose result is not there yet, after the loaded models have been freed.

    One that is killed leaves nothing to be seen, and goes on from its last checkpoint, one every so many seconds.
    """
    if store.exists(made.id):
        return made.id
    release()
    free = handed_off()
    started, out = time.time(), store.scratch()
    told: Told = lambda step, total, loss: progress(step, total)  # noqa: E731
    with store.workplace(made.id) as place:
        if store.exists(made.id):  # somebody else trained it while this process waited
            return made.id
        facts = _carried_out(store, job, said, out, place, told, every)
        part = store.put_part(key_of(f"{job.kind}-curve", made.id), facts.curve)
        side, counts = {}, {"rows" if job.kind == "train" else "pairs": facts.rows, "steps": facts.curve.height}
        if facts.seen is not None:
            side["rows"] = store.put_part(key_of(f"{job.kind}-rows", made.id), facts.seen)
            counts |= {"left out": left} if (left := facts.seen["left_out"].count()) else {}
        files = store.put_folder(made.id, out)
        store.note_run(made.id, started=started, **noted(facts), hand_off=dataclasses.asdict(free))
        sealed = dataclasses.replace(made, shards=((part,),), files=files, counts=counts)
        return store.seal(dataclasses.replace(sealed, side={name: (found,) for name, found in side.items()}))


def learn(store: Store, job: Job, said: pl.DataFrame, out: Path, place: Path, told: Told, every: float) -> Any:
    """The training itself, in this process; returns `training.running.Facts`."""
    base = model_folder(job.base.model)
    how: dict[str, Any] = {"name": base_name(store, job.base), "progress": told, "checkpoints": place, "every": every}
    from training.running import free_memory  # TRL takes seconds to import, and a memoised run needs none of it

    try:
        if job.kind == "prefer":
            from training.dpo import prefer

            return prefer(base, adapter_folder(job.base), said, out, job.config, **how)
        from training.sft import train

        return train(base, said, out, job.config, **how)
    finally:
        free_memory()


def result(store: Store, trained: str) -> Manifest:
    """The manifest of what a training made; StoreError where it is of something else."""
    made = store.manifest(trained)
    if made.kind != "adapter":
        raise StoreError(f"{trained} is a dataset of {made.kind}; name what `thresher train` made")
    return made


def check_base(made: Manifest, model: str) -> None:
    """Raises StoreError where a model is not the one that was trained on: an adapter fits any of the same shape."""
    trained, given = made.engines["base"].split(":")[1], folder_digest(model_folder(model))
    if trained != given:
        raise StoreError(
            f"{made.id} was trained on another model than {model} (the digest of its files is {given}, and was "
            f"{trained}); name that one with --model"
        )


def check_folder(adapter: Path, model: str) -> None:
    """Raises StoreError where a PEFT folder names another base than this model; of its weights it knows nothing."""
    told = adapter / "adapter_config.json"
    try:
        said = json.loads(told.read_text())["base_model_name_or_path"] if told.exists() else None
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"{told} cannot be read ({error!r}); export the adapter again") from error
    if said and Path(said).name not in model:  # a snapshot of the Hub has the name in its folder's path
        raise StoreError(f"{adapter} was trained on {said}, as it says, not on {model}; name that one with --model")


def base_name(store: Store, base: EngineSpec) -> str:
    """What an adapter calls its base: a path would tell of the machine. What a full run made goes by its id."""
    folder = Path(base.model)
    return dataset_of(store, folder) or (folder.name if folder.is_dir() else base.model)


def noted(facts: Any) -> dict[str, Any]:
    """What a run took, for its run.json."""
    return {
        "seconds": facts.seconds,
        "seconds_to_first_step": facts.first_step,
        "seconds_in_loop": facts.in_loop,
        **{f"final_{name}": value for name, value in facts.final.items()},
        "tokens": facts.tokens,
        "tokens_in_loop": facts.tokens_in_loop,
        "learnable_tokens": facts.learnable,
        "processes": facts.processes,
        "resumed_at": facts.resumed_at,
        "notes": list(facts.notes),
    }


def speed(facts: dict[str, Any], counts: dict[str, int]) -> list[str]:
    """What a run took, and did otherwise than asked, as lines for a person; docs/training.md explains every number."""
    seconds, loop = facts["seconds"], facts["seconds_in_loop"]
    alone = facts.get("tokens_in_loop", facts["tokens"])  # the first runs did not note it
    lines = [
        f"{seconds:.1f} s, {alone / max(loop, 1e-9):,.0f} tokens/s in the loop; first step after "
        f"{facts['seconds_to_first_step']:.1f} s; {1 - loop / max(seconds, 1e-9):.0%} of the time outside the loop",
    ]
    if facts["resumed_at"]:
        lines.append(f"went on from the checkpoint of step {facts['resumed_at']:,}; times and speed are since then")
    if counts.get("left out"):
        lines.append(f"{counts['left out']:,} rows were left out; `thresher show ADAPTER --rows` lists them")
    return [*lines, *facts["notes"]]


def _carried_out(store: Store, job: Job, said: pl.DataFrame, out: Path, place: Path, told: Told, every: float) -> Any:
    began, first = time.monotonic(), [0.0]

    def tell(step: int, total: int, loss: float) -> None:
        first[0] = first[0] or time.monotonic()
        told(step, total, loss)

    if job.config.processes > 1:
        from flows.launch import launched

        facts = launched(store, job, out, place, tell, every)
    else:
        facts = learn(store, job, said, out, place, tell, every)
    # from here, so that imports and the start of processes count
    return dataclasses.replace(facts, seconds=round(time.monotonic() - began, 3), first_step=round(first[0] - began, 3))
