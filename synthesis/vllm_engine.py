"""A language model served by vLLM, on a GPU or on its CPU build, in a process of its own that ends with the lease.

What kills vLLM's engine, or makes it answer wrongly, is avoided by construction:

- log-probabilities of a prompt with adapters enabled: only the modules that adapters train are wrapped, never the head;
- seeded sampling with a prompt that is read in chunks, on a CPU: prompts are read whole there;
- a small machine's memory: the cache has a size of its own on a CPU;
- an adapter trained again under an old name: an adapter is called by its content;
- questions to the bare model beside questions to adapters, on a CPU (they are answered with an adapter, silently): the
  place that the bare model reads stays empty.

An engine that dies all the same is started once more, and what it had not answered is asked again.
"""

import copy
import json
import math
import re
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from curation.step import Completion, Failed
from storage.schema import Messages
from synthesis.chat import Chat, load_chat, seeds_of, tell_failures
from synthesis.fingerprint import EngineError, fingerprint, folder_digest
from synthesis.vllm_process import VllmProcess

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM has kernels for
_OF_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
# Places for adapters. On a CPU a request without an adapter is answered with whatever lies in the last one, so that
# must stay empty: there is always a place more than there are adapters.
_PLACES = (4, 8, 16, 32, 64)


class VllmEngine:
    """Satisfies `curation.step.Engine`. Views made by `with_adapter` share one process, and its batches.

    The process starts at the first question. It is started anew, empty, when an adapter first comes, one of a higher
    rank, or more than there are places for. Each prompt is sampled by a seed of its own, so an answer does not depend
    on who else is asked.
    """

    def __init__(
        self,
        model: str | Path,
        adapter: str | Path | None = None,
        *,
        identity: str | None = None,
        dtype: str = "auto",
        context: int | None = None,
        tensor_parallel: int = 1,
        gpu_memory: float = 0.9,
        quantization: str | None = None,
        cpu_cache_gib: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._base = _Base(
            str(model),
            {
                "dtype": dtype,
                "max_model_len": context,
                "tensor_parallel_size": tensor_parallel,
                "gpu_memory_utilization": gpu_memory,
                "quantization": quantization,
                "cpu_cache_gib": cpu_cache_gib,
            },
        )
        self.progress = progress
        self.used: Counter[str] = Counter()
        self.identity = ""
        self._adapter: tuple | None = None
        self._play(adapter, identity)

    def with_adapter(self, folder: str | Path | None, identity: str | None = None) -> "VllmEngine":
        """The same process with another adapter, or with none."""
        view = copy.copy(self)
        view.used = Counter()
        view._play(folder, identity)
        return view

    def close(self) -> None:
        """End the process, so that its memory is really free; the next question starts another."""
        self._base.process.stop()

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
        encoded = chat.encode(prompts)
        seeds = seeds_of(seed, prompts) if temperature else [None] * len(prompts)
        how: dict[str, Any] = {"temperature": temperature, "stop": list(stop), "detokenize": bool(stop)}
        how |= {"stop_token_ids": list(chat.ends)} | ({"top_p": top_p, "n": n} if temperature else {})
        how |= {"logprobs": 0} if with_logprobs else {}  # they cost vLLM a softmax and a transfer for each token
        if choices or schema is not None:
            how["structured_outputs"] = {"choice": list(choices)} if choices else {"json": schema}
        fitting, out = chat.split(encoded, chat.context - 1)
        results: list[Any] = [[Completion("", error=f.error)] * n if f else None for f in out]
        asked = {
            i: how | {"seed": seeds[i], "max_tokens": min(max_tokens, chat.context - len(encoded[i]))} for i in fitting
        }

        def told(i: int, outcome: Any) -> None:
            if isinstance(outcome, Failed):
                results[i] = [Completion("", error=outcome.error)] * n
            else:
                results[i] = [_completion(chat, one, stop) for one in outcome[0]]
                self.used["generated_tokens"] += sum(c.tokens for c in results[i])
                results[i] *= 1 if temperature else n  # greedy answers are all the same, and asked for once
            done(i, results[i])

        tell_failures(results, done)
        self._ask(encoded, asked, told, len(prompts))
        return results

    def choose(
        self,
        prompts: list[Messages],
        answers: list[str],
        done: Callable[[int, list[float] | Failed], None] = lambda i, odds: None,
    ) -> list[list[float] | Failed]:
        """The forms "A" and " A" of an answer are summed where both are one token."""
        chat = self._base.chat
        forms = [chat.forms(a) for a in answers]
        encoded = chat.encode(prompts)
        fitting, results = chat.split(encoded, chat.context - 1)
        wanted = sorted({token for tokens in forms for token in tokens})
        how = {"max_tokens": 1, "temperature": 0.0, "logprob_token_ids": wanted, "detokenize": False}

        def told(i: int, outcome: Any) -> None:
            results[i] = outcome
            if not isinstance(outcome, Failed):
                _, tokens, logprobs = outcome[0][0][2]
                odds = dict(zip(tokens, map(math.exp, logprobs), strict=True))
                results[i] = [sum(odds[t] for t in form) for form in forms]
            done(i, results[i])

        tell_failures(results, done)
        self._ask(encoded, dict.fromkeys(fitting, how), told, len(prompts))
        return results

    def logprobs(
        self,
        conversations: list[Messages],
        done: Callable[[int, list[float] | Failed], None] = lambda i, numbers: None,
    ) -> list[list[float] | Failed]:
        """Of the tokens that the model would have to say: the message's content and its end token."""
        chat = self._base.chat
        answered = [chat.encode_answered(c) for c in conversations]
        encoded = [a if isinstance(a, Failed) else a[0] for a in answered]
        fitting, results = chat.split(encoded, chat.context - 1)
        how = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}

        def told(i: int, outcome: Any) -> None:
            results[i] = outcome
            if not isinstance(outcome, Failed):
                starts, _, logprobs = outcome[1]
                results[i] = [logprobs[starts[k]] for k in range(answered[i][1], len(encoded[i]))]
            done(i, results[i])

        tell_failures(results, done)
        self._ask(encoded, dict.fromkeys(fitting, how), told, len(conversations))
        return results

    def count_tokens(self, texts: list[str]) -> list[int]:
        return self._base.chat.count(texts)

    # ---- inside

    def _play(self, adapter: str | Path | None, identity: str | None) -> None:
        self._adapter = None if adapter is None else self._base.learn(Path(adapter))
        if identity is None:
            identity = fingerprint("vllm", self._base.name, str(self._base.settings["dtype"]), adapter)
        self.identity = identity

    def _ask(self, encoded: list[Any], asked: dict[int, dict], told: Callable[[int, Any], None], requests: int) -> None:
        """Send what fits; `told` hears of each as it is answered."""
        if asked:
            self._base.process.start()  # which takes its time, and is no answering
        began = time.monotonic()
        self.used["requests"] += requests
        self.used["failures"] += requests - len(asked)
        outcomes = self._base.process.answers({i: (encoded[i], how) for i, how in asked.items()}, self._adapter)
        try:
            for answered, (i, outcome) in enumerate(outcomes, 1):
                if isinstance(outcome, Failed):
                    self.used["failures"] += 1
                else:
                    self.used["prompt_tokens"] += len(encoded[i])
                    self.used["cached_tokens"] += outcome[2]
                told(i, outcome)
                if self.progress:
                    self.progress(answered, len(asked))
        finally:
            self.used["seconds"] += time.monotonic() - began


