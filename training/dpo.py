"""Direct preference optimisation (Rafailov et al., 2023, arXiv 2305.18290) with TRL, after supervised fine-tuning.

    loss = -log sigmoid(beta * ((log p(chosen) - log ref(chosen)) - (log p(rejected) - log ref(rejected))))

ref is the model as it was at the start: base and given adapter, of which TRL keeps a frozen copy.
"""

import time
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from datasets import Dataset
from transformers.utils import logging as transformers_logging
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from training.batch import order
from training.encode import Encoded, Template, alike, load_tokenizer, longest
from training.model import load_model
from training.running import Adapted, Facts, Progress, arguments, running
from training.save import save_adapter, written
from training.settings import PreferConfig, TrainError
from training.sizes import parameters

_WARM_UP = 0.1


class Pair(NamedTuple):
    """Tokens of a prompt, and of either answer to it."""

    id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def tokens(self) -> int:
        """That go through the model: the prompt twice."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


def prefer(
    base: str | Path,
    adapter: Path | None,
    pairs: pl.DataFrame,
    out: Path,
    config: PreferConfig,
    *,
    name: str | None = None,
    progress: Progress | None = None,
    checkpoints: Path | None = None,
    every: float = 60.0,
) -> Facts:
    """Train on `pairs` (id, chosen, rejected: whole conversations with one prompt); writes a PEFT folder to `out`.

    Starts from `adapter`, or from a fresh one. Raises TrainError naming a pair that cannot be learnt. Checkpoints and
    several processes are as in `training.sft.train`.
    """
    started = time.monotonic()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    template = Template(load_tokenizer(base), base)
    most = longest(base, config.max_length)
    told = [pair_of(template, row, most) for row in pairs.iter_rows(named=True)]
    if not told:
        raise TrainError("there is no pair to learn from; pairs are rows and their corrections")
    config = config if config.learning_rate else config.for_model(parameters(Path(base)))
    model = load_model(base, config.as_training(), adapter)
    drawn = order([pair.tokens for pair in told], config)
    with running(config, progress, checkpoints, every) as run:
        trainer = _Trainer(
            model=model,
            args=arguments(DPOConfig, run.folder, config, _WARM_UP, beta=config.beta),
            train_dataset=_dataset(told).select(drawn),
            processing_class=template.tokenizer,
            data_collator=_Collator(pad_token_id=template.tokenizer.pad_token_id),
            callbacks=run.callbacks,
            names=[pair.id for pair in told],
        )
        run.through(trainer)
        if trainer.is_world_process_zero():
            with written(out):
                save_adapter(trainer.accelerator.unwrap_model(trainer.model), out, name or str(base))
    return Facts(
        seen=None,
        rows=len(told),
        learnable=sum(len(told[i].chosen) + len(told[i].rejected) for i in drawn),
        **run.facts(trainer, config, [told[i].tokens for i in drawn], started),
    )


def pair_of(template: Template, row: dict[str, Any], max_length: int) -> Pair:
    """A pair as it is learnt: both conversations encoded and checked as rows are, tool calls and all."""
    found = {which: template.encode(f"{row['id']} ({which})", row[which]) for which in ("chosen", "rejected")}
    starts = []
    for which, one in found.items():
        if not any(one.learnt) or len(one.tokens) > max_length:
            why = f"{len(one.tokens)} tokens, over {max_length}" if any(one.learnt) else "no answer in it"
            raise TrainError(f"pair {row['id']}: its {which} answer cannot be learnt ({why}); leave out the pair")
        starts.append(_last_answer(one))
    chosen, rejected = found["chosen"].tokens, found["rejected"].tokens
    start = min(*starts, alike(chosen, rejected))  # the end of a prompt may become one with an answer
    ends = [_end(one) for one in found.values()]
    return Pair(row["id"], chosen[:start], chosen[start : ends[0]], rejected[start : ends[1]])


def _last_answer(row: Encoded) -> int:
    """Where the learnt tokens at the end begin."""
    at = _end(row)
    while at and row.learnt[at - 1]:
        at -= 1
    return at


def _end(row: Encoded) -> int:
    return max(i for i, learnt in enumerate(row.learnt) if learnt) + 1


def _dataset(told: list[Pair]) -> Dataset:
    return Dataset.from_dict(
        {
            "prompt_ids": [pair.prompt for pair in told],
            "chosen_ids": [pair.chosen for pair in told],
            "rejected_ids": [pair.rejected for pair in told],
            "pair": list(range(len(told))),
        }
    )


class _Collator(DataCollatorForPreference):
    """TRL's, which keeps the numbers of the pairs."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        return {**super().torch_call(examples), "pairs": torch.tensor([e["pair"] for e in examples])}


class _Trainer(Adapted, DPOTrainer):
    """TRL's trainer on pairs that are tokens already, as ours are checked; it names those whose loss is no number."""

    def __init__(self, *, names: list[str], **rest: Any) -> None:
        super().__init__(**rest)
        self.names = names

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        pairs = inputs.pop("pairs").tolist()
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not bool((found[0] if return_outputs else found).isfinite()):
            named = [self.names[i] for i in pairs]
            raise TrainError(
                f"the loss is no number at one of the {len(named)} pairs {', '.join(named[:5])}"
                f"{' …' if len(named) > 5 else ''}; lower the learning rate or beta"
            )
        return found
