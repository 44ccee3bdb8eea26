"""Measures what the nano model can do with rows it has not read: `python -m training.nano.probe --data DIR`."""

import argparse
import json
import math
import random
from pathlib import Path

import numpy as np
import polars as pl
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from training.nano.corpus import embed, normalise
from training.nano.labels import HELD_OUT_INTENTS, SNIPS_LABELS, intent_names
from training.nano.tasks import GROW, INSTRUCTIONS, JUDGE

Row = tuple[str, str]  # text, label
# "cook time" was among the label phrases of the shipped weights' training, so its rows are not counted as new.
NEW_INTENTS = tuple(intent for intent in HELD_OUT_INTENTS if intent != "cook_time")
SNIPS_INTENTS = (
    "AddToPlaylist", "BookRestaurant", "GetWeather", "PlayMusic", "RateBook", "SearchCreativeWork",
    "SearchScreeningEvent",
)


def chat(content: str) -> str:
    return f"<|bos|><|user|>{content}<|end|><|assistant|>"


@torch.no_grad()
def next_logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> torch.Tensor:
    """The scores of the token after each prompt; padding at the right cannot be seen by a causal model."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found = [torch.empty(0)] * len(prompts)
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        lists = [tokenizer(prompts[i], add_special_tokens=False)["input_ids"] for i in part]
        width = max(map(len, lists))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in lists])
        states = model.model(input_ids=ids).last_hidden_state
        last = states[torch.arange(len(part)), torch.tensor([len(row) - 1 for row in lists])]
        for i, logits in zip(part, model.lm_head(last), strict=True):
            found[i] = logits
    return torch.stack(found)


@torch.no_grad()
def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], most: int = 12, sample: bool = False
) -> list[str]:
    """What the model writes after each prompt, greedily or drawn at random."""
    written = []
    for start in range(0, len(prompts), 50):
        batch = tokenizer(prompts[start : start + 50], return_tensors="pt", padding=True, add_special_tokens=False)
        ways = {"do_sample": True, "temperature": 0.8, "top_p": 0.95} if sample else {"do_sample": False}
        made = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=most, **ways
        )
        written += tokenizer.batch_decode(made[:, batch["input_ids"].size(1) :], skip_special_tokens=True)
    return [text.strip() for text in written]


def prompt_of(text: str, labels: list[str]) -> str:
    return INSTRUCTIONS[0].format(labels=", ".join(labels)) + "\n" + text


def options(label: str, labels: list[str], count: int, rng: random.Random) -> list[str]:
    """The label among others; all of them, in their order, where there are no more than wanted."""
    if len(labels) <= count:
        return list(labels)
    chosen = [*rng.sample([other for other in labels if other != label], count - 1), label]
    rng.shuffle(chosen)
    return chosen


def judging(model, tokenizer, rows: list[Row], labels: list[str], seed: int = 5) -> dict[str, float]:
    """AUROC of P(A) / (P(A) + P(B)) over rows of which every other one is given another label of its list."""
    rng, prompts, truth = random.Random(seed), [], []
    for number, (text, label) in enumerate(rows):
        shown = options(label, labels, 7, rng)
        right = number % 2 == 0
        proposed = label if right else rng.choice([other for other in shown if other != label])
        prompts.append(chat(f"{prompt_of(text, shown)}\n\nProposed answer: {proposed}\n\n{JUDGE}"))
        truth.append(int(right))
    logits = next_logits(model, tokenizer, prompts)
    a, b = (tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "AB")
    score = (logits[:, a] - logits[:, b]).sigmoid()
    hits = ((score > 0.5).long() == torch.tensor(truth)).float().mean().item()
    return {"auroc": float(roc_auc_score(truth, score.numpy())), "accuracy": hits, "rows": len(rows)}


def choosing(model, tokenizer, rows: list[Row], labels: list[str], seed: int = 5) -> dict[str, float]:
    """Share of rows whose greedily written answer is the label, out of a list of seven."""
    rng = random.Random(seed)
    prompts = [chat(prompt_of(text, options(label, labels, 7, rng))) for text, label in rows]
    said = answers(model, tokenizer, prompts)
    hits = sum(answer == label for answer, (_, label) in zip(said, rows, strict=True))
    return {"accuracy": hits / len(rows), "rows": len(rows)}


def ranking(model, tokenizer, rows: list[Row], labels: list[str], seed: int = 5) -> dict[str, float]:
    """Share of rows whose label, judged as a proposed answer, has the greatest P(A) of seven."""
    rng, prompts, places = random.Random(seed), [], []
    for text, label in rows:
        shown = options(label, labels, 7, rng)
        places.append(shown.index(label))
        asked = prompt_of(text, shown)
        prompts += [chat(f"{asked}\n\nProposed answer: {each}\n\n{JUDGE}") for each in shown]
    logits = next_logits(model, tokenizer, prompts)
    a, b = (tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "AB")
    best = (logits[:, a] - logits[:, b]).view(len(rows), -1).argmax(dim=1)
    return {"accuracy": (best == torch.tensor(places)).float().mean().item(), "rows": len(rows)}


def writing(model, tokenizer, rows: list[Row], labels: list[str], asked: int, seed: int = 5) -> dict[str, object]:
    """Share of written requests that are not the given one and lie nearest to the wanted label's rows, of seven labels.

    Nearest by all-MiniLM-L6-v2, to the mean of the label's rows. Chance is one in seven.
    """
    rng, prompts, shown = random.Random(seed), [], []
    torch.manual_seed(seed)
    for text, label in rows[:asked]:
        shown.append(options(label, labels, 7, rng))
        task = INSTRUCTIONS[0].format(labels=", ".join(shown[-1]))
        prompts.append(chat(GROW.format(task=task, text=text, label=label)))
    said = answers(model, tokenizer, prompts, most=32, sample=True)
    vectors = embed([text for text, _ in rows] + said)
    belongs = np.array([[label == name for _, label in rows] for name in labels], dtype=float)
    means = dict(zip(labels, belongs @ vectors[: len(rows)], strict=True))
    apt = 0
    for (text, label), written, vector, names in zip(rows, said, vectors[len(rows) :], shown, strict=False):
        nearest = max(names, key=lambda name: vector @ means[name] / (np.linalg.norm(means[name]) + 1e-9))
        apt += nearest == label and normalise(written) != normalise(text)
    examples = [{"given": t, "label": label, "written": out} for (t, label), out in zip(rows, said, strict=False)]
    return {"apt": apt / len(said), "rows": len(said), "examples": examples[:8]}


@torch.no_grad()
def perplexity(model, tokenizer, texts: list[str]) -> float:
    """Per-token perplexity of short requests that were not in the training."""
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(f"<|bos|>{text}<|end|>", add_special_tokens=False)["input_ids"]])
        logits = model(input_ids=ids).logits[0, :-1]
        total += F.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += ids.size(1) - 1
    return math.exp(total / count)


def held_out_rows(data: Path, rows: int, seed: int = 3) -> dict[str, tuple[list[Row], list[str]]]:
    """Rows and label lists: trained intents (validation split), intents never seen, and SNIPS."""
    rng, names = random.Random(seed), intent_names()
    clinc = pl.read_parquet(data / "clinc150.parquet").filter(pl.col("split").is_in(["val", "test"]))
    pairs = list(zip(clinc["text"].to_list(), clinc["intent"].to_list(), strict=True))
    known = [(text, names[intent][0]) for text, intent in pairs if intent in names]
    new = [(text, intent.replace("_", " ")) for text, intent in pairs if intent in NEW_INTENTS]
    snips = pl.read_parquet(data / "snips.parquet").filter(pl.col("split") == "test")
    label_of = dict(zip(SNIPS_INTENTS, SNIPS_LABELS, strict=True))
    demo = [(t, label_of[i]) for t, i in zip(snips["text"].to_list(), snips["intent"].to_list(), strict=True)]
    sets = {"clinc": known, "new_intents": new, "snips": demo}
    labels = {
        "clinc": [several[0] for several in names.values()],
        "new_intents": [name.replace("_", " ") for name in NEW_INTENTS],
        "snips": list(SNIPS_LABELS),
    }
    return {name: (rng.sample(found, min(rows, len(found))), labels[name]) for name, found in sets.items()}


def probe(model, tokenizer, data: Path, rows: int = 700) -> dict[str, object]:
    """Every measured ability, by set of rows."""
    was_training = model.training
    model.eval()
    report: dict[str, object] = {}
    for name, (found, labels) in held_out_rows(data, rows).items():
        report[name] = {
            "judging": judging(model, tokenizer, found, labels),
            "choosing": choosing(model, tokenizer, found[: rows // 2], labels),
            "ranking": ranking(model, tokenizer, found[: rows // 4], labels),
            "perplexity": perplexity(model, tokenizer, [text for text, _ in found[:150]]),
            "writing": writing(model, tokenizer, found, labels, asked=rows // 4),
        }
    model.train(was_training)
    return report


def show(report: dict) -> None:
    print(f"{'rows':<12} {'judge AUROC':>12} {'judge acc':>10} {'choose acc':>11} {'rank acc':>9} {'perplexity':>11} "
          f"{'writes apt':>11}")
    for name, found in report.items():
        judge, choose, rank = found["judging"], found["choosing"], found["ranking"]
        print(f"{name:<12} {judge['auroc']:>12.3f} {judge['accuracy']:>10.3f} {choose['accuracy']:>11.3f} "
              f"{rank['accuracy']:>9.3f} {found['perplexity']:>11.1f} {found['writing']['apt']:>11.3f}")
    for name, found in report.items():
        for line in found["writing"]["examples"][:3]:
            print(f"  {name}: [{line['label']}] {line['given']} -> {line['written']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("models/nano"))
    parser.add_argument("--adapter", type=Path, help="a LoRA adapter to put over the model")
    parser.add_argument("--rows", type=int, default=700)
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")
    args = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    if args.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, args.adapter).merge_and_unload()
    report = probe(model, tokenizer, args.data, args.rows)
    print(json.dumps(report, indent=2)) if args.json else show(report)


if __name__ == "__main__":
    main()
