"""What a sentence encoder says of the corpus: vectors, the phrases nearest to a text, and each intent's neighbours."""

import re
from collections import Counter
from typing import TypedDict

import numpy as np

from training.nano.corpus import Corpus, all_texts, embed
from training.nano.labels import SNIPS_LABELS, bank_phrases, intent_names

COMMON_WORDS = 3000


class Meaning(TypedDict):
    texts: list[str]  # requests first, then the pool: what can be labelled
    intents: list[str]  # the intent of each request, "" for the pool
    phrases: list[str]
    nearest: np.ndarray  # text x 4 phrase numbers, nearest first
    misses: np.ndarray  # text x 50 phrase numbers that are somewhat near and yet wrong
    neighbours: dict[str, list[str]]  # intent: the intents most like it
    rows: dict[str, int]  # text, name or phrase: its row of vectors
    vectors: np.ndarray


def common_words(corpus: Corpus) -> list[str]:
    counts = Counter(word for text in all_texts(corpus) for word in re.findall(r"[a-z]{3,}", text.lower()))
    return [word for word, _ in counts.most_common(COMMON_WORDS)]


def _centred(vectors: np.ndarray) -> np.ndarray:
    moved = vectors - vectors.mean(axis=0, keepdims=True)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def _neighbours(requests: list[tuple[str, str]], vectors: np.ndarray) -> dict[str, list[str]]:
    names = sorted({intent for intent, _ in requests})
    labels = np.array([intent for intent, _ in requests])
    centres = _centred(np.stack([vectors[labels == name].mean(axis=0) for name in names]))
    order = np.argsort(-(centres @ centres.T), axis=1)
    return {name: [names[j] for j in order[i] if j != i][:10] for i, name in enumerate(names)}


def measure(corpus: Corpus) -> Meaning:
    """Embeds requests, pool, names, phrases and common words, and matches every text to the phrases."""
    texts = [text for _, text in corpus["requests"]] + corpus["pool"]
    names = [name for several in intent_names().values() for name in several]
    phrases = [p for p in dict.fromkeys(bank_phrases() + names) if p not in SNIPS_LABELS]
    everything = list(dict.fromkeys(texts + phrases + common_words(corpus)))
    vectors = embed(everything).astype(np.float32)
    rows = {text: number for number, text in enumerate(everything)}
    of_texts = _centred(vectors[[rows[text] for text in texts]])
    of_phrases = _centred(vectors[[rows[phrase] for phrase in phrases]])
    order = np.argsort(-(of_texts @ of_phrases.T), axis=1).astype(np.int32)
    return {
        "texts": texts,
        "intents": [intent for intent, _ in corpus["requests"]] + [""] * len(corpus["pool"]),
        "phrases": phrases,
        "nearest": order[:, :4].copy(),
        "misses": order[:, 200:1000:16].copy(),
        "neighbours": _neighbours(corpus["requests"], vectors[[rows[text] for _, text in corpus["requests"]]]),
        "rows": rows,
        "vectors": _centred(vectors),
    }
