"""A language model behind any OpenAI-compatible server.

Where the model's tokenizer is known (`tokenizer`: a folder or a hub name) and the server takes tokens, as vLLM's does,
prompts are written and read here as for the other engines: the same text, the context checked, control tokens inside a
message harmless, log-probabilities of given answers. Without it the server writes the prompt from the messages, and can
only generate and choose, by the likeliest 20 tokens that it tells.
"""

import copy
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from curation.step import Completion, Failed
from storage.schema import Messages, beside_content
from synthesis.chat import Chat, load_chat, seeds_of
from synthesis.fingerprint import EngineError, folder_digest
from synthesis.http import Purse, Server


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
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """`key` names the environment variable that holds the key."""
        purse = Purse(price_in, price_out, budget)
        self.server = Server(url.rstrip("/"), lambda: os.environ.get(key), at_once, timeout, attempts, purse)
        self.model, self.progress = model, progress
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
        """Unload the adapters that this engine had the server load."""
        while self._loaded:
            self.server.post("/unload_lora_adapter", {"lora_name": self._loaded.pop()})

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
        done: Callable[[int, list[Completion]], None] = lambda i, answers: None,
    ) -> list[list[Completion]]:
        asked, out = self._questions(prompts)
        how = {"model": self.name, "temperature": temperature} | ({"stop": list(stop)} if stop else {})
        how |= {"top_p": top_p, "n": n} if temperature else {}
        if self._chat:
            how |= {"stop_token_ids": list(self._chat.ends), "return_token_ids": True, "logprobs": 0}
        how |= self._limits(choices, schema)
        results: list[Any] = [[Completion("", error=f.error)] * n if f else None for f in out]
        seeds = seeds_of(seed, prompts)
        for i, (_, body) in asked.items():
            room = self._chat.context - len(body["prompt"]) if self._chat else max_tokens
            body |= how | {"max_tokens": min(max_tokens, room)} | ({"seed": seeds[i]} if temperature else {})

        def told(i: int, answer: Any) -> None:
            results[i] = _completions(answer, self._chat, stop, bool(choices))
            self.used["failures"] += any(c.error is not None for c in results[i])
            results[i] *= n // len(results[i])  # greedy answers are all the same, and asked for once
            done(i, results[i])

        for i, failure in enumerate(out):
            if failure:
                done(i, results[i])
        self._ask(asked, told, len(prompts))
        return results

    def choose(self, prompts: list[Messages], answers: list[str]) -> list[list[float] | Failed]:
        """The forms "A" and " A" are summed. Without the tokenizer, what is not among the likeliest 20 counts 0."""
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
            body |= how | {"model": self.name, "max_tokens": 1, "temperature": 0.0}

        def told(i: int, answer: Any) -> None:
            odds = _next_odds(answer)
            results[i] = odds if isinstance(odds, Failed) else [sum(odds.get(f, 0.0) for f in form) for form in forms]
            self.used["failures"] += isinstance(odds, Failed)

        self._ask(asked, told, len(prompts))
        return results

    def logprobs(self, conversations: list[Messages]) -> list[list[float] | Failed]:
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
            results[i] = _prompt_logprobs(answer, encoded[i], answered[i][1])
            self.used["failures"] += isinstance(results[i], Failed)

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
        out: list[Any] = [_unspeakable(p) for p in prompts]
        said = {i: [_message(m) for m in p] for i, p in enumerate(prompts) if out[i] is None}
        return {i: ("/chat/completions", {"messages": messages}) for i, messages in said.items()}, out

    def _limits(self, choices: Sequence[str], schema: dict[str, Any] | None) -> dict[str, Any]:
        if self._chat and choices:
            return {"structured_outputs": {"choice": list(choices)}}
        wanted = {"type": "string", "enum": list(choices)} if choices else schema
        if wanted is None:
            return {}
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}}

    def _ask(self, asked: dict[int, Any], told: Callable[[int, Any], None], requests: int) -> None:
        began, answered = time.monotonic(), 0
        self.used["requests"] += requests
        self.used["failures"] += requests - len(asked)

        def paid(i: int, answer: Any) -> None:
            nonlocal answered
            usage = answer.get("usage") if isinstance(answer, dict) else None
            if usage:
                read, said = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
                self.used["prompt_tokens"] += read
                self.used["generated_tokens"] += said
                self.used["cached_tokens"] += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                self.used["cost"] += self.server.purse.pay(read, said)
            told(i, answer)
            answered += 1
            if self.progress:
                self.progress(answered, len(asked))

        try:
            if asked:
                self.server.ask(asked, paid)
        finally:
            self.used["seconds"] += time.monotonic() - began


def _completions(answer: Any, chat: Chat | None, stop: Sequence[str], chosen: bool) -> list[Completion]:
    """The answers of one prompt, by their number."""
    if isinstance(answer, Failed):
        return [Completion("", error=answer.error)]
    try:
        found = sorted(answer["choices"], key=lambda c: c["index"])
        if chat:
            return [_of_tokens(c, chat, stop) for c in found]
        even = (answer.get("usage") or {}).get("completion_tokens", 0) // len(found)  # only their sum is told
        return [_of_message(c, even, chosen) for c in found]
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return [Completion("", error=f"the server's answer cannot be read: {json.dumps(answer)[:200]}")]


def _of_tokens(choice: dict[str, Any], chat: Chat, stop: Sequence[str]) -> Completion:
    tokens, logprobs = choice["token_ids"], tuple(choice["logprobs"]["token_logprobs"])
    return Completion(chat.said(tokens, stop), logprobs, None, len(tokens), choice["finish_reason"] == "length")


def _of_message(choice: dict[str, Any], tokens: int, chosen: bool) -> Completion:
    text, cut = choice["message"]["content"], choice["finish_reason"] == "length"
    if text is None:
        return Completion("", error=f"the server gave no text (it ended by {choice.get('finish_reason')})")
    return Completion(json.loads(text) if chosen and not cut else text, (), None, tokens, cut)


def _next_odds(answer: Any) -> dict[str, float] | Failed:
    """Probabilities of the next token, as far as the server tells them."""
    if isinstance(answer, Failed):
        return answer
    try:
        told = answer["choices"][0]["logprobs"]
        if "content" in told:
            return {top["token"]: math.exp(top["logprob"]) for top in told["content"][0]["top_logprobs"]}
        return {token: math.exp(logprob) for token, logprob in told["top_logprobs"][0].items()}
    except (KeyError, TypeError, IndexError):
        return Failed("the server tells no log-probabilities; choose an engine that does for this role")


def _prompt_logprobs(answer: Any, tokens: list[int], before: int) -> list[float] | Failed:
    if isinstance(answer, Failed):
        return answer
    try:
        told = answer["choices"][0]["prompt_logprobs"]
        return [told[k][str(tokens[k])]["logprob"] for k in range(before, len(tokens))]
    except (KeyError, TypeError, IndexError):
        return Failed("the server tells no log-probabilities of a prompt; take the vllm or local engine for this role")


def _unspeakable(messages: Messages) -> Failed | None:
    if not messages:
        return Failed("there is no message to answer")
    try:
        json.dumps(messages, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return Failed(f"half a surrogate pair (\\u{ord(error.object[error.start]):04x}) is no text; mend the row")
    return None


def _message(said: dict[str, str | None]) -> dict[str, Any]:
    return {"role": said["role"], "content": said["content"] or "", **beside_content(said)}
