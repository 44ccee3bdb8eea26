"""What every kind of training does alike: what TRL is told, and a loop that is told of, saved, and gone on with."""

import gc
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from training.checkpoint import UNFINISHED, Checkpoints, latest, not_saved
from training.model import checkpointing
from training.settings import PreferConfig, TrainConfig, TrainError

Progress = Callable[[int, int, float], None]  # step, steps in all, loss


@dataclass(frozen=True, slots=True)
class Facts:
    """What a training was. Of pairs, a row is a pair, with both its answers."""

    curve: pl.DataFrame  # step, loss; of pairs accuracy (share ranked right) and margin (of rewards, nats * beta) too
    seen: pl.DataFrame | None  # one line for each row, see `training.watch`; not of pairs
    rows: int  # that were trained on
    tokens: int  # that went through the model, padding left out
    learnable: int  # of these, the ones that the loss is about
    tokens_in_loop: int  # of `tokens`, those since the checkpoint that the run went on from
    seconds: float
    first_step: float  # seconds until the first optimiser step of this process was done
    in_loop: float  # seconds inside the training loop
    processes: int  # that trained
    resumed_at: int  # step of the checkpoint that the run went on from; 0 if it began anew
    notes: tuple[str, ...] = ()  # what was done otherwise than asked, and why

    @property
    def losses(self) -> tuple[float, ...]:
        """One for each optimiser step."""
        return tuple(self.curve["loss"])

    @property
    def final_loss(self) -> float:
        return self.final["loss"]

    @property
    def final(self) -> dict[str, float]:
        """Means over the last tenth of the steps: one batch says little."""
        return self.curve.tail(max(1, self.curve.height // 10)).drop("step").mean().row(0, named=True)


class Adapted:
    """A trainer whose checkpoints give back the adapter that is trained, in the dtype that it is trained in.

    transformers would read the adapters in folders below alone where there are any (DPO's reference is one), and leave
    the trained one, which lies beside them, as it was at the start; and it would turn QLoRA's into float32.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = model or self.model
        if isinstance(model, PeftModel):
            set_peft_model_state_dict(model, load_peft_weights(resume_from_checkpoint, device="cpu"))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


class Run:
    """One run of a trainer, which writes to `folder` and goes on from the checkpoint `resumed`, if there is one."""

    def __init__(self, folder: Path, resumed: Path | None, told: "_Told", callbacks: list[TrainerCallback]) -> None:
        self.folder, self.resumed, self.told, self.callbacks = folder, resumed, told, callbacks
        self.in_loop = 0.0

    @property
    def resumed_at(self) -> int:
        return int(self.resumed.name.rpartition("-")[2]) if self.resumed else 0

    def through(self, trainer: Any) -> None:
        trainer.remove_callback(PrinterCallback)
        began = time.monotonic()
        trainer.train(resume_from_checkpoint=str(self.resumed) if self.resumed else None)
        self.in_loop = time.monotonic() - began

    def facts(self, trainer: Any, config: TrainConfig | PreferConfig, lengths: list[int], started: float) -> dict:
        """What is told of every kind of training; `lengths` are those of the rows in the order of the steps."""
        logs = [told for told in trainer.state.log_history if "loss" in told]
        names = {"loss": "loss", "accuracy": "rewards/accuracies", "margin": "rewards/margins"}
        curve = {"step": [int(told["step"]) for told in logs]}
        curve |= {name: [float(told[key]) for told in logs] for name, key in names.items() if key in logs[0]}
        return {
            "curve": pl.DataFrame(curve),
            "tokens": sum(lengths),
            "tokens_in_loop": sum(lengths[self.resumed_at * config.batch_size :]),
            "seconds": round(time.monotonic() - started, 3),
            "first_step": round(self.told.first - started, 3),
            "in_loop": round(self.in_loop, 3),
            "processes": trainer.args.world_size,
            "resumed_at": self.resumed_at,
        }


@contextmanager
def running(
    config: TrainConfig | PreferConfig,
    progress: Progress | None,
    checkpoints: Path | None,
    every: float,
    state: Callable[[], dict[str, Any]] = dict,
) -> Iterator[Run]:
    """A run in a folder of its own, or in `checkpoints`, where one is kept every so many seconds with `state`.

    Turns an error while a checkpoint is written into TrainError, which tells of the last whole one.
    """
    told, resumed = _Told(config.optimizer_steps, progress), latest(checkpoints)
    kept = [Checkpoints(checkpoints, every, state)] if checkpoints else []
    with tempfile.TemporaryDirectory() as scratch:
        folder = (checkpoints or Path(scratch)) / UNFINISHED
        if first_process():
            shutil.rmtree(folder, ignore_errors=True)
        try:
            yield Run(folder, resumed, told, [told, *kept])
        except Exception as error:  # a full disk is an OSError, a RuntimeError or a SafetensorError, by who met it
            if checkpoints and any(folder.glob("checkpoint-*")):
                raise not_saved(checkpoints, error) from error
            raise


def arguments(kind: type, folder: Path, config: TrainConfig | PreferConfig, warm_up: float, **own: Any) -> Any:
    """TRL's arguments of a `kind` of training; `own` are those that the other kinds do not have."""
    on_gpu = torch.cuda.is_available()
    at_once, processes = config.rows_at_once or config.batch_size, process_count()
    if at_once % processes:
        raise TrainError(f"{at_once} rows at once cannot be shared by {processes} processes; take a multiple of them")
    made: TrainingArguments = kind(
        output_dir=str(folder),
        max_steps=config.optimizer_steps,
        per_device_train_batch_size=at_once // processes,
        gradient_accumulation_steps=config.batch_size // at_once,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule if config.schedule != "constant" else "constant_with_warmup",
        warmup_steps=round(warm_up * config.optimizer_steps),
        seed=config.seed,
        train_sampling_strategy="sequential",  # the order is ours
        remove_unused_columns=False,
        max_length=None,  # checked row by row
        use_cpu=not on_gpu,
        bf16=on_gpu,
        gradient_checkpointing=checkpointing(config),
        gradient_checkpointing_kwargs={"use_reentrant": False},
        dataloader_num_workers=0,
        dataloader_pin_memory=on_gpu,
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        push_to_hub=False,
        **own,
    )
    made._n_gpu = min(made.n_gpu, 1)  # one process trains on one GPU, however many it sees; TRL refuses otherwise
    return made


def free_memory() -> None:
    """Give back what a training that is over held of a card: vLLM refuses to start where too little is free."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def process_count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))  # as `accelerate launch` says it


def first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


class _Told(TrainerCallback):
    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.first = total, progress, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.first = self.first or time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **rest: Any) -> None:
        if logs and "loss" in logs and self.progress:
            self.progress(state.global_step, self.total, float(logs["loss"]))