class _Base:
    """What the views of a model share: tokenizer, process, and the adapters that it knows."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name = name
        self.chat = load_chat(name)
        self.chat.context = min(settings["max_model_len"] or self.chat.context, self.chat.context)
        self.settings = settings
        self.process = VllmProcess(settings | {"model": name, "max_model_len": self.chat.context})
        self.adapters: dict[str, tuple[str, int, str]] = {}  # by content: name, number and folder
        # copies: vLLM reads an adapter when it is first asked of, and again after every start
        self.copies = tempfile.TemporaryDirectory(prefix="thresher-adapters-")
        self.lock = threading.Lock()

    def learn(self, folder: Path) -> tuple[str, int, str]:
        """Make an adapter known by its content; ends the process where it cannot play it as it was started."""
        with self.lock:
            (rank, modules), content = _adapter_needs(folder), folder_digest(folder)
            if content not in self.adapters and len(self.adapters) + 1 >= _PLACES[-1]:
                raise EngineError(f"{len(self.adapters)} adapters in one lease are as many as vLLM is started for")
            if content not in self.adapters:
                self.adapters[content] = (content, len(self.adapters) + 1, self._copied(folder, content))
            now = self.process.settings
            wanted = {
                "enable_lora": True,
                "max_loras": next(n for n in _PLACES if n > len(self.adapters)),
                "max_lora_rank": max(rank, now.get("max_lora_rank", 0)),
                "lora_target_modules": sorted({*modules, *now.get("lora_target_modules", [])}),
            }
            if not wanted.items() <= now.items():
                self.process.stop()
                now |= wanted
            return self.adapters[content]

    def _copied(self, folder: Path, content: str) -> str:
        copied = Path(self.copies.name) / content
        copied.mkdir(exist_ok=True)
        for name in _OF_ADAPTER:
            shutil.copyfile(folder / name, copied / name)
        if folder_digest(folder) != content:
            raise EngineError(f"{folder} was written to while it was read; wait until it is whole")
        return str(copied)


def _adapter_needs(folder: Path) -> tuple[int, list[str]]:
    """The rank that vLLM must be ready for, and the names of the modules that the adapter changes."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
    except FileNotFoundError:
        raise EngineError(f"{folder} is no adapter: there is no adapter_config.json in it") from None
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    modules = {m[1] for name in _tensors(folder) if (m := re.search(r"(\w+)\.lora_(?:A|B|embedding_[AB])", name))}
    strange = {*(config.get("modules_to_save") or []), *(modules & {"lm_head", "embed_tokens"})}
    strange |= {what for what in ("use_dora", "trainable_token_indices") if config.get(what)}
    strange |= {"bias"} if config.get("bias", "none") != "none" else set()
    if strange:
        raise EngineError(
            f"{folder} trains {sorted(strange)}, which vLLM cannot play beside others; take the local engine"
        )
    if rank > RANKS[-1] or not modules:
        raise EngineError(f"{folder} is no LoRA adapter of a rank up to {RANKS[-1]}; take the local engine")
    return next(r for r in RANKS if r >= rank), sorted(modules)


def _tensors(folder: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "adapter_model.safetensors", "np") as file:
            return list(file.keys())
    except (OSError, SafetensorError) as why:
        raise EngineError(f"{folder} holds no adapter_model.safetensors that can be read: {why}") from None


def _completion(chat: Chat, one: tuple, stop: Sequence[str]) -> Completion:
    tokens, finish, scored = one
    said = tuple(scored[2][k] for k in scored[0]) if scored else ()
    return Completion(chat.said(tokens, stop), said, None, len(tokens), finish == "length")
