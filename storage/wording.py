"""A conversation as a model reads it, written by its chat template: alike when it is asked and when it is trained.

What a row says never becomes a control token: text such as `<|im_end|>` inside a message, or inside a call of a tool,
is read letter by letter, as any other text.
"""

import datetime
import re
from typing import Any

from storage.schema import Messages, beside_content

# What a template that tells the model of today's date is told, so that a row is the same tokens on every day.
DAY = datetime.datetime(2024, 7, 26)

# Private characters that stand for a control token's text while the chat template is filled in, and the first of them
# before one of these that a row holds itself.
_PLACE = 0x10E000

Span = tuple[int, int]  # of characters: where it begins, and where it has ended


class Wording:
    """A tokenizer of transformers with its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        control = sorted({str(t) for t in tokenizer.added_tokens_decoder.values() if t.special and str(t)})
        self._inert = [self._letters(text) for text in control]
        self._places = {text: chr(_PLACE + 1 + i) for i, text in enumerate(control)}
        own = f"[{chr(_PLACE)}-{chr(_PLACE + len(control))}]"
        self._control = re.compile("|".join([own, *map(re.escape, sorted(control, key=len, reverse=True))]))
        self._placed = re.compile(f"({chr(_PLACE)}?{own})", re.DOTALL)

    def spoken(self, messages: Messages) -> list[dict[str, Any]]:
        """Messages as a chat template takes them, harmless; raises ValueError for tool calls that are no JSON."""
        return [
            self.harmless({"role": m["role"], "content": m["content"] or "", **beside_content(m)}) for m in messages
        ]

    def write(self, spoken: list[dict[str, Any]], ask: bool = False) -> str:
        """The text, for `read` and `tokens`, with `ask` up to where the answer begins; may raise jinja2's errors."""
        how = {"tokenize": False, "add_generation_prompt": ask}
        return self.tokenizer.apply_chat_template(spoken, strftime_now=DAY.strftime, **how)

    def harmless(self, said: Any) -> Any:
        """The same with every control token's name in it, keys among them, in the form that is read as text."""
        if isinstance(said, str):
            return self._control.sub(lambda m: self._places.get(m[0]) or chr(_PLACE) + m[0], said)
        if isinstance(said, dict):
            return {self.harmless(key): self.harmless(value) for key, value in said.items()}
        return [self.harmless(one) for one in said] if isinstance(said, list) else said

    def tokens(self, texts: list[str]) -> list[list[int]]:
        plain = [t for t in texts if not self._placed.search(t)]
        ids = iter(self.tokenizer(plain, add_special_tokens=False)["input_ids"] if plain else [])
        return [self.read(t)[0] if self._placed.search(t) else next(ids) for t in texts]

    def read(self, text: str) -> tuple[list[int], list[Span]]:
        """Tokens, and where each stands in the text."""
        ids: list[int] = []
        spans: list[Span] = []
        at = 0
        for piece in self._placed.split(text):
            if self._placed.fullmatch(piece):
                letters = self._letters(piece[1]) if piece[1:] else self._inert[ord(piece) - _PLACE - 1]
                ids += letters
                spans += [(at, at + len(piece))] * len(letters)
            elif piece:
                encoded = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
                ids += encoded["input_ids"]
                spans += [(at + start, at + end) for start, end in encoded["offset_mapping"]]
            at += len(piece)
        return ids, spans

    def _letters(self, control: str) -> list[int]:
        return self.tokenizer(control, add_special_tokens=False, split_special_tokens=True)["input_ids"]
