"""Supervised fine-tuning of a LoRA adapter with TRL: rows in, a plain PEFT folder out, same bytes for the same seed."""

import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from datasets import Dataset
from jinja2 import TemplateError
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback, set_seed
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.utils import logging as transformers_logging
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template, is_chat_template_stop_token_trained

from training.settings import TrainConfig

__all__ = ["TrainConfig", "TrainError", "TrainFacts", "train"]

_WARM_UP = 0.05
_WINDOW = 16  # batches among which rows of like length are put together
_WORTH_SHARING = 64  # tokens that a batch need not read again


class TrainError(Exception):
    """The rows or the model cannot be trained on as they are; the message names them and the remedy."""


@dataclass(frozen=True, slots=True)
class TrainFacts:
    losses: tuple[float, ...]  # one for each optimiser step
    rows: int
    tokens: int  # that went through the model, padding left out
    learnable: int  # of these, the ones that the loss is about
    seconds: float

    @property
    def final_loss(self) -> float:
        """Mean over the last tenth of the steps: one batch says little."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(last) / len(last)


def train(
    base: str | Path,
    rows: pl.DataFrame,
    out: Path,
    config: TrainConfig,
    *,
    name: str | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> TrainFacts:
    """Train a fresh adapter on the assistant's tokens of `rows` (id, messages) and write it to the folder `out`.

    `name` is what the adapter's config calls its base model: it must not depend on the machine.
    """
    started = time.monotonic()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    tokenizer = _tokenizer(base)
    model = _model(base, config)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or config.max_length
    encoded = _encode(tokenizer, rows, min(config.max_length, context))
    order = _order([len(e["input_ids"]) for e in encoded], config)
    curve = _Curve(config.optimizer_steps, progress)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _Trainer(
            model=model,
            args=_arguments(scratch, config),
            train_dataset=Dataset.from_list(encoded).select(order),
            processing_class=tokenizer,
            callbacks=[curve],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    _save(model, out, name or str(base))
    return TrainFacts(
        losses=tuple(curve.losses),
        rows=len(encoded),
        tokens=sum(len(encoded[i]["input_ids"]) for i in order),
        learnable=sum(sum(t != -100 for t in encoded[i]["labels"]) for i in order),
        seconds=round(time.monotonic() - started, 3),
    )


def _tokenizer(base: str | Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    if tokenizer.chat_template is None:
        raise TrainError(f"{base} has no chat template; use a tuned model, or add a chat_template.jinja")
    if "{% generation %}" not in tokenizer.chat_template.replace("{%-", "{%").replace("-%}", "%}"):
        try:  # TRL knows how to mark the assistant's tokens in the templates of the common families
            tokenizer.chat_template = get_training_chat_template(tokenizer)
        except ValueError as error:
            raise TrainError(
                f"the chat template of {base} does not mark what the assistant says, so nothing could be learnt; "
                "put {% generation %} … {% endgeneration %} around it"
            ) from error
    if not is_chat_template_stop_token_trained(tokenizer):
        raise TrainError(f"the chat template of {base} leaves the end token outside {{% generation %}}: move it inside")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _encode(tokenizer: Any, rows: pl.DataFrame, max_length: int) -> list[dict[str, list[int]]]:
    """Tokens and labels of each row; a row without a learnable token is an error, never a silent zero."""
    if rows.is_empty():
        raise TrainError("there is no row to train on; choose some first")
    encoded = []
    for row_id, messages in rows.select("id", "messages").iter_rows():
        try:
            said = [_said(m) for m in messages]
            found = tokenizer.apply_chat_template(said, return_dict=True, return_assistant_tokens_mask=True)
        except (TemplateError, ValueError) as error:  # ValueError: tool calls that are not JSON
            raise TrainError(f"row {row_id} cannot be put into the chat template ({error}); drop the row") from error
        ids, mask = found["input_ids"][:max_length], found["assistant_masks"][:max_length]
        if not any(mask):
            why = (
                f"all of it lies beyond max_length {max_length}" if any(found["assistant_masks"]) else "no answer in it"
            )
            raise TrainError(f"row {row_id} has no learnable token ({why}); drop the row or raise max_length")
        encoded.append({"input_ids": ids, "labels": [t if m else -100 for t, m in zip(ids, mask, strict=True)]})
    return encoded


def _said(message: dict[str, str | None]) -> dict[str, Any]:
    calls = {"tool_calls": json.loads(message["tool_calls"])} if message.get("tool_calls") else {}
    return {"role": message["role"], "content": message["content"] or "", **calls}


def _order(lengths: list[int], config: TrainConfig) -> list[int]:
    """Which rows each step sees: every row once an epoch, rows of like length together, the batches shuffled."""
    shuffle = random.Random(config.seed).shuffle
    size, wanted = config.batch_size, config.optimizer_steps * config.batch_size
    order: list[int] = []
    while len(order) < wanted:
        epoch = list(range(len(lengths)))
        shuffle(epoch)
        order += epoch
    order = order[:wanted]
    batches = []
    for start in range(0, wanted, size * _WINDOW):
        window = sorted(order[start : start + size * _WINDOW], key=lambda i: lengths[i])
        inside = [window[k : k + size] for k in range(0, len(window), size)]
        shuffle(inside)
        batches += inside
    return [i for batch in batches for i in batch]


def _model(base: str | Path, config: TrainConfig) -> Any:
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, trust_remote_code=False)
    set_seed(config.seed)  # decides the first weights of the adapter
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, lora)


def _arguments(scratch: str, config: TrainConfig) -> SFTConfig:
    on_gpu = torch.cuda.is_available()
    return SFTConfig(
        output_dir=scratch,
        max_steps=config.optimizer_steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule if config.schedule != "constant" else "constant_with_warmup",
        warmup_steps=round(_WARM_UP * config.optimizer_steps),
        seed=config.seed,
        train_sampling_strategy="sequential",  # the order is ours
        dataset_kwargs={"skip_prepare_dataset": True},  # labels are ours: one mask, checked row by row
        max_length=None,
        use_cpu=not on_gpu,
        bf16=on_gpu,
        gradient_checkpointing=on_gpu,
        dataloader_num_workers=0,
        dataloader_pin_memory=on_gpu,
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        eval_strategy="no",
        push_to_hub=False,
    )


class _Trainer(SFTTrainer):
    """TRL's own loss scores every position, 40 % of a step on a CPU; this one only where some row has a label."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # what is recomputed in the backward pass, to save a GPU's memory, cannot be shared
        total = answer_loss(model, **inputs, share=not self.args.gradient_checkpointing)
        return total / ((inputs["labels"] != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def answer_loss(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor, share: bool
) -> torch.Tensor:
    """Summed negative log-likelihood of the labelled tokens of a batch, padded on the right.

    With `share`, what all rows begin with, such as one instruction for all, is read once: the same loss and gradients
    by fewer tokens; with dropout, the rows share what is dropped there.
    """
    labels = labels[:, 1:]
    where = (labels != -100).any(0).nonzero()[:, 0]
    start = _beginning(input_ids[:, : where[0]]) if share and _full_attention(model.config) else 0
    read = None
    if start:
        read = model(input_ids=input_ids[:1, :start], use_cache=True, logits_to_keep=1).past_key_values
        read.batch_repeat_interleave(len(input_ids))
    logits = model(
        input_ids=input_ids[:, start:],
        attention_mask=attention_mask,
        past_key_values=read,
        use_cache=bool(start),
        logits_to_keep=where - start,
    ).logits
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels[:, where].flatten(), reduction="sum", ignore_index=-100
    )


def _beginning(ids: torch.Tensor) -> int:
    """How many tokens all rows begin with; 0 where that saves too little to be worth a pass of its own."""
    same = int((ids == ids[:1]).all(0).cumprod(0).sum())
    return same if same * (len(ids) - 1) >= _WORTH_SHARING else 0


def _full_attention(config: Any) -> bool:
    """A sliding window would have let go of part of the beginning."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


class _Curve(TrainerCallback):
    def __init__(self, total: int, progress: Callable[[int, int, float], None] | None) -> None:
        self.losses: list[float] = []
        self.total, self.progress = total, progress

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **rest: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            if self.progress:
                self.progress(state.global_step, self.total, self.losses[-1])


def _save(model: Any, out: Path, name: str) -> None:
    """A plain PEFT folder whose bytes do not depend on the machine: sets sorted, the base by name, no card."""
    model.save_pretrained(out, save_embedding_layers=False)
    for stray in out.iterdir():
        if stray.name not in ("adapter_config.json", "adapter_model.safetensors"):
            stray.unlink()
    path = out / "adapter_config.json"
    said = json.loads(path.read_text())
    said["base_model_name_or_path"] = name
    said["target_modules"] = sorted(said["target_modules"])
    path.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")
