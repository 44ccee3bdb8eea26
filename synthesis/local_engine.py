"""A language model in this process, with transformers, on the CPU or a small GPU."""

import copy
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from curation.step import Completion, Failed
from storage.schema import Messages
from synthesis.chat import Chat, quiet
from synthesis.constraint import Constraint
from synthesis.decode import Answer, Prefix, Sampling, batches, decode, free_memory, last_logits, shared_prefix
from synthesis.fingerprint import EngineError, fingerprint, folder_digest

_BATCH_TOKENS = {"cpu": 16_384, "cuda": 32_768}
_SCORING_TOKENS = {"cpu": 4_096, "cuda": 32_768}  # of one pass: on a CPU what fits its caches, 1.5 times as fast
_MERGE_BELOW = 20_000_000  # parameters, on a CPU: a copy with the adapter merged in is cheap and a third faster
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}


class LocalEngine:
    """Satisfies `curation.step.Engine`. Views made by `with_adapter` share the base model's weights.

    What comes back depends on the arguments of the call alone. Log-probabilities are the model's own, before
    temperature and top-p. The end token counts: as the last number of an answer that came to its end, and as the last
    of `logprobs`, so that both are about the tokens that training learns from.
    """

    def __init__(
        self,
        model: str | Path,
        adapter: str | Path | None = None,
        *,
        identity: str | None = None,
        device: str = "auto",
        batch_tokens: int | None = None,
        merge_below: int = _MERGE_BELOW,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._base = _Base(str(model), device, merge_below)
        self._adapter: str | None = None
        self.batch_tokens = batch_tokens or _BATCH_TOKENS[device]
        self.scoring_tokens = min(self.batch_tokens, _SCORING_TOKENS[device])
        self.progress = progress
        self.used: Counter[str] = Counter()
        self.identity = identity or _identity(model, device)
        if adapter is not None:
            self._play(adapter, identity)

    def with_adapter(self, folder: str | Path | None, identity: str | None = None) -> "LocalEngine":
        """The same base model with another adapter, or with none; nothing of the base is loaded again."""
        view = copy.copy(self)
        view.used = Counter()
        view._play(folder, identity)
        return view

    def close(self) -> None:
        """Free the memory; this engine and all its views are unusable afterwards."""
        self._base.close()

    def generate(
        self,
        prompts: list[Messages],
        *,
        max_tokens: int,
        n: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        stop: Sequence[str] = (),
        choices: Sequence[str] = (),
        schema: dict[str, Any] | None = None,
        with_logprobs: bool = False,
        done: Callable[[int, list[Completion]], None] = lambda i, answers: None,
    ) -> list[list[Completion]]:
        chat = self._base.chat
        how = Sampling(max_tokens, temperature, top_p, chat.ends, chat.context)
        draws = _draws(seed, len(prompts), n, max_tokens)
        encoded = chat.encode(prompts)
        fitting, out = chat.split(encoded, chat.context - 1)
        answered: list[Any] = [[Completion("", error=f.error)] * n if f else None for f in out]
        costs = {i: (len(encoded[i]) + max_tokens) * n for i in fitting}
        constraint = None
        if choices or schema is not None:
            try:
                constraint = self._base.constraint(choices, schema)
            except ValueError as why:
                if isinstance(why, EngineError):
                    raise
                fitting, answered = [], [a or [Completion("", error=str(why))] * n for a in answered]
        with self._base.speaking(self._adapter) as model, self._counted(encoded, fitting) as read:
            prefix = read(shared_prefix(model, [encoded[i] for i in fitting]))
            for group in self._groups(fitting, costs, self.batch_tokens):
                rows = [encoded[i][prefix.length :] for i in group]
                for i, answers in zip(group, decode(model, prefix, rows, draws[group], how, constraint), strict=True):
                    answered[i] = [_completion(chat, a, stop, with_logprobs) for a in answers]
                    self.used["generated_tokens"] += sum(c.tokens for c in answered[i])
        for i, answers in enumerate(answered):
            done(i, answers)
        return answered

    def choose(
        self,
        prompts: list[Messages],
        answers: list[str],
        done: Callable[[int, list[float] | Failed], None] = lambda i, odds: None,
    ) -> list[list[float] | Failed]:
        """The forms "A" and " A" of an answer are summed where both are one token."""
        forms = [self._base.chat.forms(a) for a in answers]
        encoded = self._base.chat.encode(prompts)
        fitting, results = self._base.chat.split(encoded, self._base.chat.context)
        with self._base.speaking(self._adapter) as model, self._counted(encoded, fitting) as read:
            prefix = read(shared_prefix(model, [encoded[i] for i in fitting]))
            for group in self._groups(fitting, {i: len(encoded[i]) for i in fitting}, self.scoring_tokens):
                logits = last_logits(model, prefix, [encoded[i][prefix.length :] for i in group], 1)[:, -1]
                odds = logits.softmax(-1)
                picked = torch.stack([odds[:, ids].sum(1) for ids in forms], 1).tolist()
                for i, probabilities in zip(group, picked, strict=True):
                    results[i] = probabilities
        for i, odds in enumerate(results):
            done(i, odds)
        return results

    def logprobs(
        self,
        conversations: list[Messages],
        done: Callable[[int, list[float] | Failed], None] = lambda i, numbers: None,
    ) -> list[list[float] | Failed]:
        """Of the tokens that the model would have to say: the message's content and its end token."""
        encoded = [self._base.chat.encode_answered(c) for c in conversations]
        tokens = [e if isinstance(e, Failed) else e[0] for e in encoded]
        fitting, results = self._base.chat.split(tokens, self._base.chat.context)
        spans = {i: len(encoded[i][0]) - encoded[i][1] for i in fitting}
        with self._base.speaking(self._adapter) as model, self._counted(tokens, fitting) as read:
            prefix = read(self._prefix_before_answers(model, [encoded[i] for i in fitting]))
            for group in self._groups(fitting, {i: len(tokens[i]) for i in fitting}, self.scoring_tokens):
                keep = max(spans[i] for i in group) + 1
                logits = last_logits(model, prefix, [tokens[i][prefix.length :] for i in group], keep)
                for row, i in zip(logits, group, strict=True):
                    said = torch.tensor(tokens[i][-spans[i] :], device=row.device)
                    before = row[-spans[i] - 1 : -1].log_softmax(-1)
                    results[i] = before.gather(1, said[:, None])[:, 0].tolist()
        for i, numbers in enumerate(results):
            done(i, numbers)
        return results

    def count_tokens(self, texts: list[str]) -> list[int]:
        return self._base.chat.count(texts)

    # ---- inside

    def _play(self, adapter: str | Path | None, identity: str | None) -> None:
        self._adapter = None if adapter is None else self._base.load(Path(adapter))
        self.identity = identity or _identity(self._base.name, self._base.device, adapter)

    @contextmanager
    def _counted(self, encoded: list[Any], fitting: list[int]) -> Iterator[Callable[[Prefix], Prefix]]:
        """Adds to `used` what a call takes; is told of the prefix that was read once for all."""
        began = time.monotonic()
        self.used["requests"] += len(encoded)
        self.used["failures"] += len(encoded) - len(fitting)
        self.used["prompt_tokens"] += sum(len(encoded[i]) for i in fitting)

        def read(prefix: Prefix) -> Prefix:
            self.used["cached_tokens"] += prefix.length * max(0, len(fitting) - 1)
            return prefix

        try:
            yield read
        finally:
            self.used["seconds"] += time.monotonic() - began

    def _prefix_before_answers(self, model: Any, encoded: list[tuple[list[int], int]]) -> Prefix:
        """What all conversations begin with, kept short of every answer and of the token before it."""
        return shared_prefix(model, [ids[:before] for ids, before in encoded])

    def _groups(self, fitting: list[int], costs: dict[int, int], budget: int) -> Iterator[list[int]]:
        done = 0
        for group in batches([costs[i] for i in fitting], budget):
            yield [fitting[k] for k in group]
            done += len(group)
            if self.progress:
                self.progress(done, len(fitting))


class _Base:
    """One loaded model with its tokenizer and the adapters that were put on it."""

    def __init__(self, name: str, device: str, merge_below: int) -> None:
        self.name, self.device = name, device
        quiet()
        dtype = getattr(torch, DTYPES[device])
        self.model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, trust_remote_code=False)
        self.model.to(device).eval().requires_grad_(False)
        self.merging = device == "cpu" and self.model.num_parameters() < merge_below
        self.merged: dict[str, Any] = {}  # name: a copy of the model with that adapter in its weights
        self.peft: Any = None
        self.adapters: dict[str, str] = {}  # digest: name
        self.lock = threading.RLock()
        self.chat = Chat(name, self.model.config, self.model.generation_config)

    def load(self, folder: Path) -> str:
        """Put an adapter on the model, once for each content; returns the name to call it by."""
        from peft import PeftModel

        if not (folder / "adapter_config.json").exists():
            raise EngineError(f"{folder} is no adapter: there is no adapter_config.json in it")
        with self.lock:
            content = folder_digest(folder)  # not the path: an adapter trained again may lie in the same place
            if content in self.adapters:
                return self.adapters[content]
            name = f"adapter{len(self.adapters)}"
            try:
                if self.merging:
                    copied = PeftModel.from_pretrained(copy.deepcopy(self.model), str(folder))
                    self.merged[name] = copied.merge_and_unload().eval().requires_grad_(False)
                elif self.peft is None:
                    self.peft = PeftModel.from_pretrained(self.model, str(folder), adapter_name=name)
                else:
                    self.peft.load_adapter(str(folder), adapter_name=name)
            except (OSError, ValueError, RuntimeError) as error:
                raise EngineError(f"{folder} is no adapter of {self.name}: {error}") from error
            if self.peft is not None:
                self.peft.eval().requires_grad_(False)
            self.adapters[content] = name
            return name

    @contextmanager
    def speaking(self, adapter: str | None) -> Iterator[Any]:
        """The model with one adapter switched on, or none, for one caller at a time."""
        with self.lock, torch.inference_mode():
            if self.model is None:
                raise EngineError(f"the engine of {self.name} was closed")
            if self.peft is not None:
                if adapter is None:
                    self.peft.base_model.disable_adapter_layers()
                else:
                    self.peft.base_model.enable_adapter_layers()
                    self.peft.set_adapter(adapter, inference_mode=True)
            yield self.merged[adapter] if self.merging and adapter else self.model

    def constraint(self, choices: Sequence[str], schema: Any) -> Constraint:
        width = self.model.config.get_text_config().vocab_size
        return Constraint(self.chat.tokenizer, self.chat.ends, width, choices, schema)

    def close(self) -> None:
        with self.lock:
            self.model = self.peft = None
            self.merged.clear()
            free_memory(self.device)


