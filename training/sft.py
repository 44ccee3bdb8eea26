"""Supervised fine-tuning with TRL: rows in, an adapter or a model out, the same bytes for the same seed."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from datasets import Dataset
from transformers import AutoConfig, PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from training.batch import Packed, Padded, keeps_apart, order
from training.checkpoint import UNFINISHED, Checkpoints, latest, not_saved, saved_state
from training.encode import Rows, Template, encode_rows, load_tokenizer
from training.loss import token_losses
from training.model import checkpointing, load_model
from training.save import save_adapter, save_model, written
from training.settings import TrainConfig, TrainError
from training.sizes import parameters
from training.watch import Watch

__all__ = ["TrainConfig", "TrainError", "TrainFacts", "train"]

Progress = Callable[[int, int, float], None]  # step, steps in all, loss
_WARM_UP = 0.05


@dataclass(frozen=True, slots=True)
class TrainFacts:
    losses: tuple[float, ...]  # one for each optimiser step
    seen: pl.DataFrame  # one line for each row, see `training.watch`
    rows: int  # that were trained on
    tokens: int  # that went through the model, padding left out
    learnable: int  # of these, the ones that the loss is about
    seconds: float
    first_step: float  # seconds until the first optimiser step of this process was done
    in_loop: float  # seconds inside the training loop
    processes: int  # that trained
    resumed_at: int  # step of the checkpoint that the run went on from; 0 if it began anew
    notes: tuple[str, ...]  # what was done otherwise than asked, and why

    @property
    def final_loss(self) -> float:
        """Mean over the last tenth of the steps: one batch says little."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(last) / len(last)


def encoded(base: str | Path, rows: pl.DataFrame, config: TrainConfig) -> tuple[Template, Rows]:
    """The rows as a run would learn them; raises TrainError naming one that cannot be learnt."""
    transformers_logging.set_verbosity_error()
    template = Template(load_tokenizer(base), base)
    said = AutoConfig.from_pretrained(base, trust_remote_code=False).get_text_config()
    context = getattr(said, "max_position_embeddings", None) or config.max_length
    return template, encode_rows(template, rows, min(config.max_length, context), config.too_long)


def train(
    base: str | Path,
    rows: pl.DataFrame,
    out: Path,
    config: TrainConfig,
    *,
    name: str | None = None,
    progress: Progress | None = None,
    checkpoints: Path | None = None,
    every: float = 60.0,
) -> TrainFacts:
    """Train on the assistant's tokens of `rows` (id, messages); writes an adapter, or a model, to the folder `out`.

    `name` is what the adapter's config calls its base model: it must not depend on the machine. With `checkpoints`, a
    folder of this run's own, a checkpoint is kept there after every so many seconds, and a run that was killed goes on
    from the last one, to the same losses. Under `accelerate launch` each process calls this; the first one writes.
    """
    started = time.monotonic()
    transformers_logging.disable_progress_bar()
    template, found = encoded(base, rows, config)
    config = config if config.learning_rate else config.for_model(parameters(Path(base)))
    model, notes = load_model(base, config), []
    if config.packing and not keeps_apart(model, [e.tokens for e in found.encoded]):
        config = config.model_copy(update={"packing": False})
        notes.append("packing is off: this model lets packed rows see each other")
    watch, lengths = Watch(found.encoded, found.left_out), [len(e.tokens) for e in found.encoded]
    drawn = order(lengths, config)
    curve = _Curve(config.optimizer_steps, progress)
    resume = latest(checkpoints)
    if resume:
        watch.restore(saved_state(resume))
    with tempfile.TemporaryDirectory() as scratch:
        place = checkpoints or Path(scratch)
        shutil.rmtree(place / UNFINISHED, ignore_errors=True)
        trainer = _Trainer(
            model=model,
            args=_arguments(place / UNFINISHED, config),
            train_dataset=_dataset(found).select(drawn),
            processing_class=template.tokenizer,
            data_collator=_collator(template, lengths, config),
            callbacks=[curve, *([Checkpoints(checkpoints, every, watch.state)] if checkpoints else [])],
            watch=watch,
        )
        trainer.remove_callback(PrinterCallback)
        looped = time.monotonic()
        try:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except Exception as error:  # a full disk is an OSError, a RuntimeError or a SafetensorError, by who met it
            if checkpoints and any((place / UNFINISHED).glob("checkpoint-*")):
                raise not_saved(checkpoints, error) from error
            raise
        in_loop = time.monotonic() - looped
        if trainer.is_world_process_zero():
            inner = trainer.accelerator.unwrap_model(trainer.model)
            with written(out):
                save_model(inner, base, out) if config.method == "full" else save_adapter(inner, out, name or str(base))
    if trainer.args.world_size > 1:
        watch.gather()
    return TrainFacts(
        losses=tuple(float(told["loss"]) for told in trainer.state.log_history if "loss" in told),
        seen=watch.table(),
        rows=len(found.encoded),
        tokens=sum(lengths[i] for i in drawn),
        learnable=sum(sum(found.encoded[i].learnt) for i in drawn),
        seconds=round(time.monotonic() - started, 3),
        first_step=round(curve.first - started, 3),
        in_loop=round(in_loop, 3),
        processes=trainer.args.world_size,
        resumed_at=int(resume.name.rpartition("-")[2]) if resume else 0,
        notes=tuple(notes),
    )


def _dataset(found: Rows) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [e.tokens for e in found.encoded],
            "labels": [e.labels for e in found.encoded],
            "row": list(range(len(found.encoded))),
        }
    )


def _collator(template: Template, lengths: list[int], config: TrainConfig) -> Padded | Packed:
    pad = template.tokenizer.pad_token_id
    return Packed(pad, max(config.max_length, *lengths)) if config.packing else Padded(pad)


def _arguments(place: Path, config: TrainConfig) -> SFTConfig:
    on_gpu = torch.cuda.is_available()
    at_once, processes = config.rows_at_once or config.batch_size, _processes()
    if at_once % processes:
        raise TrainError(f"{at_once} rows at once cannot be shared by {processes} processes; take a multiple of them")
    return SFTConfig(
        output_dir=str(place),
        max_steps=config.optimizer_steps,
        per_device_train_batch_size=at_once // processes,
        gradient_accumulation_steps=config.batch_size // at_once,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule if config.schedule != "constant" else "constant_with_warmup",
        warmup_steps=round(_WARM_UP * config.optimizer_steps),
        seed=config.seed,
        train_sampling_strategy="sequential",  # the order is ours
        dataset_kwargs={"skip_prepare_dataset": True},  # labels are ours: one mask, checked row by row
        remove_unused_columns=False,
        max_length=None,
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
    )


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))  # as `accelerate launch` says it


class _Trainer(SFTTrainer):
    """TRL's trainer with our loss, which also tells of each row."""

    def __init__(self, *, watch: Watch, **rest: Any) -> None:
        super().__init__(**rest)
        self.watch = watch

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        rows, labels = inputs.pop("rows"), inputs["labels"]
        # what is recomputed in the backward pass cannot be shared, nor what is split among processes
        share = not self.args.gradient_checkpointing and self.args.world_size == 1
        losses, places = token_losses(model, **inputs, share=share, config=self.model.config)
        self.watch.batch(rows[:, places], labels[:, places], losses)
        count = (labels[:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch
        return losses.sum() / count * self.accelerator.num_processes


class _Curve(TrainerCallback):
    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.first = total, progress, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.first = self.first or time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **rest: Any) -> None:
        if logs and "loss" in logs and self.progress:
            self.progress(state.global_step, self.total, float(logs["loss"]))
