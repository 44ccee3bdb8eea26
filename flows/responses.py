"""An engine whose responses are kept: asked once, they are read from the store ever after.

A stored response is canonical. Each is found by the model, its adapter, the messages and how they are sampled (the
identity holds the tokenizer and the chat template, so these say what the rendered prompt is), and each sample of a
prompt is one of its own. So another step, a changed parser or a pool that grew ask only for what is new, and a larger
`max_tokens` only for what was cut. A failure is not kept: it is asked again. A run that was killed inside a step goes
on where it was.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from curation.step import Classifier, Completion, Engine, Failed
from storage.responses import Answer, Responses
from storage.schema import Messages
from storage.store import Store, key_of

Progress = Callable[[int, int], None]  # requests done, requests in all
_KEEP_EVERY = 256, 2.0  # answers, seconds


@dataclass(frozen=True, slots=True)
class Remembered:
    """Satisfies `curation.step.Engine`.

    With a `batch`, the engine is asked for so many prompts at a time and each batch has a seed made from the call's.
    Without, it is asked for all at once, each prompt with a seed of its own, and tells each answer as it comes.
    """

    engine: Engine
    store: Store
    batch: int | None = 256
    progress: Progress = lambda done, total: None
    spent: dict[str, float] = field(default_factory=dict)  # see `_count`

    @property
    def identity(self) -> str:
        return self.engine.identity

    @property
    def used(self) -> Counter[str]:
        return self.engine.used

    def generate(
        self,
        prompts: list[Messages],
        *,
        max_tokens: int,
        n: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        choices: Sequence[str] = (),
        schema: dict[str, Any] | None = None,
        with_logprobs: bool = False,
    ) -> list[list[Completion]]:
        how: dict[str, Any] = {"temperature": temperature} | ({"top_p": top_p} if temperature else {})
        how |= {k: list(v) for k, v in (("stop", stop), ("choices", choices)) if v}
        how |= {"schema": schema} if schema is not None else {}
        how |= {"with_logprobs": True} if with_logprobs else {}
        keys = self._keys("generate", prompts, how | ({"seed": seed} if temperature else {}))
        names = [[f"{key}-{sample}" for sample in range(n)] for key in keys]
        before, found = Counter(self.used), self._kept.find([name for row in names for name in row], max_tokens)
        stored = sum(all(name in found for name in row) for row in names)
        heard = _Heard(self._kept, max_tokens)

        def ask(some: list[int], named: list[list[str]], n: int, seeds: int | list[int]) -> None:
            settings = how | {"max_tokens": max_tokens, "n": n} | ({"seed": seeds} if temperature else {})
            asked = [prompts[i] for i in some]
            if self.batch:
                for row, answers in zip(named, self.engine.generate(asked, **settings), strict=True):
                    heard.take(row, answers)
                heard.keep()  # at once: a batch that is there in part would be drawn by other seeds
                return

            def told(k: int, answers: list[Completion]) -> None:
                heard.take(named[k], answers)
                heard.keep_now_and_then()
                self.progress(min(stored + heard.prompts, len(prompts)), len(prompts))

            try:
                self.engine.generate(asked, **settings, done=told)
            finally:
                heard.keep()

        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        size = self.batch or max(1, len(prompts))
        try:
            for start in range(0, len(prompts), size):
                some = [i for i in range(start, min(start + size, len(prompts))) if first[keys[i]] == i]
                whole = [i for i in some if found.keys().isdisjoint(names[i])]
                begun = [i for i in some if not found.keys().isdisjoint(names[i])]
                if self.batch and len(whole) == len(some):
                    ask(whole, [names[i] for i in whole], n, _seed(seed, start))
                elif whole:
                    seeds = [_own_seed(keys[i]) for i in whole] if temperature else []
                    ask(whole, [names[i] for i in whole], n, seeds)
                parts = [(i, s) for i in begun for s in range(n) if names[i][s] not in found]
                if parts:  # samples beside others that are there: the seed of sample s is s over that of the first
                    seeds = [_own_seed(keys[i]) + s for i, s in parts]
                    ask([i for i, _ in parts], [[names[i][s]] for i, s in parts], 1, seeds)
                self.progress(min(start + size, len(prompts)), len(prompts))
        except BaseException:  # a stop, a budget that is spent, an engine that died twice
            self._count(heard.prompts, 0, before, heard.tokens)
            raise

        missing = [name for row in names for name in row if name not in found]
        found |= self._kept.find(missing, max_tokens)  # what is stored is believed, ours or another process's
        answers = [[_completion(found[x]) if x in found else heard.failed[x] for x in row] for row in names]
        self._count(len(prompts), stored, before, sum(c.tokens for row in answers for c in row))
        return answers

    def logprobs(self, conversations: list[Messages]) -> list[list[float] | Failed]:
        return self._numbers("logprobs", conversations, {}, self.engine.logprobs)

    def choose(self, prompts: list[Messages], answers: list[str]) -> list[list[float] | Failed]:
        how = {"answers": answers}
        return self._numbers("choose", prompts, how, partial(self.engine.choose, answers=answers))

    def count_tokens(self, texts: list[str]) -> list[int]:
        return self.engine.count_tokens(texts)

    # ---- inside

    @property
    def _kept(self) -> Responses:
        return self.store.answers

    def _keys(self, method: str, asked: list[Messages], how: dict[str, Any]) -> list[str]:
        """One for each question. Equal ones of a call are told apart where answers are drawn, to be independent; and
        in batches, where an answer's last digit depends on its neighbours."""
        apart, copies = how.get("temperature", 0) > 0 or self.batch is not None, Counter()
        question = key_of("responses", self.identity, method, how)
        keys = []
        for messages in asked:
            key = key_of(question, messages)
            keys.append(f"{key}.{copies[key]}" if copies[key] else key)
            copies[key] += apart
        return keys

    def _numbers(
        self, method: str, asked: list[Messages], how: dict[str, Any], ask: Callable[..., list[Any]]
    ) -> list[list[float] | Failed]:
        keys = self._keys(method, asked, how)
        before, found = Counter(self.used), self._kept.find(keys)
        stored, size = sum(k in found for k in keys), self.batch or max(1, len(asked))
        heard = _Heard(self._kept)
        try:
            for start in range(0, len(asked), size):
                some = range(start, min(start + size, len(asked)))
                new = {keys[i]: asked[i] for i in some if keys[i] not in found}
                self._ask_numbers(new, ask, heard, stored, len(asked))
                self.progress(min(start + size, len(asked)), len(asked))
        except BaseException:
            self._count(heard.prompts, 0, before, 0)
            raise
        found |= self._kept.find([k for k in keys if k not in found])
        self._count(len(asked), stored, before, 0)
        return [json.loads(found[k]) if k in found else heard.failed[k] for k in keys]

    def _ask_numbers(
        self, new: dict[str, Messages], ask: Callable[..., list[Any]], heard: "_Heard", stored: int, total: int
    ) -> None:
        names = list(new)

        def told(k: int, numbers: list[float] | Failed) -> None:
            heard.take_numbers(names[k], numbers)
            heard.keep_now_and_then()
            self.progress(min(stored + heard.prompts, total), total)

        try:
            if new and self.batch:
                for name, numbers in zip(names, ask(list(new.values())), strict=True):
                    heard.take_numbers(name, numbers)
            elif new:
                ask(list(new.values()), done=told)
        finally:
            heard.keep()

    def _count(self, requests: int, stored: int, before: Counter[str], generated: int) -> None:
        """`requests` and `generated_tokens` are what was needed, `from_store` the requests that cost nothing; the rest
        is what the engine was really asked."""
        now = self.used
        facts = {"requests": requests, "from_store": stored, "generated_tokens": generated}
        facts |= {k: now[k] - before[k] for k in ("prompt_tokens", "cached_tokens", "failures", "cost")}
        _add(self.spent, **facts, engine_seconds=round(now["seconds"] - before["seconds"], 3))