def _draws(seed: int | Sequence[int], prompts: int, n: int, max_tokens: int) -> torch.Tensor:
    """A number in [0, 1) for each prompt, sample and token: all from one seed, or each prompt's from its own."""
    if isinstance(seed, int):
        return torch.rand((prompts, n, max_tokens), generator=torch.Generator().manual_seed(seed))
    own = [torch.rand((1, n, max_tokens), generator=torch.Generator().manual_seed(s)) for s in seed]
    return torch.cat([torch.empty(0, n, max_tokens), *own])


def _completion(chat: Chat, answer: Answer, stop: Sequence[str], with_logprobs: bool) -> Completion:
    tokens, whole = answer.tokens, chat.said(answer.tokens)
    truncated = tokens[-1] not in chat.ends
    text = chat.said(tokens, stop)
    if len(text) < len(whole):
        truncated = False
        while any(s in chat.said(tokens[:-1]) for s in stop):  # it would not have said more than the stop
            tokens = tokens[:-1]
    told = tuple(answer.logprobs[: len(tokens)]) if with_logprobs else ()
    return Completion(text, told, None, len(tokens), truncated)


def _identity(model: str | Path, device: str, adapter: str | Path | None = None) -> str:
    if Path(model).is_dir():
        return fingerprint("local", model, DTYPES[device], adapter)
    return ":".join(["local", str(model), DTYPES[device], *([str(adapter)] if adapter else [])])
