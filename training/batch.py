"""Which rows a step sees and how they lie in its tensors: padded one below the other, or packed one after the other.

Packing here keeps the rows of a step together, so a packed run and an unpacked one are the same training: the rows of
a batch go, longest first, each into the fullest sequence that has room. Each row's positions start from 0, and by that
the model's attention keeps the rows apart: a block-diagonal mask on a CPU, a kernel for sequences of any length
(FlashAttention-2, flex-attention) on a GPU. `keeps_apart` asks the model itself whether it does.
"""

import random
import sys
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils.generic import is_flash_attention_requested

from training.encode import IGNORED
from training.settings import PreferConfig, TrainConfig

_WINDOW = 16  # batches among which rows of like length are put together


def order(lengths: list[int], config: TrainConfig | PreferConfig) -> list[int]:
    """Which rows each step sees: every row once an epoch, rows of like length together, the batches shuffled."""
    shuffle = random.Random(config.seed).shuffle
    size, wanted = config.batch_size, config.optimizer_steps * config.batch_size
    drawn: list[int] = []
    while len(drawn) < wanted:
        epoch = list(range(len(lengths)))
        shuffle(epoch)
        drawn += epoch
    drawn = drawn[:wanted]
    batches = []
    for start in range(0, wanted, size * _WINDOW):
        window = sorted(drawn[start : start + size * _WINDOW], key=lambda i: lengths[i])
        inside = [window[k : k + size] for k in range(0, len(window), size)]
        shuffle(inside)
        batches += inside
    return [i for batch in batches for i in batch]


@dataclass(frozen=True, slots=True)
class Padded:
    """Collates rows (input_ids, labels, row) below each other, padded on the right."""

    pad: int

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(b["input_ids"]) for b in batch)
        ids = torch.full((len(batch), width), self.pad)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for i, b in enumerate(batch):
            n = len(b["input_ids"])
            ids[i, :n], mask[i, :n], labels[i, :n] = torch.tensor(b["input_ids"]), 1, torch.tensor(b["labels"])
        rows = torch.tensor([b["row"] for b in batch])[:, None].expand_as(ids)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "rows": rows}


@dataclass(frozen=True, slots=True)
class Packed:
    """Collates rows one after the other, into sequences of at most `length` tokens (a longer row has one to itself)."""

    pad: int
    length: int
    fixed: bool = False  # every sequence as long as the longest may be: kernels compiled for a shape are used again

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        bins = pack([len(b["input_ids"]) for b in batch], self.length)
        width = self.length if self.fixed else max(sum(len(batch[i]["input_ids"]) for i in held) for held in bins)
        ids = torch.full((len(bins), width), self.pad)
        places, labels, rows = torch.zeros_like(ids), torch.full_like(ids, IGNORED), torch.full_like(ids, -1)
        for k, held in enumerate(bins):
            start = 0
            for i in held:
                b = batch[i]
                at = slice(start, start := start + len(b["input_ids"]))
                ids[k, at], labels[k, at] = torch.tensor(b["input_ids"]), torch.tensor(b["labels"])
                rows[k, at] = b["row"]
                places[k, at] = torch.arange(len(b["input_ids"]))
                labels[k, at.start] = IGNORED  # the row before it does not tell its first token
        return {"input_ids": ids, "position_ids": places, "labels": labels, "rows": rows}


def pack(lengths: list[int], room: int) -> list[list[int]]:
    """Rows in sequences of at most `room` tokens, best fit, longest first; a longer row has one to itself."""
    bins: list[list[int]] = []
    free: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = [k for k, left in enumerate(free) if left >= lengths[i]]
        if fits:
            k = min(fits, key=lambda k: free[k])
            bins[k].append(i)
            free[k] -= lengths[i]
        else:
            bins.append([i])
            free.append(room - lengths[i])
    return bins


def packed_into(model: Any, room: int) -> int:
    """Tokens that a sequence of the pack may have: `room`, or all of a step's with FlashAttention.

    transformers tells rows apart by their positions for it where they lie in one single sequence, and nowhere else.
    """
    return sys.maxsize if is_flash_attention_requested(model.config) else room


def keeps_apart(model: Any, pad: int, rows: list[list[int]]) -> bool:
    """Whether a row's logits in a pack are the same whatever row stands before it; asked of the model as it is.

    The pack is one as in training: two sequences of two rows each, or one of four where the rows of a step lie in one,
    read in the precision of the training. Attention that heeds positions gives the very same numbers; state that is
    carried on (Mamba, linear attention) or a mask that was lost shows as a difference.
    """
    some = [rows[i % len(rows)] for i in range(4)]
    width = min(64, *map(len, some))
    batch = [{"input_ids": r[:width], "labels": r[:width], "row": i} for i, r in enumerate(some)]
    packed = {k: v.to(model.device) for k, v in Packed(pad, packed_into(model, 2 * width))(batch).items()}
    ids, held = packed["input_ids"], packed["rows"]
    first = held == held[:, :1]
    other = torch.where(first, (ids + 1) % model.get_input_embeddings().weight.shape[0], ids)
    was_training = model.training
    model.eval()
    on_gpu = model.device.type == "cuda"
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=on_gpu):
        said = [
            model(input_ids=given, position_ids=packed["position_ids"], use_cache=False).logits[~first].float()
            for given in (ids, other)
        ]
    model.train(was_training)
    return bool((said[0] - said[1]).abs().max() <= 1e-5 * said[0].abs().max())