@dataclass
class _Heard:
    """The answers of one call as they come in: the failures, and the others on their way to the store."""

    store: Responses
    max_tokens: int = 0
    failed: dict[str, Any] = field(default_factory=dict)
    prompts: int = 0
    tokens: int = 0
    pending: list[Answer] = field(default_factory=list)
    kept: float = field(default_factory=time.monotonic)

    def take(self, named: list[str], answers: list[Completion]) -> None:
        self.prompts += 1
        for name, one in zip(named, answers, strict=True):
            if one.error is not None:
                self.failed[name] = one
                continue
            self.tokens += one.tokens
            said = json.dumps([one.text, one.logprobs, one.tokens, one.truncated])
            self.pending.append(Answer(name, said, self.max_tokens, one.tokens, one.truncated))

    def take_numbers(self, name: str, numbers: list[float] | Failed) -> None:
        self.prompts += 1
        if isinstance(numbers, Failed):
            self.failed[name] = numbers
        else:
            self.pending.append(Answer(name, json.dumps(numbers)))

    def keep_now_and_then(self) -> None:
        if len(self.pending) >= _KEEP_EVERY[0] or time.monotonic() - self.kept > _KEEP_EVERY[1]:
            self.keep()

    def keep(self) -> None:
        if self.pending:
            self.store.put(self.pending)
        self.pending, self.kept = [], time.monotonic()


