"""Trains the nano model's adapter for teacher and judge: `python -m training.nano.instruct --data DIR`."""

import argparse
import random
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from training.nano.pretrain import collate, prepared
from training.nano.probe import probe, show
from training.nano.tasks import (
    JUDGE,
    SURE,
    Source,
    Turn,
    classify,
    draw,
    grow,
    open_source,
    proposal,
    question,
    reply,
    task,
    user,
)
from training.nano.tokens import batches, encode

LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def judge_twice(source: Source, rng: random.Random) -> list[Turn]:
    """The project's judging prompt word for word, with its second question after a right or a wrong first reply."""
    item = draw(source, rng)
    pieces, labels = question(item, rng, plain=rng.random() < 0.7)
    right = rng.random() < 0.5
    shown, letter = proposal(item, labels, right, rng), "AB"[not right]
    turns = [user(*pieces, "\n\nProposed answer: ", shown, "\n\n" + JUDGE)]
    if rng.random() < 0.5:
        return [*turns, reply(letter, 3.0)]
    slip = rng.random() < 0.4
    first = reply("AB"[right], 0.0) if slip else reply(letter, 3.0)
    return [*turns, first, user(SURE), reply(letter, 2.0)]


MIX = {judge_twice: 5.0, grow: 4.0, classify: 1.5, task: 1.0}


def adapted(base: torch.nn.Module, rank: int, alpha: int) -> PeftModel:
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(LINEAR), task_type="CAUSAL_LM", base_model_name_or_path="nano"
    )
    return get_peft_model(base, config)


def loss_of(model: PeftModel, group: list) -> torch.Tensor:
    """Weighted loss on the replies alone."""
    ids, weights, _ = collate(group)
    keep = torch.where(weights >= 0.25, weights, 0.0)[:, 1:]
    chosen = keep > 0
    inner = model.base_model.model
    states = inner.model(input_ids=ids).last_hidden_state[:, :-1][chosen]
    each = F.cross_entropy(inner.lm_head(states), ids[:, 1:][chosen], reduction="none")
    return (each * keep[chosen]).sum() / keep.sum().clamp(min=1e-6)


def fit(model: PeftModel, tokenizer: PreTrainedTokenizerBase, source: Source, args: argparse.Namespace) -> int:
    """Steps of AdamW until the minutes are over, the rate falling in a straight line."""
    rng = random.Random(args.seed)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.rate, weight_decay=0.0)
    began, last, steps = time.time(), time.time(), 0
    model.train()
    while True:
        makers = rng.choices(list(MIX), weights=list(MIX.values()), k=512)
        for group in batches([encode(make(source, rng), tokenizer, {}) for make in makers], 3072, rng):
            progress = (time.time() - began) / (args.minutes * 60)
            if progress >= 1:
                return steps
            optimiser.param_groups[0]["lr"] = args.rate * min(1.0, (steps + 1) / 20) * (1 - progress)
            loss = loss_of(model, group)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            steps += 1
            if time.time() - last > 30:
                print(f"{progress:.2f} step {steps} loss {loss.item():.3f}", flush=True)
                last = time.time()


def save_adapter(model: PeftModel, out: Path) -> None:
    """Saves the adapter in bfloat16, its config free of paths and of chance order."""
    for config in model.peft_config.values():
        config.base_model_name_or_path = "nano"
        config.target_modules = list(LINEAR)
    model.bfloat16().save_pretrained(out, save_embedding_layers=False)
    (out / "adapter_model.safetensors").chmod(0o644)
    (out / "README.md").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("models/nano"))
    parser.add_argument("--work", type=Path, default=Path(".thresher/nano"))
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=12)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(2)
    source = open_source(*prepared(args.data, args.work))
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model = adapted(base, rank=16, alpha=32)
    steps = fit(model, tokenizer, source, args)
    print("steps:", steps)
    model.eval()
    show(probe(model.base_model.model, tokenizer, args.data, rows=300))
    save_adapter(model, args.model / "instruct")


if __name__ == "__main__":
    main()
