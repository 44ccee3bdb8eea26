"""A language model behind any OpenAI-compatible server.

Where the model's tokenizer is known (`tokenizer`: a folder or a hub name) and the server takes tokens, as vLLM's does,
prompts are written and read here as for the other engines: the same text, the context checked, control tokens inside a
message harmless, log-probabilities of given answers. Without it the server writes the prompt from the messages, and can
only generate and choose, by the likeliest 20 tokens that it tells.
"""

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from curation.step import Completion, Failed
from storage.schema import Messages, beside_content
from synthesis.chat import Chat, load_chat, no_text, nothing_asked, seeds_of, tell_failures
from synthesis.fingerprint import EngineError, folder_digest
from synthesis.http import Purse, Questions, Server, key_in
from synthesis.openai_answers import completions, next_odds, prompt_logprobs, tokens_of, wrapped

_WRAPPING = 16  # tokens, at most, of the JSON around a choice
_MUTE = 8  # answers without log-probabilities, and none with them, after which no other is asked for


class OpenAIEngine:
    """Satisfies `curation.step.Engine`. An adapter is a folder that the server sees too: it is loaded at run time."""

    def __init__(
        self,
        model: str,
        adapter: str | Path | None = None,
        *,
        url: str,
        identity: str | None = None,
        key: str = "OPENAI_API_KEY",
        tokenizer: str | Path | None = None,
        at_once: int = 64,
        timeout: float = 300.0,
        attempts: int = 6,
        price_in: float = 0.0,
        price_out: float = 0.0,
        budget: float | None = None,
        reasoning_tokens: int | None = None,
        ledger: Callable[[float], float] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """`key` names the environment variable that holds the key; `ledger` keeps what was paid (see `Purse`).

        A model that thinks before it answers has `reasoning_tokens` for that, beyond those of its answer.
        """
        key_in(key)
        purse = Purse(price_in, price_out, budget, ledger)
        self.server = Server(url.rstrip("/"), partial(key_in, key), at_once, timeout, attempts, purse)
        self.model, self.progress, self._reasoning = model, progress, reasoning_tokens
        self._chat: Chat | None = load_chat(tokenizer) if tokenizer else None
        self._loaded: set[str] = set()
        self.used: Counter[str] = Counter()
        self._play(adapter, identity)

    def with_adapter(self, folder: str | Path | None, identity: str | None = None) -> "OpenAIEngine":
        view = copy.copy(self)
        view.used = Counter()
        view._play(folder, identity)
        return view

    def close(self) -> None:
        """Unload the adapters that this engine had the server load: each, even if another cannot be."""
        failed: list[EngineError] = []
        while self._loaded:
            try:
                self.server.post("/unload_lora_adapter", {"lora_name": self._loaded.pop()})
            except EngineError as why:
                failed.append(why)
        if failed:
            raise EngineError(f"an adapter may still be loaded on the server: {failed[0]}")

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
        asked, out = self._questions(prompts)
        most = max_tokens + (_WRAPPING if choices and not self._chat else 0)
        how = self._how(most, n, temperature, top_p, stop) | self._limits(choices, schema)
        how |= {"logprobs": 0} if with_logprobs and self._chat else {}
        results: list[Any] = [[Completion("", error=f.error)] * n if f else None for f in out]
        seeds = seeds_of(seed, prompts)
        for i, (_, body) in asked.items():
            body |= how | ({"seed": seeds[i]} if temperature else {})
            if self._chat:
                body["max_tokens"] = min(max_tokens, self._chat.context - len(body["prompt"]))
        samples: dict[int, dict[int, Completion]] = {i: {} for i in asked}

        def told(key: tuple[int, int], answer: Any) -> Questions:
            i, first = key
            said = completions(answer, self._chat, stop, choices, self.server.clean)
            if not temperature or (not first and len(said) == 1 and said[0].error is not None):
                said = said[:1] * n  # greedy answers are all the same, and asked for once; so is what failed whole
            samples[i].update(enumerate(said[: 1 if first else n], first))
            if not first and len(said) < n:  # a server that does not know `n`: each of the others by its own seed
                path, body = asked[i]
                return {(i, s): (path, body | {"n": 1, "seed": seeds[i] + s}) for s in range(len(said), n)}
            if len(samples[i]) == n:
                results[i] = [samples[i][s] for s in range(n)]
                self.used["failures"] += any(c.error is not None for c in results[i])
                done(i, results[i])
            return {}

        tell_failures(results, done)
        self._ask({(i, 0): question for i, question in asked.items()}, told, len(prompts))
        return results

    def choose(
        self,
        prompts: list[Messages],
        answers: list[str],
        done: Callable[[int, list[float] | Failed], None] = lambda i, odds: None,
    ) -> list[list[float] | Failed]:
        """The forms "A" and " A" are summed. Without the tokenizer, what is not among the likeliest 20 counts 0.

        Raises EngineError where the server tells no log-probabilities.
        """
        asked, results = self._questions(prompts)
        chat = self._chat
        if chat:
            forms = [[f"token_id:{t}" for t in chat.forms(a)] for a in answers]
            wanted = sorted({t for a in answers for t in chat.forms(a)})
            how = {"logprobs": 1, "logprob_token_ids": wanted, "return_tokens_as_token_ids": True}
        else:
            forms = [[a, " " + a] for a in answers]
            how = {"logprobs": True, "top_logprobs": 20}
        for _, body in asked.values():
            body |= {"model": self.name} | self._most(1) | ({} if self._thinks else {"temperature": 0.0}) | how
        heard: Counter[str] = Counter()
        tell_failures(results, done)

        def told(i: int, answer: Any) -> None:
            odds = next_odds(answer, self.server.clean)
            heard["mute" if odds is None else "failed" if isinstance(odds, Failed) else "odds"] += 1
            if odds is None:
                odds = Failed("the server tells no log-probabilities of this answer")
                if not heard["odds"] and heard["mute"] >= min(_MUTE, len(asked)):
                    raise self._mute()
            weighed = odds if isinstance(odds, Failed) else [sum(odds.get(f, 0.0) for f in form) for form in forms]
            results[i] = weighed
            self.used["failures"] += isinstance(weighed, Failed)
            done(i, weighed)

        try:
            self._ask(asked, told, len(prompts))
        except EngineError as why:
            raise (self._mute() if "request logprobs" in str(why) else why) from None  # OpenAI forbids it by a 403
        return results

    def logprobs(
        self,
        conversations: list[Messages],
        done: Callable[[int, list[float] | Failed], None] = lambda i, numbers: None,
    ) -> list[list[float] | Failed]:
        """Of the tokens that the model would have to say: the message's content and its end token."""
        if self._chat is None:
            raise EngineError(
                f"{self.server.url} tells no log-probabilities of a given answer unless `tokenizer` names the model's "
                "tokenizer and the server takes tokens, as vLLM's does; or give this role the vllm or local engine"
            )
        answered = [self._chat.encode_answered(c) for c in conversations]
        encoded = [a if isinstance(a, Failed) else a[0] for a in answered]
        fitting, results = self._chat.split(encoded, self._chat.context - 1)
        how = {"model": self.name, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        asked = {i: ("/completions", {"prompt": encoded[i], **how}) for i in fitting}

        def told(i: int, answer: Any) -> None:
            results[i] = prompt_logprobs(answer, encoded[i], answered[i][1])
            self.used["failures"] += isinstance(results[i], Failed)
            done(i, results[i])

        tell_failures(results, done)
        self._ask(asked, told, len(conversations))
        return results

    def count_tokens(self, texts: list[str]) -> list[int]:
        if self._chat is None:
            raise EngineError(f"{self.server.url} counts no tokens; name the model's tokenizer with `tokenizer`")
        return self._chat.count(texts)

    # ---- inside

    def _play(self, adapter: str | Path | None, identity: str | None) -> None:
        self.name, content = self.model, None
        if adapter is not None:
            content = self.name = folder_digest(Path(adapter))
            if content not in self._loaded and self._load(content, Path(adapter)):
                self._loaded.add(content)
        self.identity = identity or ":".join(["openai", self.server.url, self.model, *([content] if content else [])])

    def _load(self, content: str, folder: Path) -> bool:
        """Whether the server had to load it; one that another run left is the same: its name is its content."""
        try:
            self.server.post("/load_lora_adapter", {"lora_name": content, "lora_path": str(folder.resolve())})
        except EngineError as why:
            if "already been loaded" not in str(why):
                raise EngineError(f"{why} (a server that loads adapters: docs/engines.md)") from None
            return False
        return True

    def _questions(self, prompts: list[Messages]) -> tuple[dict[int, tuple[str, dict[str, Any]]], list[Any]]:
        """What can be asked, and a failure in the place of each that cannot."""
        if self._chat:
            encoded = self._chat.encode(prompts)
            fitting, out = self._chat.split(encoded, self._chat.context - 1)
            return {i: ("/completions", {"prompt": encoded[i]}) for i in fitting}, out
        said = [_said(p) for p in prompts]
        out = [s if isinstance(s, Failed) else None for s in said]
        return {i: ("/chat/completions", {"messages": s}) for i, s in enumerate(said) if out[i] is None}, out

    @property
    def _thinks(self) -> bool:
        return self._reasoning is not None

    def _how(self, max_tokens: int, n: int, temperature: float, top_p: float, stop: Sequence[str]) -> dict[str, Any]:
        """What is asked of all prompts alike. A model that thinks refuses all that says how to sample."""
        how: dict[str, Any] = {"model": self.name} | self._most(max_tokens) | ({"n": n} if temperature else {})
        if not self._thinks:
            how |= {"temperature": temperature} | ({"top_p": top_p} if temperature else {})
            how |= {"stop": list(stop)} if stop else {}
        if self._chat:
            how |= {"stop_token_ids": list(self._chat.ends), "return_token_ids": True}
        return how

    def _most(self, tokens: int) -> dict[str, int]:
        return {"max_completion_tokens": tokens + self._reasoning} if self._thinks else {"max_tokens": tokens}

    def _limits(self, choices: Sequence[str], schema: dict[str, Any] | None) -> dict[str, Any]:
        if self._chat and choices:
            return {"structured_outputs": {"choice": list(choices)}}
        wanted = wrapped(choices) if choices else schema
        if wanted is None:
            return {}
        said = {"name": "answer", "schema": wanted} | ({} if self._chat else {"strict": True})
        return {"response_format": {"type": "json_schema", "json_schema": said}}

    def _mute(self) -> EngineError:
        return EngineError(
            f"{self.server.url} tells no log-probabilities of what {self.model} says, so letters cannot be weighed: "
            "set `reflection: letter` (clear-score) or `judgement: letter` (clear-correct), or give this role a model "
            "of the vllm or local engine"
        )

    def _ask(self, asked: Questions, told: Callable[[Any, Any], Questions | None], requests: int) -> None:
        began, answered, purse = time.monotonic(), 0, self.server.purse
        self.used["requests"] += requests
        self.used["failures"] += requests - len(asked)
        total = len(asked)

        def paid(key: Any, answer: Any) -> Questions:
            nonlocal answered, total
            counted = tokens_of(answer)
            if counted is not None:
                read, said, cached = counted
                self.used["prompt_tokens"] += read
                self.used["generated_tokens"] += said
                self.used["cached_tokens"] += cached
                self.used["cost"] += purse.pay(read, said)
            more = told(key, answer) or {}
            if purse.budget is not None and counted is None and not isinstance(answer, Failed):
                raise EngineError(
                    f"{self.server.url} does not say how many tokens an answer took, so the budget of {purse.budget:g} "
                    "cannot be kept: leave `budget` out, or take a server that tells `usage`"
                )
            answered, total = answered + 1, total + len(more)
            if self.progress:
                self.progress(answered, total)
            return more

        try:
            if asked:
                self.server.ask(asked, paid)
        finally:
            self.used["seconds"] += time.monotonic() - began


def _said(prompt: Messages) -> list[dict[str, Any]] | Failed:
    if failure := no_text(json.dumps(prompt, ensure_ascii=False)) if prompt else nothing_asked():
        return failure
    try:
        return [{"role": m["role"], "content": m["content"] or "", **beside_content(m)} for m in prompt]
    except ValueError as error:
        return Failed(f"the calls of tools in this row are no JSON ({error}); mend the row")
