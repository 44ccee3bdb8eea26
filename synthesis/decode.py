"""The tensor half of the local engine: one shared prefix, batches padded on the left, and a short decoding loop.

`transformers.generate` spends more time on itself than on a model of a few million parameters, prefills what all
prompts share once per prompt and all samples of a prompt apart, and copies its whole cache at every token. This copies
its cache only where samples part or many have ended.
"""

import gc
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from synthesis.constraint import Constraint

_WORTH_SHARING = 8  # tokens; below this the second forward pass costs more than the prefix saves


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values, by layer, of the tokens that all prompts of a call begin with."""

    length: int = 0
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()


@dataclass(frozen=True, slots=True)
class Sampling:
    max_tokens: int
    temperature: float
    top_p: float
    ends: tuple[int, ...]  # tokens that end an answer
    context: int


@dataclass(slots=True)
class Answer:
    tokens: list[int]
    logprobs: list[float]


class _Layer(DynamicLayer):
    """Writes new tokens into free slots behind the old ones; the library's layer copies everything at each token."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.slots, self.buffers = slots, None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if self.buffers is None or self.buffers[0].shape[-2] < stop:
            batch, heads, _, width = key_states.shape
            shape = (batch, heads, max(stop, self.slots), width)
            fresh = (key_states.new_empty(shape), value_states.new_empty((*shape[:3], value_states.shape[-1])))
            if start:
                fresh[0][..., :start, :], fresh[1][..., :start, :] = self.keys, self.values
            self.buffers = fresh
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self.buffers[0][..., start:stop, :], self.buffers[1][..., start:stop, :] = key_states, value_states
        self.keys, self.values = self.buffers[0][..., :stop, :], self.buffers[1][..., :stop, :]
        return self.keys, self.values

    def begin_with(self, keys: torch.Tensor, values: torch.Tensor, batch: int) -> None:
        self.keys, self.values = keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1)
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        stop = self.get_seq_length()
        self.buffers = tuple(b[indices] for b in self.buffers)
        self.keys, self.values = (b[..., :stop, :] for b in self.buffers)


def shared_prefix(model: PreTrainedModel, prompts: list[list[int]], last: int = 1) -> Prefix:
    """Prefill what all prompts begin with, leaving each at least `last` tokens of its own."""
    length = common_length(prompts, last)
    if length < _WORTH_SHARING or not _only_full_attention(model):
        return Prefix()
    ids = torch.tensor([prompts[0][:length]], device=model.device)
    cache = Cache(layers=[_Layer(length) for _ in range(model.config.get_text_config().num_hidden_layers)])
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return Prefix(length, tuple((layer.keys, layer.values) for layer in cache.layers))


def common_length(prompts: list[list[int]], last: int = 1) -> int:
    """How many tokens all prompts begin with, leaving each at least `last` of its own; 0 for one prompt."""
    if len(prompts) < 2:
        return 0
    low, high = min(prompts), max(prompts)
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return max(0, min(same, min(map(len, prompts)) - last))


def batches(costs: list[int], budget: int) -> Iterator[list[int]]:
    """Indexes grouped by cost, dearest first, such that group size times dearest cost stays within the budget."""
    group: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        if group and (len(group) + 1) * costs[group[0]] > budget:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def last_logits(model: PreTrainedModel, prefix: Prefix, rows: list[list[int]], keep: int) -> torch.Tensor:
    """Logits after the last `keep` tokens of each row, float32; rows come without the prefix."""
    _, mask, positions, ids = _padded(model, prefix, rows)
    cache = _cache(model, prefix, len(rows), mask.shape[1]) if prefix.length else None
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=keep,
    )
    return out.logits.float()


