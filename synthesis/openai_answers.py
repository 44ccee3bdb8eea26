"""What a server's JSON says, read into completions and probabilities; what cannot be read is a value that says so."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from curation.step import Completion, Failed
from synthesis.chat import Chat, until

_UNREAD = (KeyError, TypeError, ValueError, IndexError, AttributeError)
Clean = Callable[[object], str]  # one short line, without the key


def completions(
    answer: Any, chat: Chat | None, stop: Sequence[str], choices: Sequence[str], clean: Clean
) -> list[Completion]:
    """The answers of one prompt, by their number; one error where there are none."""
    if isinstance(answer, Failed):
        return [Completion("", error=answer.error)]
    try:
        found = sorted(answer["choices"], key=lambda c: c["index"])
        if not found:
            return [Completion("", error="the server gave no answer, and no error")]
        if chat:
            return [_of_tokens(c, chat, stop) for c in found]
        told = tokens_of(answer)
        even = told[1] // len(found) if told else 0  # only their sum is told
        return [_of_message(c, even, stop, choices, clean) for c in found]
    except _UNREAD:
        return [Completion("", error=f"the server's answer cannot be read: {clean(json.dumps(answer))}")]


def tokens_of(answer: Any) -> tuple[int, int, int] | None:
    """Tokens read, written, and read from a prefix that was there; None where the server does not tell."""
    told = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(told, dict) or not told:
        return None
    details = told.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    counted = (told.get("prompt_tokens"), told.get("completion_tokens"), cached)
    read, written, cached = (n if isinstance(n, int) else 0 for n in counted)
    return read, written, cached


def next_odds(answer: Any, clean: Clean) -> dict[str, float] | Failed | None:
    """Probabilities of the next token, as far as the server tells them; None where it tells none at all."""
    if isinstance(answer, Failed):
        return None if "logprob" in answer.error else answer
    try:
        told = answer["choices"][0].get("logprobs") or {}
        if told.get("content"):
            return {top["token"]: math.exp(top["logprob"]) for top in told["content"][0]["top_logprobs"]}
        if told.get("top_logprobs"):
            return {token: math.exp(logprob) for token, logprob in told["top_logprobs"][0].items()}
        return None
    except _UNREAD:
        return Failed(f"the server's answer cannot be read: {clean(json.dumps(answer))}")


def prompt_logprobs(answer: Any, tokens: list[int], before: int) -> list[float] | Failed:
    """Of the tokens from the place `before` on."""
    if isinstance(answer, Failed):
        return answer
    try:
        told = answer["choices"][0]["prompt_logprobs"]
        return [told[k][str(tokens[k])]["logprob"] for k in range(before, len(tokens))]
    except _UNREAD:
        return Failed("the server tells no log-probabilities of a prompt; take the vllm or local engine for this role")


def wrapped(choices: Sequence[str]) -> dict[str, Any]:
    """A schema for one of a few texts: a server's JSON has to be an object."""
    said = {"answer": {"type": "string", "enum": list(choices)}}
    return {"type": "object", "properties": said, "required": ["answer"], "additionalProperties": False}


def _of_tokens(choice: dict[str, Any], chat: Chat, stop: Sequence[str]) -> Completion:
    tokens, scored = choice["token_ids"], choice.get("logprobs")
    told = tuple(scored["token_logprobs"]) if scored else ()
    return Completion(chat.said(tokens, stop), told, None, len(tokens), choice["finish_reason"] == "length")


def _of_message(
    choice: dict[str, Any], tokens: int, stop: Sequence[str], choices: Sequence[str], clean: Clean
) -> Completion:
    text, cut = choice["message"]["content"], choice["finish_reason"] == "length"
    if not isinstance(text, str):
        return Completion("", error=f"the server gave no text (it ended by {clean(choice['finish_reason'])})")
    if not choices:
        return Completion(until(text, stop), (), None, tokens, cut)
    if cut:
        return Completion("", (), None, tokens, True)
    chosen = json.loads(text)["answer"]
    if chosen not in choices:
        return Completion("", error=f"the server's answer is none of the choices: {clean(json.dumps(chosen))}")
    return Completion(chosen, (), None, tokens)
