"""From messages to tokens and back, by a model's own tokenizer and chat template; alike for every engine.

What a row says never becomes a control token: text such as `<|im_end|>` inside a message is read letter by letter, as
any other text. What cannot be read at all is a `Failed` in its place.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from curation.step import Failed
from storage.schema import SPOKEN, Messages
from storage.wording import Wording
from synthesis.fingerprint import EngineError


class Chat:
    """A tokenizer with its chat template. `ends` are the tokens that end an answer, `context` the most tokens."""

    def __init__(self, name: str, config: Any, generation: Any) -> None:
        quiet()
        self.name = name
        self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        if self.tokenizer.chat_template is None:
            raise EngineError(f"{name} has no chat template: use a tuned model, or add a chat_template.jinja")
        config = config.get_text_config()
        self.context: int = getattr(config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        self.ends = _ends(self.tokenizer, generation)
        self.wording = Wording(self.tokenizer)

    def encode(self, prompts: list[Messages]) -> list[list[int] | Failed]:
        """Tokens of each prompt, up to where the answer begins."""
        texts = [self.render(p, ask=True) for p in prompts]
        ids = iter(self.tokens([t for t in texts if isinstance(t, str)]))
        return [t if isinstance(t, Failed) else next(ids) for t in texts]

    def encode_answered(self, conversation: Messages) -> tuple[list[int], int] | Failed:
        """Tokens up to the end of the last message, and how many of them come before it."""
        ask, whole = self.render(conversation[:-1], ask=True), self.render(conversation, ask=False)
        if isinstance(ask, Failed) or isinstance(whole, Failed):
            return ask if isinstance(ask, Failed) else whole
        if not whole.startswith(ask):
            return Failed("the chat template writes the prompt differently once it is answered")
        # tokenised as one text, as training does it: alone, the answer might begin with another token
        ids, spans = self.wording.read(whole)
        before = next((k for k, (start, _) in enumerate(spans) if start >= len(ask)), len(ids))
        end = next((k for k in range(before, len(ids)) if ids[k] in self.ends), len(ids) - 1)
        return (ids[: end + 1], before) if end >= before else Failed("the last message has no token")

    def split(self, encoded: list[Any], longest: int) -> tuple[list[int], list[Any]]:
        """Which ones can be asked, and a failure in the place of each that cannot."""
        out: list[Any] = [None] * len(encoded)
        for i, ids in enumerate(encoded):
            if isinstance(ids, Failed):
                out[i] = ids
            elif len(ids) > longest:
                out[i] = Failed(f"{len(ids)} tokens do not fit the model's context of {self.context}")
        return [i for i, failure in enumerate(out) if failure is None], out

    def render(self, messages: Messages, ask: bool) -> str | Failed:
        if not messages:
            return nothing_asked()
        try:
            text = self.wording.write(self.wording.spoken(messages), ask)
            return no_text(text) or text
        except (TemplateError, ValueError, TypeError) as error:  # such as tool calls that are none
            return Failed(f"the chat template refuses these messages: {error}")

    def tokens(self, texts: list[str]) -> list[list[int]]:
        return self.wording.tokens(texts)

    def count(self, texts: list[str]) -> list[int]:
        """Tokens of plain texts, control tokens' names among them read as text; halves of surrogates as one each."""
        whole = [t.encode("utf-8", "replace").decode() for t in texts]
        return [len(ids) for ids in self.tokens([self.wording.harmless(t) for t in whole])]

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def said(self, ids: list[int], stop: Sequence[str] = ()) -> str:
        """The text of an answer, without the token that ends it, up to the first of `stop`."""
        return until(self.text([t for t in ids if t not in self.ends]), stop)

    def forms(self, answer: str) -> list[int]:
        """The tokens that say a one-token answer: "A" and " A"."""
        singles = sorted({ids[0] for ids in self.tokens([answer, " " + answer]) if len(ids) == 1})
        if not singles:
            raise EngineError(f"{answer!r} is not one token of {self.name}; choose needs answers of one token each")
        return singles


def load_chat(model: str | Path) -> Chat:
    """By the model's files, without its weights."""
    try:
        generation = GenerationConfig.from_pretrained(str(model))
    except OSError:  # a model without one
        generation = None
    return Chat(str(model), AutoConfig.from_pretrained(str(model), trust_remote_code=False), generation)


def no_text(*said: str) -> Failed | None:
    """Why this cannot be written as UTF-8, if it cannot: a row may hold half of a surrogate pair."""
    try:
        "".join(said).encode()
    except UnicodeEncodeError as error:
        return Failed(f"half a surrogate pair (\\u{ord(error.object[error.start]):04x}) is no text; mend the row")
    return None


def nothing_asked() -> Failed:
    return Failed("there is no message to answer")


def tell_failures(results: list[Any], done: Callable[[int, Any], None]) -> None:
    """What failed before anything was asked is there first."""
    for i, failure in enumerate(results):
        if failure is not None:
            done(i, failure)


def until(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of `stop`."""
    return text[: min((text.index(s) for s in stop if s in text), default=len(text))]


def seeds_of(seed: int | Sequence[int], prompts: list[Messages]) -> list[int]:
    """A seed for each prompt: equal prompts of one call are answered independently, whoever stands beside them."""
    if not isinstance(seed, int):
        return list(seed)
    copies: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        said = json.dumps([[m["role"], m["content"], *filter(None, map(m.get, SPOKEN))] for m in prompt])
        copies[said] += 1
        drawn = hashlib.sha256(f"{seed} {copies[said]} {said}".encode()).digest()
        seeds.append(int.from_bytes(drawn[:4], "big") // 2)
    return seeds


def quiet() -> None:
    """No progress bars nor advice of the libraries between ours."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _ends(tokenizer: Any, generation: Any) -> tuple[int, ...]:
    named = getattr(generation, "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    return tuple(sorted({t for t in [*listed, tokenizer.eos_token_id] if t is not None}))
