"""The nano model's tokenizer, its chat template, and the conversations turned into numbers."""

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training.nano.tasks import Turn

SPECIAL = ("<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
PAD, BOS, END = 0, 1, 2
ROLE = {"user": 3, "assistant": 4, "system": 5}
TEXT_WEIGHT = 0.1
MAX_TOKENS = 256
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% generation %}{{ message['content'] }}<|end|>"
    "{% endgeneration %}{% else %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Encoded(NamedTuple):
    ids: list[int]
    weights: list[float]
    marks: list[tuple[int, int, int]]  # a piece's last position, its row of the sentence vectors, its first position
    copies: list[tuple[int, int]]  # position that writes a token of a listed label, where the list has that token


def train_tokenizer(texts: Iterable[str], size: int = 4096) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which a word reads the same after a space, a line break or a role token."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Sequence([normalizers.Replace("\n", "\n "), normalizers.Prepend(" ")])
    words = Regex(r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\n|\s+(?!\S)|\s+")
    core.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(words, "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    core.decoder = decoders.Sequence([
        decoders.ByteLevel(), decoders.Replace("\n ", "\n"), decoders.Strip(" ", 1, 0),
    ])
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=SPECIAL[0], bos_token=SPECIAL[1], eos_token=SPECIAL[2],
        additional_special_tokens=list(SPECIAL[3:]), chat_template=TEMPLATE, model_max_length=2048,
        padding_side="left", clean_up_tokenization_spaces=False,
    )


def encode(turns: list[Turn], tokenizer: PreTrainedTokenizerFast, rows: dict[str, int]) -> Encoded:
    """Token numbers, the weight of each in the loss, and where sentence vectors are taught."""
    core = tokenizer.backend_tokenizer
    ids, weights, marks, copies = [BOS], [0.0], [], []
    spans: dict[str, tuple[int, int]] = {}
    for turn in turns:
        if turn.role:
            ids.append(ROLE[turn.role])
            weights.append(0.0)
        found = core.encode("".join(turn.pieces), add_special_tokens=False)
        ends = [end for _, end in found.offsets]
        of_turn = [turn.weight] * len(found.ids)
        place = 0
        for piece in turn.pieces:
            first = bisect_right(ends, place)
            place += len(piece)
            last = bisect_left(ends, place)
            if turn.role == "user":
                spans[piece] = (len(ids) + first, last + 1 - first)
            elif piece in spans and turn.weight > 0:
                start, count = spans[piece]
                copies += [(len(ids) + k - 1, start + k) for k in range(min(count, len(found.ids)))]
            row = rows.get(piece, rows.get(piece.lower().rstrip(".?")))
            if row is not None and turn.role == "user" and last < len(ends):
                marks.append((len(ids) + last, row, len(ids) + first))
                of_turn[first : last + 1] = [TEXT_WEIGHT] * (last + 1 - first)
        ids += [*found.ids, END]
        weights += [*of_turn, turn.weight * 0.3]
    ids, weights = ids[:MAX_TOKENS], weights[:MAX_TOKENS]
    inside = [mark for mark in marks if mark[0] < len(ids)]
    return Encoded(ids, weights, inside, [pair for pair in copies if pair[0] < len(ids)])


def batches(examples: list[Encoded], size: int, rng: random.Random) -> list[list[Encoded]]:
    """Examples of like length together, about `size` tokens a batch with the padding."""
    groups: list[list[Encoded]] = [[]]
    for item in sorted(examples, key=lambda e: len(e.ids)):
        if (len(groups[-1]) + 1) * len(item.ids) > size:
            groups.append([])
        groups[-1].append(item)
    rng.shuffle(groups)
    return groups
