"""An engine whose responses are kept: asked once, they are read from the store ever after.

A stored response is canonical. A run that was killed inside a model step goes on at its first missing batch, and no
sampled answer is made twice.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl

from curation.step import Classifier, Completion, Engine, Failed
from storage.schema import Messages
from storage.store import Store, key_of

Progress = Callable[[int, int], None]  # requests done, requests in all


@dataclass(frozen=True, slots=True)
class Remembered:
    """Satisfies `curation.step.Engine`. Sampling in batch k of a call has a seed of its own, made from the call's."""

    engine: Engine
    store: Store
    batch: int = 256
    progress: Progress = lambda done, total: None
    spent: dict[str, int] = field(default_factory=dict)  # requests and tokens, those read from the store too

    @property
    def identity(self) -> str:
        return self.engine.identity

    def generate(
        self,
        prompts: list[Messages],
        *,
        max_tokens: int,
        n: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[list[Completion]]:
        how = {"max_tokens": max_tokens, "n": n, "temperature": temperature}

        def ask(some: list[Messages], start: int) -> tuple[dict[str, Any], Callable[[], list[Any]]]:
            drawn = {"top_p": top_p, "seed": _seed(seed, start)} if temperature else {}
            return how | drawn, lambda: self.engine.generate(some, **how, **drawn)

        found = self._in_batches("generate", prompts, ask)
        self._spend("generated_tokens", sum(len(c["logprobs"]) for answers in found for c in answers))
        return [[Completion(c["text"], tuple(c["logprobs"]), c["error"]) for c in answers] for answers in found]

    def logprobs(self, conversations: list[Messages]) -> list[list[float] | Failed]:
        found = self._in_batches("logprobs", conversations, lambda some, _: ({}, lambda: self.engine.logprobs(some)))
        return [_numbers(f) for f in found]

    def choose(self, prompts: list[Messages], answers: list[str]) -> list[list[float] | Failed]:
        found = self._in_batches(
            "choose", prompts, lambda some, _: ({"answers": answers}, lambda: self.engine.choose(some, answers))
        )
        return [_numbers(f) for f in found]

    def count_tokens(self, texts: list[str]) -> list[int]:
        return self.engine.count_tokens(texts)

    def _in_batches(self, method: str, asked: list[Messages], ask: Callable[..., tuple]) -> list[Any]:
        """The responses as JSON gives them back, those just made too, so that a resumed run sees the same."""
        out: list[Any] = []
        for start in range(0, len(asked), self.batch):
            some = asked[start : start + self.batch]
            how, make = ask(some, start)
            key = key_of("responses", self.identity, method, how, some)
            part = self.store.part(key)
            if part is None:
                responses = [json.dumps(_plain(r)) for r in make()]
                part = self.store.put_part(key, pl.DataFrame({"response": responses}, schema={"response": pl.String}))
            out += [json.loads(r) for r in self.store.read_shard((part,))["response"]]
            self.progress(len(out), len(asked))
        self._spend("requests", len(asked))
        self._spend("prompt_tokens", sum(self.engine.count_tokens([m["content"] or "" for p in asked for m in p])))
        return out

    def _spend(self, what: str, amount: int) -> None:
        self.spent[what] = self.spent.get(what, 0) + amount


@dataclass(frozen=True, slots=True)
class RememberedClasses:
    """Satisfies `curation.step.Classifier`."""

    engine: Classifier
    store: Store
    batch: int = 1024
    progress: Progress = lambda done, total: None
    spent: dict[str, int] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        return self.engine.identity

    @property
    def labels(self) -> tuple[str, ...]:
        return self.engine.labels

    def classify(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        found = []
        for start in range(0, len(pairs), self.batch):
            some = pairs[start : start + self.batch]
            key = key_of("classes", self.identity, some)
            part = self.store.part(key)
            if part is None:
                odds = self.engine.classify(some)
                table = pl.DataFrame(odds, schema={f"class_{i}": pl.Float32 for i in range(len(self.labels))})
                part = self.store.put_part(key, table)
            found.append(self.store.read_shard((part,)).to_numpy())
            self.progress(min(start + self.batch, len(pairs)), len(pairs))
        self.spent["classified_pairs"] = self.spent.get("classified_pairs", 0) + len(pairs)
        return np.concatenate(found) if found else np.zeros((0, len(self.labels)), np.float32)


def _seed(seed: int, start: int) -> int:
    """Equal prompts in two batches are to be answered independently; the first batch keeps the call's seed."""
    return int(key_of(seed, start), 16) % 2**31 if start else seed


def _plain(response: Any) -> Any:
    if isinstance(response, Failed):
        return asdict(response)
    return [asdict(r) if isinstance(r, Completion) else r for r in response]


def _numbers(found: Any) -> list[float] | Failed:
    return Failed(found["error"]) if isinstance(found, dict) else found
