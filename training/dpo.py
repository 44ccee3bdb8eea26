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
from training.encode import Encoded, Template, alike, later_turns, load_tokenizer, longest, refused
from training.model import load_model
from training.running import Adapted, Facts, Progress, arguments, running
from training.save import save_adapter, written
from training.settings import PreferConfig, TooLong, TrainError
from training.sizes import parameters

_WARM_UP = 0.1


class Pair(NamedTuple):
    """Tokens of a prompt, and of either answer to it."""

    id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    cut: int = 0  # messages left out at the beginning

    @property
    def tokens(self) -> int:
        """That go through the model: the prompt twice."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with the longer answer."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


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
    told, left_out = encode_pairs(template, pairs, most, config.too_long)
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
        notes=_notes(told, left_out),
        **run.facts(trainer, config, [told[i].tokens for i in drawn], started),
    )


def _notes(told: list[Pair], left_out: dict[str, str]) -> tuple[str, ...]:
    notes = [f"{len(left_out):,} pairs were left out, such as {i} ({why})" for i, why in [*left_out.items()][:1]]
    cut = sum(bool(pair.cut) for pair in told)
    return (*notes, f"{cut:,} pairs lose their earliest turns") if cut else tuple(notes)


def encode_pairs(
    template: Template, pairs: pl.DataFrame, max_length: int, too_long: TooLong
) -> tuple[list[Pair], dict[str, str]]:
    """The pairs in their order, and those left out for their length by id with the reason.

    Raises TrainError where none is left, or for the first that is too long if that is refused.
    """
    told: list[Pair] = []
    left_out: dict[str, str] = {}
    for row in pairs.iter_rows(named=True):
        pair = pair_of(template, row)
        if (n := pair.longest) > max_length and too_long == "refuse":
            raise refused(f"pair {row['id']}", n, max_length)
        if n > max_length:
            pair = _shortened(template, row, max_length) if too_long == "truncate" else None
        if pair is None:
            left_out[row["id"]] = f"{n} tokens, over {max_length}"
        else:
            told.append(pair)
    if left_out and not told:
        raise TrainError(
            f"all {len(left_out)} pairs are longer than the {max_length} tokens of --max-length and the model's "
            f"context, such as {next(iter(left_out))} ({next(iter(left_out.values()))}); raise --max-length"
        )
    if not told:
        raise TrainError("there is no pair to learn from; pairs are rows and their corrections")
    return told, left_out


def _shortened(template: Template, row: dict[str, Any], max_length: int) -> Pair | None:
    """The pair without the earliest turns of its prompt, which both answers have."""
    both = zip(later_turns(row["chosen"]), later_turns(row["rejected"]), strict=False)
    for (cut, chosen), (_, rejected) in both:
        pair = pair_of(template, {"id": row["id"], "chosen": chosen, "rejected": rejected})
        if pair.longest <= max_length:
            return pair._replace(cut=cut)
    return None


def pair_of(template: Template, row: dict[str, Any]) -> Pair:
    """A pair as it is learnt: both conversations encoded and checked as rows are, tool calls and all."""
    found = {which: template.encode(f"{row['id']} ({which})", row[which]) for which in ("chosen", "rejected")}
    starts = []
    for which, one in found.items():
        if not any(one.learnt):
            raise TrainError(f"pair {row['id']}: there is no {which} answer in it to be learnt; leave out the pair")
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
