"""Trains the nano model from random weights: `python -m training.nano.pretrain --data DIR --minutes 60`."""

import argparse
import json
import pickle
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from training.nano.corpus import Corpus, all_texts, clean_corpus
from training.nano.meaning import Meaning, measure
from training.nano.probe import probe, show
from training.nano.tasks import GROW, INSTRUCTIONS, JUDGE, SURE, Source, example, mix_at, open_source
from training.nano.tokens import BOS, END, PAD, Encoded, batches, encode, train_tokenizer

BATCH_TOKENS = 3072
VECTOR_LAYER = 3  # half way, so that the later layers can compare the meanings
VECTOR_WEIGHT = 0.5
PEAK_MUON, PEAK_ADAM = 0.02, 3e-3
COMPARING_HEADS, COMPARING_WEIGHT = 2, 0.5
COPYING_HEADS, COPYING_WEIGHT = 2, 0.3
CARRYING_WEIGHT = 0.3
WARMUP_STEPS = 60
POLAR_FACTORS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
)


def new_model(vocabulary: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=2048, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, bos_token_id=BOS, eos_token_id=END,
        pad_token_id=PAD, initializer_range=0.02,
    )
    return LlamaForCausalLM(config).float()


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix with even singular values, the Muon update, roughly.

    Four steps with the factors of Polar Express (Amsel et al., 2025, arXiv:2505.16932).
    """
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.T if tall else matrix
    x = x / (x.norm() * 1.01 + 1e-7)
    for a, b, c in POLAR_FACTORS:
        square = x @ x.T
        x = a * x + torch.addmm(square, square, square, beta=b, alpha=c) @ x
    return x.T if tall else x


def muon_step(weights: list[nn.Parameter], memory: list[Tensor], rate: float) -> None:
    with torch.no_grad():
        for weight, past in zip(weights, memory, strict=True):
            past.mul_(0.95).add_(weight.grad)
            change = orthogonal(weight.grad + 0.95 * past)
            scale = max(1.0, weight.size(0) / weight.size(1)) ** 0.5
            weight.mul_(1 - rate * 0.01).add_(change, alpha=-rate * scale)


Marks = tuple[Tensor, ...]  # example, last position, row of the sentence vectors, first position


def collate(group: list[Encoded]) -> tuple[Tensor, Tensor, Marks]:
    width = max(len(item.ids) for item in group)
    ids = torch.full((len(group), width), PAD)
    weights = torch.zeros(len(group), width)
    where, at, rows, opens = [], [], [], []
    for number, item in enumerate(group):
        ids[number, : len(item.ids)] = torch.tensor(item.ids)
        weights[number, : len(item.weights)] = torch.tensor(item.weights)
        where += [number] * len(item.marks)
        for last, row, first in item.marks:
            at.append(last)
            rows.append(row)
            opens.append(first)
    return ids, weights, tuple(torch.tensor(several, dtype=torch.long) for several in (where, at, rows, opens))


class Teaching(NamedTuple):
    """What the throw-away losses need: sentence vectors, each row's intent or -1, and heads that are not saved."""

    vectors: Tensor
    kinds: Tensor
    texts: int  # rows before this one are texts, the others labels and words
    head: nn.Linear
    judge: nn.Linear
    carried: nn.Linear
    fetched: nn.Linear


def teaching_of(source: Source, width: int) -> Teaching:
    meaning, numbers = source.meaning, {intent: i for i, intent in enumerate(source.names)}
    kinds = torch.full((len(meaning["rows"]),), -1)
    for text, intent in zip(meaning["texts"], meaning["intents"], strict=True):
        kinds[meaning["rows"][text]] = numbers.get(intent, -1)
    for intent, several in source.names.items():
        kinds[[meaning["rows"][name] for name in several]] = numbers[intent]
    vectors = torch.from_numpy(np.asarray(meaning["vectors"]))
    texts = len(set(meaning["texts"]))
    sizes = (vectors.size(1), 1, width, width)
    return Teaching(vectors, kinds, texts, *(nn.Linear(width, size, bias=size == 1) for size in sizes))