def decode(
    model: PreTrainedModel,
    prefix: Prefix,
    rows: list[list[int]],
    draws: torch.Tensor,
    how: Sampling,
    constraint: Constraint | None = None,
) -> list[list[Answer]]:
    """Answers of each row: `draws` is one number in [0, 1) per row, sample and token, so nothing else is random.

    Samples that have said the same so far are one sequence of the batch; they part where they differ.
    """
    n = draws.shape[1]
    draws = draws.flatten(0, 1).to(model.device)
    lengths, mask, positions, ids = _padded(model, prefix, rows)
    cache = _cache(model, prefix, len(rows), mask.shape[1] + how.max_tokens)
    logits, positions = _next(model, ids, mask, positions, cache), positions[:, -1:]
    answers = [Answer([], []) for _ in range(len(rows) * n)]
    limits = [min(how.max_tokens, how.context - length) for length in lengths for _ in range(n)]
    live = list(range(len(answers)))  # answers that go on, and the sequence that each is said by
    sequence = [i // n for i in live]
    if constraint:
        constraint.begin()
    for step in range(how.max_tokens):
        if constraint:
            masked = constraint.mask(live, logits[torch.tensor(sequence, device=logits.device)])
            tokens, logprobs = _pick(masked, list(range(len(live))), draws[live, step], how)
            for i, token in zip(live, tokens.tolist(), strict=True):
                constraint.said(i, token)
        else:
            tokens, logprobs = _pick(logits, sequence, draws[live, step], how)
        going = []
        for i, by, token, logprob in zip(live, sequence, tokens.tolist(), logprobs.tolist(), strict=True):
            answers[i].tokens.append(token)
            answers[i].logprobs.append(logprob)
            if token not in how.ends and len(answers[i].tokens) < limits[i]:
                going.append((i, (by, token)))
        if not going:
            break
        live = [i for i, _ in going]
        said = list(dict.fromkeys(by_token for _, by_token in going))
        parents = [by for by, _ in said]
        if len(set(parents)) == len(parents) > 0.8 * len(logits):  # a copy of the cache costs more than a few idle rows
            said = sorted([*said, *((by, 0) for by in set(range(len(logits))) - set(parents))])
        else:
            chosen = torch.tensor(parents, device=model.device)
            cache.batch_select_indices(chosen)
            mask, positions = mask[chosen], positions[chosen]
        place = {by_token: k for k, by_token in enumerate(said)}
        sequence = [place[by_token] for _, by_token in going]
        mask = torch.cat([mask, mask.new_ones(len(said), 1)], 1)
        positions = positions + 1
        tokens = torch.tensor([[token] for _, token in said], device=model.device)
        logits = _next(model, tokens, mask, positions, cache)
    return [answers[i : i + n] for i in range(0, len(answers), n)]


def _next(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache
) -> torch.Tensor:
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1].float()


def _pick(
    logits: torch.Tensor, sequence: list[int], draw: torch.Tensor, how: Sampling
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of each answer and its log-probability under the model itself, before temperature and top-p."""
    rows = torch.tensor(sequence, device=logits.device)
    logprobs = logits.log_softmax(-1)
    if how.temperature == 0:
        tokens = logits.argmax(-1)[rows]
    else:
        odds = (logits / how.temperature).softmax(-1)
        if how.top_p < 1:
            ranked, order = odds.sort(dim=-1, descending=True, stable=True)
            beyond = ranked.cumsum(-1) - ranked >= how.top_p
            odds = odds.scatter(1, order, ranked.masked_fill(beyond, 0.0))
        total = odds.cumsum(-1)[rows]
        tokens = torch.searchsorted(total, draw[:, None] * total[:, -1:], right=True)[:, 0]
        tokens = tokens.clamp(max=logits.shape[-1] - 1)
    return tokens, logprobs[rows, tokens]


def _padded(
    model: PreTrainedModel, prefix: Prefix, rows: list[list[int]]
) -> tuple[list[int], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Whole lengths, attention mask with the prefix, positions and tokens, padded between prefix and row."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows], device=model.device)
    own = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=model.device)
    mask = torch.cat([own.new_ones(len(rows), prefix.length), own], 1)
    positions = (own.cumsum(1) - 1).clamp(min=0) + prefix.length
    return [prefix.length + len(r) for r in rows], mask, positions, ids


def _cache(model: PreTrainedModel, prefix: Prefix, batch: int, slots: int) -> Cache:
    if not _only_full_attention(model):
        return DynamicCache(config=model.config)
    layers = [_Layer(slots) for _ in range(model.config.get_text_config().num_hidden_layers)]
    for layer, (keys, values) in zip(layers, prefix.layers, strict=False):
        layer.begin_with(keys, values, batch)
    return Cache(layers=layers)


def _only_full_attention(model: PreTrainedModel) -> bool:
    """A sliding window counts slots, padding between prefix and row among them: such models share no prefix."""
    layers = DynamicCache(config=model.config).layers
    return all(type(layer) is DynamicLayer for layer in layers)


def free_memory(device: str) -> None:
    """Give a card's memory back to others, once nothing refers to what lay there."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
