"""Supervised fine-tuning with TRL: rows in, an adapter or a model out, the same bytes for the same seed."""

import time
from pathlib import Path
from typing import Any

import polars as pl
from datasets import Dataset
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer

from training.batch import Packed, Padded, keeps_apart, order, packed_into
from training.checkpoint import saved_state
from training.encode import CHANGED, IGNORED, Rows, Template, encode_rows, load_tokenizer, longest
from training.loss import token_losses
from training.model import load_model
from training.running import Adapted, Facts, Progress, arguments, first_process, running
from training.save import save_adapter, save_model, written
from training.settings import TrainConfig, TrainError
from training.sizes import parameters
from training.watch import Watch

__all__ = ["Facts", "TrainConfig", "TrainError", "train"]

_WARM_UP = 0.05


def encoded(base: str | Path, rows: pl.DataFrame, config: TrainConfig) -> tuple[Template, Rows]:
    """The rows as a run would learn them; raises TrainError naming one that cannot be learnt."""
    transformers_logging.set_verbosity_error()
    template = Template(load_tokenizer(base), base)
    return template, encode_rows(template, rows, longest(base, config.max_length), config.too_long)


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
    share: bool = True,
) -> Facts:
    """Train on the assistant's tokens of `rows` (id, messages); writes an adapter, or a model, to the folder `out`.

    `name` is what the adapter's config calls its base model: it must not depend on the machine. With `checkpoints`, a
    folder of this run's own, a checkpoint is kept there after every so many seconds, and a run that was killed goes on
    from the last one, to the same losses. Under `accelerate launch` each process calls this; the first one writes.
    With `share`, what the rows of a batch begin with is read once, where the model and the settings allow it.
    """
    started = time.monotonic()
    transformers_logging.disable_progress_bar()
    template, found = encoded(base, rows, config)
    config = config if config.learning_rate else config.for_model(parameters(Path(base)))
    model, notes = load_model(base, config), _notes(found)
    if config.packing and not keeps_apart(model, template.tokenizer.pad_token_id, [e.tokens for e in found.encoded]):
        config = config.model_copy(update={"packing": False})
        notes.append("packing is off: this model lets packed rows see each other")
    watch, lengths = Watch(found.encoded, found.left_out), [len(e.tokens) for e in found.encoded]
    drawn = order(lengths, config)
    with running(config, progress, checkpoints, every, watch.state) as run:
        if run.resumed and first_process():  # of the others each tells what it sees from here
            watch.restore(saved_state(run.resumed))
        trainer = _Trainer(
            model=model,
            args=arguments(SFTConfig, run.folder, config, _WARM_UP, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=_dataset(found).select(drawn),
            processing_class=template.tokenizer,
            data_collator=_collator(model, template.tokenizer.pad_token_id, lengths, config),
            callbacks=run.callbacks,
            watch=watch,
            share=share,
        )
        run.through(trainer)
        if trainer.is_world_process_zero():
            inner = trainer.accelerator.unwrap_model(trainer.model)
            with written(out):
                save_model(inner, base, out) if config.method == "full" else save_adapter(inner, out, name or str(base))
    watch.gather()
    return Facts(
        seen=watch.table(),
        rows=len(found.encoded),
        learnable=sum(sum(found.encoded[i].learnt) for i in drawn),
        notes=tuple(notes),
        **run.facts(trainer, config, [lengths[i] for i in drawn], started),
    )


def _notes(found: Rows) -> list[str]:
    changed = sum(e.told == CHANGED for e in found.encoded)
    return [f"{changed:,} rows are learnt by {CHANGED}"] if changed else []


def _dataset(found: Rows) -> Dataset:
    return Dataset.from_dict(
        {
            "input_ids": [e.tokens for e in found.encoded],
            "labels": [e.labels for e in found.encoded],
            "row": list(range(len(found.encoded))),
        }
    )


def _collator(model: Any, pad: int, lengths: list[int], config: TrainConfig) -> Padded | Packed:
    if not config.packing:
        return Padded(pad)
    compiled = model.config._attn_implementation == "flex_attention"
    return Packed(pad, packed_into(model, max(config.max_length, *lengths)), fixed=compiled)


class _Trainer(Adapted, SFTTrainer):
    """TRL's trainer with our loss, which also tells of each row. The labels are ours too: one mask, checked by row."""

    def __init__(self, *, watch: Watch, share: bool, **rest: Any) -> None:
        super().__init__(**rest)
        # what is recomputed in the backward pass cannot be shared, nor what is split among processes
        self.share = share and not self.args.gradient_checkpointing and self.args.world_size == 1
        self.watch = watch

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        rows, labels = inputs.pop("rows"), inputs["labels"]
        losses, places = token_losses(model, **inputs, share=self.share, config=self.model.config)
        self.watch.batch(self.state.global_step, rows[:, places], labels[:, places], losses)
        count = (labels[:, 1:] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return losses.sum() / count * self.accelerator.num_processes