@dataclass(frozen=True, slots=True)
class RememberedClasses:
    """Satisfies `curation.step.Classifier`."""

    engine: Classifier
    store: Store
    batch: int = 1024
    progress: Progress = lambda done, total: None
    spent: dict[str, float] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        return self.engine.identity

    @property
    def labels(self) -> tuple[str, ...]:
        return self.engine.labels

    def classify(self, pairs: list[tuple[str, str]]) -> list[list[float] | Failed]:
        found: list[list[float] | Failed] = []
        for start in range(0, len(pairs), self.batch):
            some = pairs[start : start + self.batch]
            keys = [key_of("classes", self.identity, pair) for pair in some]
            known = self._kept.find(keys)
            new = {key: pair for key, pair in zip(keys, some, strict=True) if key not in known}
            began, stored = time.monotonic(), sum(key in known for key in keys)
            judged = dict(zip(new, self.engine.classify(list(new.values())), strict=True)) if new else {}
            self._kept.put(Answer(k, json.dumps(j)) for k, j in judged.items() if not isinstance(j, Failed))
            known |= self._kept.find(list(new))
            found += [json.loads(known[key]) if key in known else judged[key] for key in keys]
            _add(
                self.spent,
                classified_pairs=len(some),
                pairs_from_store=stored,
                failures=sum(isinstance(j, Failed) for j in judged.values()),
                engine_seconds=round(time.monotonic() - began, 3) if new else 0,
            )
            self.progress(min(start + self.batch, len(pairs)), len(pairs))
        return found

    @property
    def _kept(self) -> Responses:
        return self.store.answers


def _add(spent: dict[str, float], **facts: float) -> None:
    for what, amount in facts.items():
        if amount:
            spent[what] = spent.get(what, 0) + amount


def _seed(seed: int, start: int) -> int:
    """Equal prompts in two batches are to be answered independently; the first batch keeps the call's seed."""
    return int(key_of(seed, start), 16) % 2**31 if start else seed


def _own_seed(key: str) -> int:
    return int(key_of("seed", key), 16) % 2**30


def _completion(stored: str) -> Completion:
    text, logprobs, tokens, truncated = json.loads(stored)
    return Completion(text, tuple(logprobs), None, tokens, truncated)
