"""The loss of a batch on the tokens that are learnt, and of each row in it, by one forward pass."""

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from training.encode import IGNORED

_WORTH_SHARING = 64  # tokens that a batch need not read again


def token_losses(
    model: Any,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    share: bool = False,
    config: Any = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihoods of a batch's labelled tokens, and where these stand, each of shape (sequences, places).

    Padded on the right with an `attention_mask`, or packed with `position_ids` that start anew for each row. Only the
    positions that some label asks for are scored: TRL's own loss scores all of them, 40 % of a step on a CPU. With
    `share`, what all rows begin with, such as one instruction for all, is read once: the same loss and gradients by
    fewer tokens; with dropout, the rows share what is dropped there.
    """
    labels = labels[:, 1:]
    where = (labels != IGNORED).any(0).nonzero()[:, 0]
    given: dict[str, Any] = {"attention_mask": attention_mask, "use_cache": False}
    start = 0
    if position_ids is not None:  # no mask: transformers tells the rows of a pack by it and without a cache alone
        given = {"position_ids": position_ids, "use_cache": False}
    elif share and _full_attention(config or model.config):
        start = _beginning(input_ids[:, : where[0]])
    if start:
        read = model(input_ids=input_ids[:1, :start], use_cache=True, logits_to_keep=1).past_key_values
        read.batch_repeat_interleave(len(input_ids))
        given |= {"past_key_values": read, "use_cache": True}
    logits = model(input_ids=input_ids[:, start:], logits_to_keep=where - start, **given).logits
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels[:, where].flatten(), reduction="none", ignore_index=IGNORED
    )
    return losses.view(len(labels), -1), where + 1


def _beginning(ids: torch.Tensor) -> int:
    """How many tokens all rows begin with; 0 where that saves too little to be worth a pass of its own."""
    same = int((ids == ids[:1]).all(0).cumprod(0).sum())
    return same if same * (len(ids) - 1) >= _WORTH_SHARING else 0


def _full_attention(config: Any) -> bool:
    """A sliding window would have let go of part of the beginning."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
