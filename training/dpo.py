"""Direct preference optimisation (Rafailov et al., 2023, arXiv 2305.18290) with TRL, after supervised fine-tuning.

    loss = -log sigmoid(beta * ((log p(chosen) - log ref(chosen)) - (log p(rejected) - log ref(rejected))))

ref is the model as it was at the start: base and given adapter, of which TRL keeps a frozen copy.
"""

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
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import DPOConfig, DPOTrainer

from training.checkpoint import UNFINISHED, Checkpoints, latest, not_saved
from training.encode import Template, load_tokenizer
from training.model import load_model
from training.save import save_adapter, written
from training.settings import PreferConfig, TrainError
from training.sizes import parameters

_WARM_UP = 0.1


@dataclass(frozen=True, slots=True)
class PreferFacts:
    curve: pl.DataFrame  # step, loss, accuracy (share of pairs ranked right), margin (of the rewards, in nats * beta)
    pairs: int
    seconds: float
    resumed_at: int


def prefer(
    base: str | Path,
    adapter: Path | None,
    pairs: pl.DataFrame,
    out: Path,
    config: PreferConfig,
    *,
    name: str | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    checkpoints: Path | None = None,
    every: float = 60.0,
) -> PreferFacts:
    """Train on `pairs` (id, chosen, rejected: whole conversations with one prompt); writes a PEFT folder to `out`.

    Starts from `adapter`, or from a fresh one. Raises TrainError naming a pair that cannot be learnt.
    """
    started = time.monotonic()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    template = Template(load_tokenizer(base), base)
    told = [_pair(template, row, config.max_length) for row in pairs.iter_rows(named=True)]
    if not told:
        raise TrainError("there is no pair to learn from; pairs are rows and their corrections")
    config = config if config.learning_rate else config.for_model(parameters(Path(base)))
    model = load_model(base, config.as_training(), adapter)
    resume = latest(checkpoints)
    with tempfile.TemporaryDirectory() as scratch:
        place = checkpoints or Path(scratch)
        shutil.rmtree(place / UNFINISHED, ignore_errors=True)
        trainer = DPOTrainer(
            model=model,
            args=_arguments(place / UNFINISHED, config),
            train_dataset=Dataset.from_list(told),
            processing_class=template.tokenizer,
            callbacks=[
                _Told(config.optimizer_steps, progress),
                *([Checkpoints(checkpoints, every)] if checkpoints else []),
            ],
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except Exception as error:
            if checkpoints and any((place / UNFINISHED).glob("checkpoint-*")):
                raise not_saved(checkpoints, error) from error
            raise
        with written(out):
            save_adapter(trainer.accelerator.unwrap_model(trainer.model), out, name or str(base))
    logs = [told for told in trainer.state.log_history if "loss" in told]
    return PreferFacts(
        curve=pl.DataFrame(
            {
                "step": [int(told["step"]) for told in logs],
                "loss": [float(told["loss"]) for told in logs],
                "accuracy": [float(told["rewards/accuracies"]) for told in logs],
                "margin": [float(told["rewards/margins"]) for told in logs],
            }
        ),
        pairs=len(told),
        seconds=round(time.monotonic() - started, 3),
        resumed_at=int(resume.name.rpartition("-")[2]) if resume else 0,
    )


def _pair(template: Template, row: dict[str, Any], max_length: int) -> dict[str, list[dict[str, Any]]]:
    """A pair as TRL takes it; both answers are checked as rows are."""
    said = {}
    for which in ("chosen", "rejected"):
        found = template.encode(f"{row['id']} ({which})", row[which])
        if not any(found.learnt) or len(found.tokens) > max_length:
            why = f"{len(found.tokens)} tokens, over {max_length}" if any(found.learnt) else "no answer in it"
            raise TrainError(f"pair {row['id']}: its {which} answer cannot be learnt ({why}); leave out the pair")
        said[which] = [{"role": m["role"], "content": m["content"] or ""} for m in row[which]]
    return {"prompt": said["chosen"][:-1], "chosen": said["chosen"][-1:], "rejected": said["rejected"][-1:]}


def _arguments(place: Path, config: PreferConfig) -> DPOConfig:
    on_gpu = torch.cuda.is_available()
    return DPOConfig(
        output_dir=str(place),
        max_steps=config.optimizer_steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule if config.schedule != "constant" else "constant_with_warmup",
        warmup_steps=round(_WARM_UP * config.optimizer_steps),
        beta=config.beta,
        seed=config.seed,
        max_length=None,  # checked pair by pair
        use_cpu=not on_gpu,
        bf16=on_gpu,
        gradient_checkpointing=on_gpu,
        dataloader_pin_memory=on_gpu,
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        push_to_hub=False,
    )


class _Told(TrainerCallback):
    """Tells of each step, and stops at a loss that is no number."""

    def __init__(self, total: int, progress: Callable[[int, int, float], None] | None) -> None:
        self.total, self.progress = total, progress

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **rest: Any) -> None:
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise TrainError(f"the loss is no number at step {state.global_step}; lower the learning rate or beta")
        if self.progress:
            self.progress(state.global_step, self.total, loss)
