"""Which rows a step sees and how they lie in its tensors: padded one below the other, or packed one after the other.

Packing here keeps the rows of a step together, so a packed run and an unpacked one are the same training: the rows of
a batch go, longest first, each into the fullest sequence that has room. Each row's positions start from 0, and by that
the model's attention keeps the rows apart: a block-diagonal mask on a CPU, a kernel for sequences of any length
(FlashAttention-2, flex-attention) on a GPU. `keeps_apart` asks the model itself whether it does.
"""

import random
from dataclasses import dataclass
from typing import Any

import torch

from training.encode import IGNORED
from training.settings import TrainConfig

_WINDOW = 16  # batches among which rows of like length are put together


def order(lengths: list[int], config: TrainConfig) -> list[int]:
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
    """Collates rows one after the other, into sequences of at most `length` tokens."""

    pad: int
    length: int

    def __call__(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        bins = pack([len(b["input_ids"]) for b in batch], self.length)
        width = max(sum(len(batch[i]["input_ids"]) for i in held) for held in bins)
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


def keeps_apart(model: Any, rows: list[list[int]]) -> bool:
    """Whether a row's logits in a pack are the same whatever row stands before it; asked of the model as it is.

    Attention that heeds positions gives the very same numbers; state that is carried on (Mamba, linear attention) or a
    mask that was lost shows as a difference.
    """
    before, row = rows[0][:64], rows[-1][:64]
    vocabulary = model.get_input_embeddings().weight.shape[0]
    other = [(t + 1) % vocabulary for t in before]
    places = torch.tensor([[*range(len(before)), *range(len(row))]], device=model.device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        said = [
            model(input_ids=torch.tensor([b + row], device=model.device), position_ids=places, use_cache=False).logits
            for b in (before, other)
        ]
    model.train(was_training)
    own = [s[0, len(before) :].float() for s in said]
    return bool((own[0] - own[1]).abs().max() <= 1e-5 * own[0].abs().max())