def settled(after: Tensor, judge: nn.Linear, marks: Marks, pairs: Tensor, texts: int, target: Tensor) -> Tensor:
    """Teaches the layer after the comparing heads to hold, at a label's end, whether it fits the text before it."""
    where, at, rows, _ = marks
    later, earlier = pairs
    fits = (rows[later] >= texts) & (rows[earlier] < texts)
    if not fits.any():
        return after.new_zeros(())
    x = F.rms_norm(after[where, at][later[fits]], (after.size(-1),))
    return F.binary_cross_entropy_with_logits(judge(x).squeeze(-1), target[fits])


def comparing(model: LlamaForCausalLM, found, marks: Marks, teaching: Teaching) -> Tensor:
    """Teaches two heads of the layer after the middle to attend from a text to what means the same.

    Left to itself the model finds this comparison, which judging and choosing need, only late in the training.
    """
    where, at, rows, _ = marks
    vectors, kinds = teaching.vectors, teaching.kinds
    layer = model.model.layers[VECTOR_LAYER]
    x = layer.input_layernorm(found.hidden_states[VECTOR_LAYER][where, at])
    cos, sin = model.model.rotary_emb(x, position_ids=at[None])

    def turned(projection: nn.Module) -> Tensor:
        heads = projection(x)[:, : 64 * COMPARING_HEADS].view(len(at), COMPARING_HEADS, 64)
        left, right = heads.chunk(2, dim=-1)
        return heads * cos[0, :, None] + torch.cat((-right, left), dim=-1) * sin[0, :, None]

    query, key = turned(layer.self_attn.q_proj), turned(layer.self_attn.k_proj)
    later, earlier = torch.nonzero((where[:, None] == where[None]) & (at[:, None] > at[None]), as_tuple=True)
    if not len(later):
        return x.new_zeros(())
    scores = (query[later] * key[earlier]).sum(dim=-1) / 8
    alike = torch.sigmoid(14 * ((vectors[rows[later]] * vectors[rows[earlier]]).sum(dim=-1) - 0.28))
    known = (kinds[rows[later]] >= 0) & (kinds[rows[earlier]] >= 0)
    target = torch.where(known, (kinds[rows[later]] == kinds[rows[earlier]]).float(), alike)
    # Matches are few among the pairs, and are counted four times.
    weight = (1 + 3 * target)[:, None].expand_as(scores)
    each = F.binary_cross_entropy_with_logits(scores, target[:, None].expand_as(scores), weight=weight)
    after = found.hidden_states[VECTOR_LAYER + 1]
    return each + settled(after, teaching.judge, marks, torch.stack((later, earlier)), teaching.texts, target)


