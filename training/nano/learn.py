"""Measures how a LoRA run of a minute learns SNIPS over the nano model: `python -m training.nano.learn --data DIR`.

Trains on rows of SNIPS's train split and tests on others of it: settings are compared without the test split.
"""

import argparse
import random
import time
from pathlib import Path

import polars as pl
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.nano.instruct import adapted, loss_of
from training.nano.labels import SNIPS_LABELS
from training.nano.probe import SNIPS_INTENTS, Row, answers, chat, prompt_of
from training.nano.tasks import reply, user
from training.nano.tokens import encode


def snips(data: Path, each: int, rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Rows to train on and others to test on, the same number of every label in both."""
    table = pl.read_parquet(data / "snips.parquet").filter(pl.col("split") == "train")
    train: list[Row] = []
    test: list[Row] = []
    for intent, label in zip(SNIPS_INTENTS, SNIPS_LABELS, strict=True):
        texts = table.filter(pl.col("intent") == intent)["text"].unique(maintain_order=True).to_list()
        texts = rng.sample(texts, 2 * each)
        train += [(text, label) for text in texts[:each]]
        test += [(text, label) for text in texts[each:]]
    rng.shuffle(train)
    return train, test


def spoil(rows: list[Row], share: float, rng: random.Random) -> list[Row]:
    """Gives a share of the rows another label."""
    wrong = set(rng.sample(range(len(rows)), round(share * len(rows))))
    others = {label: [other for other in SNIPS_LABELS if other != label] for label in SNIPS_LABELS}
    return [(text, rng.choice(others[label]) if i in wrong else label) for i, (text, label) in enumerate(rows)]


def run(args: argparse.Namespace, share: float) -> tuple[float, float]:
    """Accuracy on the other rows after the steps, and the seconds that they took."""
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = adapted(AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32), args.rank, 2 * args.rank)
    clean, test = snips(args.data, 100, rng)
    rows = spoil(clean, share, rng)
    made = [encode([user(prompt_of(text, list(SNIPS_LABELS))), reply(label)], tokenizer, {}) for text, label in rows]
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.rate, weight_decay=0.0)
    order: list[int] = []
    began = time.time()
    for step in range(args.steps):
        if len(order) < 16:
            order = rng.sample(range(len(made)), len(made))
        group = [made[order.pop()] for _ in range(16)]
        optimiser.param_groups[0]["lr"] = args.rate * min(1.0, (step + 1) / 10) * (1 - step / args.steps)
        loss = loss_of(model, group)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    seconds = time.time() - began
    plain = model.merge_and_unload().eval()
    said = answers(plain, tokenizer, [chat(prompt_of(text, list(SNIPS_LABELS))) for text, _ in test])
    return sum(a == label for a, (_, label) in zip(said, test, strict=True)) / len(test), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("models/nano"))
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--spoilt", type=float, nargs="+", default=[0.0, 0.35])
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(2)
    for share in args.spoilt:
        accuracy, seconds = run(args, share)
        print(f"spoilt {share:.2f} rank {args.rank} rate {args.rate} steps {args.steps}: accuracy {accuracy:.3f} "
              f"in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
