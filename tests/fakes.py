"""Engines for tests. Scripted, deterministic, and small enough to be read."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from curation.step import Completion


@dataclass
class FakeEngine:
    """Answers every prompt with `reply(text of its last message, number of the sample)`; remembers all of it."""

    reply: Callable[[str, int], str] = lambda text, i: text
    probabilities: Callable[[str], list[float]] = lambda text: []
    nll: Callable[[str], float] = lambda text: 1.0
    identity: str = "fake"
    asked: list[str] = field(default_factory=list)
    how: list[dict] = field(default_factory=list)
    used: Counter[str] = field(default_factory=Counter)

    def generate(self, prompts, *, max_tokens, n=1, temperature=0.0, top_p=1.0, seed=0, with_logprobs=False):
        texts = [p[-1]["content"] for p in prompts]
        self.asked += texts
        self.how.append({"n": n, "temperature": temperature, "seed": seed, "max_tokens": max_tokens})
        return [[Completion(self.reply(t, i)) for i in range(n)] for t in texts]

    def logprobs(self, conversations):
        return [[-self.nll(c[-1]["content"])] * len(c[-1]["content"].split()) for c in conversations]

    def choose(self, prompts, answers):
        self.asked += [p[-1]["content"] for p in prompts]
        return [self.probabilities(p[-1]["content"]) or [1 / len(answers)] * len(answers) for p in prompts]

    def count_tokens(self, texts):
        return [len(t.split()) for t in texts]


@dataclass
class FakeEmbedder:
    """Letter counts as unit vectors."""

    identity: str = "fake-embedder"

    def embed(self, texts):
        counts = np.array([[t.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts], np.float32)
        counts = counts.reshape(len(texts), 26) + 1e-3
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@dataclass
class FakeNLI:
    """Contradiction of a pair of texts as `odds(left, right)` says; remembers the pairs."""

    odds: Callable[[str, str], float] = lambda left, right: 0.5
    identity: str = "fake-nli"
    labels: tuple[str, ...] = ("contradiction", "neutral", "entailment")
    asked: list[tuple[str, str]] = field(default_factory=list)

    def classify(self, pairs):
        self.asked += pairs
        odds = [self.odds(*p) for p in pairs]
        return [[o, (1 - o) / 2, (1 - o) / 2] for o in odds]