def carrying(
    model: LlamaForCausalLM, found, ids: Tensor, group: list[Encoded], marks: Marks, teaching: Teaching
) -> Tensor:
    """Teaches a label's end to hold the label's first token, and the text's end to fetch it from the label that fits.

    So the answer can begin with the first token of a label that was never seen before.
    """
    where, at, rows, opens = marks
    words = model.lm_head.weight.detach()

    def told(head: nn.Linear, states: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(head(F.rms_norm(states, (states.size(-1),))) @ words.T, target)

    labels = rows >= teaching.texts
    total = found.last_hidden_state.new_zeros(())
    if labels.any():
        number, last = where[labels], at[labels]
        held = found.hidden_states[VECTOR_LAYER][number, last]
        total = total + told(teaching.carried, held, ids[number, opens[labels]])
    asked = []
    for number, item in enumerate(group):
        if item.copies:
            here, there = item.copies[0]
            ends = [last for last, row, _ in item.marks if row < teaching.texts and last < here]
            asked += [(number, end, there) for end in ends[-1:]]
    if asked:
        number, end, there = torch.tensor(asked).T
        after = found.hidden_states[VECTOR_LAYER + 1][number, end]
        total = total + told(teaching.fetched, after, ids[number, there])
    return total


def copying(model: LlamaForCausalLM, states: Tensor, group: list[Encoded]) -> Tensor:
    """Teaches two heads of the last layer to look at the listed label's next token while it is written out."""
    pairs = [(number, here, there) for number, item in enumerate(group) for here, there in item.copies]
    if not pairs:
        return states.new_zeros(())
    where, here, there = torch.tensor(pairs).T
    layer = model.model.layers[-1]
    x = layer.input_layernorm(states)
    cos, sin = model.model.rotary_emb(x, position_ids=torch.arange(x.size(1))[None])

    def turned(projected: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = projected.unflatten(-1, (COPYING_HEADS, 64))
        left, right = heads.chunk(2, dim=-1)
        return heads * cos + torch.cat((-right, left), dim=-1) * sin

    last = slice(-64 * COPYING_HEADS, None)
    query = turned(layer.self_attn.q_proj(x[where, here])[:, last], cos[0, here, None], sin[0, here, None])
    key = turned(layer.self_attn.k_proj(x)[..., last], cos[0, :, None], sin[0, :, None])
    scores = torch.einsum("phd,pthd->pht", query, key[where]) / 8
    later = torch.arange(x.size(1))[None] > here[:, None]
    scores = scores.masked_fill(later[:, None], float("-inf"))
    return F.cross_entropy(scores.flatten(0, 1), there.repeat_interleave(COPYING_HEADS))


def losses(model: LlamaForCausalLM, teaching: Teaching, group: list[Encoded]) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted next-token loss on a part of the positions, with the losses that teach copying; and two for meaning."""
    ids, weights, marks = collate(group)
    found = model.model(input_ids=ids, output_hidden_states=True)
    states, middle = found.last_hidden_state, found.hidden_states[VECTOR_LAYER]
    # Low-weight tokens are taken one time in two, at twice the weight: the vocabulary product is a third of the cost.
    light = (weights < 0.5) & (weights > 0)
    keep = torch.where(light & (torch.rand_like(weights) < 0.5), 0.0, weights * torch.where(light, 2.0, 1.0))[:, 1:]
    chosen = keep > 0
    logits = states[:, :-1][chosen] @ model.lm_head.weight.T
    each = F.cross_entropy(logits, ids[:, 1:][chosen], reduction="none")
    text = (each * keep[chosen]).sum() / keep.sum().clamp(min=1e-6)
    where, at, rows, _ = marks
    text = text + COPYING_WEIGHT * copying(model, found.hidden_states[-2], group)
    if not len(rows):
        return text, text.new_zeros(()), text.new_zeros(())
    text = text + CARRYING_WEIGHT * carrying(model, found, ids, group, marks, teaching)
    meanings = teaching.head(F.rms_norm(middle[where, at], (middle.size(-1),)))
    vector = 1 - F.cosine_similarity(meanings, teaching.vectors[rows]).mean()
    return text, vector, comparing(model, found, marks, teaching)


def stream(source: Source, tokenizer: PreTrainedTokenizerFast, rng: random.Random, clock) -> Iterator[list[Encoded]]:
    """Batches for ever, mixed as the clock's progress says."""
    while True:
        shares = mix_at(clock())
        made = [encode(example(source, rng, shares), tokenizer, source.meaning["rows"]) for _ in range(1024)]
        yield from batches(made, BATCH_TOKENS, rng)


def prepared(data: Path, work: Path) -> tuple[Corpus, Meaning]:
    """Corpus and sentence vectors, kept in the work folder so that a second run starts at once."""
    kept = work / "prepared.pickle"
    if kept.exists():
        return pickle.loads(kept.read_bytes())
    corpus, lost = clean_corpus(data)
    print("left out as equal or near to a forbidden row:", lost, flush=True)
    both = (corpus, measure(corpus))
    work.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(pickle.dumps(both, protocol=5))
    return both


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes bfloat16 weights under a config that asks for float32, so that a plain load computes in float32."""
    halved = LlamaForCausalLM(model.config).bfloat16()
    halved.load_state_dict(model.state_dict())
    halved.generation_config.update(eos_token_id=END, bos_token_id=BOS, pad_token_id=PAD, max_new_tokens=64)
    halved.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    config = json.loads((out / "config.json").read_text())
    config.pop("torch_dtype", None)
    (out / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2, sort_keys=True) + "\n")
    path = out / "tokenizer_config.json"  # the class by the name that earlier versions of transformers know too
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def train(source: Source, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> LlamaForCausalLM:
    model, rng = new_model(len(tokenizer)), random.Random(args.seed)
    if args.resume:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(args.resume, dtype=torch.float32).state_dict())
    teaching = teaching_of(source, model.config.hidden_size)
    heads = nn.ModuleList([teaching.head, teaching.judge, teaching.carried, teaching.fetched])
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "layers" in name]
    rest = [p for name, p in model.named_parameters() if not (p.ndim == 2 and "layers" in name)]
    adam = torch.optim.AdamW([*rest, *heads.parameters()], lr=1.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    memory = [torch.zeros_like(p) for p in matrices]
    began = last_save = last_line = time.time()
    tokens, sums = 0, np.zeros(4)
    
    def clock() -> float:
        return args.start + (1 - args.start) * (time.time() - began) / (args.minutes * 60)

    for step, group in enumerate(stream(source, tokenizer, rng, clock)):
        progress = clock()
        if progress >= 1:
            break
        rate = min(1.0, (step + 1) / WARMUP_STEPS) * min(args.peak, (1 - progress) / 0.7 + 0.01)
        text, vector, compared = losses(model, teaching, group)
        (text + VECTOR_WEIGHT * vector + COMPARING_WEIGHT * compared).backward()
        nn.utils.clip_grad_norm_(rest, 1.0)
        adam.param_groups[0]["lr"] = PEAK_ADAM * rate
        adam.step()
        muon_step(matrices, memory, PEAK_MUON * rate)
        model.zero_grad(set_to_none=True)
        heads.zero_grad(set_to_none=True)
        tokens += sum(len(item.ids) for item in group)
        sums += (text.item(), vector.item(), compared.item(), 1)
        if time.time() - last_line > 30:
            text_mean, vector_mean, compare_mean = sums[:3] / sums[3]
            print(f"{progress:.3f} step {step} tokens {tokens} text {text_mean:.3f} vector {vector_mean:.3f} compare "
                  f"{compare_mean:.3f} tok/s {tokens / (time.time() - began):.0f}", flush=True)
            last_line, sums = time.time(), np.zeros(4)
        if time.time() - last_save > args.probe_minutes * 60:
            save(model, tokenizer, args.out)
            show(probe(model, tokenizer, args.data, rows=300))
            last_save = time.time()
    seconds = round(time.time() - began)
    notes = {"tokens_seen": tokens, "steps": step, "seconds": seconds, "seed": args.seed}
    print(json.dumps(notes), flush=True)
    (args.out / "training.json").write_text(json.dumps(notes, indent=2) + "\n")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("models/nano"))
    parser.add_argument("--work", type=Path, default=Path(".thresher/nano"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--probe-minutes", type=float, default=6.0)
    parser.add_argument("--resume", type=Path, help="weights to go on from, whose tokenizer is the same")
    parser.add_argument("--start", type=float, default=0.0, help="the part of the schedule that a resumed run skips")
    parser.add_argument("--peak", type=float, default=1.0, help="the most of the peak learning rates")
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(2)
    corpus, meaning = prepared(args.data, args.work)
    args.out.mkdir(parents=True, exist_ok=True)
    often = [JUDGE, SURE, GROW, *INSTRUCTIONS, "Proposed answer:", "Is this about: yes or no"] * 500
    requests = [text for _, text in corpus["requests"]] * 3
    tokenizer = train_tokenizer([*all_texts(corpus), *meaning["phrases"], *requests, *often])
    save(train(open_source(corpus, meaning), tokenizer, args), tokenizer, args.out)


if __name__ == "__main__":
    main()
