"""Asserts that nothing forbidden is in the nano model's corpus: `python -m training.nano.check_leaks --data DIR`."""

import argparse
import math
import sys
from collections import Counter, defaultdict
from pathlib import Path

import polars as pl

from training.nano.corpus import Corpus, all_texts, clean_corpus, forbidden_texts, jaccard, normalise, shingles
from training.nano.labels import FORBIDDEN_TASKS, HELD_OUT_INTENTS, SNIPS_LABELS, bank_phrases, intent_names

LEAK = 0.8  # Jaccard over character 5-grams


def label_leaks() -> list[str]:
    """Label names used in the training that must stay new to the model."""
    barred = {normalise(name) for name in (*SNIPS_LABELS, *HELD_OUT_INTENTS)}
    barred |= {normalise(name.replace("_", " ")) for name in HELD_OUT_INTENTS}
    used = [name for several in intent_names().values() for name in several] + bank_phrases()
    return [name for name in used if normalise(name) in barred]


def source_leaks(corpus: Corpus, data: Path) -> list[str]:
    """Requests of left-out intents and inputs of left-out tasks."""
    leaks = [intent for intent, _ in corpus["requests"] if intent in HELD_OUT_INTENTS]
    table = pl.read_parquet(data / "super_ni.parquet").filter(pl.col("task").is_in(FORBIDDEN_TASKS))
    inputs = {normalise(text) for text in table["input"].to_list()}
    return leaks + [text for _, text, _ in corpus["tasks"] if normalise(text) in inputs]


def _prefix(grams: set[str], counts: Counter[str]) -> list[str]:
    """The rarest 5-grams, enough of them that near copies must share one."""
    order = sorted(grams, key=lambda gram: (counts[gram], gram))
    return order[: len(order) - math.ceil(LEAK * len(order)) + 1]


def copy_leaks(texts: list[str], forbidden: list[str]) -> list[str]:
    """Texts equal or near to a forbidden one, found exactly and not by the MinHash that took them out."""
    known = sorted({normalise(text) for text in forbidden} - {""})
    exact, grams = set(known), [shingles(text) for text in known]
    counts = Counter(gram for found in grams for gram in found)
    index: dict[str, list[int]] = defaultdict(list)
    for number, found in enumerate(grams):
        for gram in _prefix(found, counts):
            index[gram].append(number)
    leaks = []
    for text in sorted(set(texts)):
        mine = shingles(text)
        near = {number for gram in _prefix(mine, counts) for number in index.get(gram, ())}
        near = {n for n in near if LEAK * len(mine) <= len(grams[n]) <= len(mine) / LEAK}
        if normalise(text) in exact or any(jaccard(mine, grams[n]) >= LEAK for n in near):
            leaks.append(text)
    return leaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    corpus, lost = clean_corpus(args.data)
    texts = all_texts(corpus)
    leaks = label_leaks() + source_leaks(corpus, args.data) + copy_leaks(texts, forbidden_texts(args.data))
    print(f"{len(texts)} texts, {sum(lost.values())} taken out as equal or near to a forbidden one, {len(leaks)} leaks")
    for leak in leaks[:20]:
        print("leak:", leak[:100])
    sys.exit(1 if leaks else 0)


if __name__ == "__main__":
    main()
