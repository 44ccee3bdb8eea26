"""Rows as tokens, and which of them are learnt: every word of the assistant with the token that ends it, no other.

A template says so itself with {% generation %} marks. Where it has none, an answer is what the template writes after
the generation prompt: the text up to message i with the prompt is a prefix of the text up to message i + 1. Where TRL
knows a marked form of the template that gives the same text, both must agree on the row, white space and the text of
generation prompts aside; else the run refuses. Each row says how it was told. A control token's name inside a message
is text, as it is where the model is asked (`storage.wording`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from jinja2 import TemplateError
from transformers import AutoConfig, AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template
from trl.chat_template_utils import (
    get_training_chat_template,
    has_generation_markers,
    is_chat_template_stop_token_trained,
)

from storage.schema import Messages
from storage.wording import DAY, Span, Wording
from training.settings import TooLong, TrainError

IGNORED = -100  # label of a token that is not learnt

# How the learnt tokens of a row were told.
MARKS = "the template's own marks"
AGREED = "prefix matching, which agrees with TRL's marked form of the template"
PREFIX = "prefix matching alone"
KNOWN = "TRL's marks on the template's own text"
CHANGED = "TRL's marked form of the template, whose text is not the template's own"

Spoken = list[dict[str, Any]]  # messages as a chat template takes them


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as the model reads it; `learnt` stands beside each token."""

    id: str
    tokens: list[int]
    learnt: list[bool]
    told: str = MARKS  # how
    cut: int = 0  # messages left out at the beginning

    @property
    def labels(self) -> list[int]:
        return [t if said else IGNORED for t, said in zip(self.tokens, self.learnt, strict=True)]


@dataclass(frozen=True, slots=True)
class Rows:
    encoded: list[Encoded]
    left_out: dict[str, str]  # row id: why


class Template:
    """A tokenizer with its chat template, and how that marks what is learnt."""

    def __init__(self, tokenizer: Any, name: str | Path = "the model") -> None:
        if tokenizer.chat_template is None:
            raise TrainError(f"{name} has no chat template; use a tuned model, or add a chat_template.jinja")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer, self.name, self.wording = tokenizer, name, Wording(tokenizer)
        self.marked = has_generation_markers(tokenizer.chat_template)
        if self.marked and not is_chat_template_stop_token_trained(tokenizer):
            raise TrainError(f"the chat template of {name} leaves the end token outside {{% generation %}}: move it in")
        self.known = None if self.marked else _marked_form(tokenizer)
        if not self.marked and _learns_no_end(self.wording):
            raise TrainError(
                f"the chat template of {name} writes no end token after an answer, so the model would not learn to "
                "stop; use the tuned model's template, or add the end token to it"
            )

    def encode(self, row_id: str, messages: list[dict[str, Any]]) -> Encoded:
        """Raises TrainError naming a row that the template refuses, or whose answers it does not tell."""
        try:
            said = self.wording.spoken(messages)
        except ValueError as error:
            raise TrainError(f"row {row_id} has tool calls that are no JSON ({error}); drop the row") from error
        try:
            if self.marked:
                return Encoded(row_id, *_by_marks(self.wording, said, self.tokenizer.chat_template))
            found = by_prefix(self.wording, said)
            marked = _by_marks(self.wording, said, self.known) if self.known else None
            whole = found.tokens if found else self.wording.read(self.wording.write(said))[0]
            same = bool(marked) and marked[0] == whole
        except (TemplateError, ValueError, TypeError) as error:  # the last two: tool calls that are none
            raise TrainError(f"row {row_id} cannot be put into the chat template ({error}); drop the row") from error
        if found is None and marked is None:
            raise TrainError(
                f"the chat template of {self.name} does not mark what the assistant says in row {row_id}, and writes "
                "earlier turns otherwise once they are answered; put {% generation %} … {% endgeneration %} around it"
            )
        if found is None:
            return Encoded(row_id, *marked, KNOWN if same else CHANGED)
        if same:
            self._agree(row_id, found, marked[1])
        return Encoded(row_id, found.tokens, found.learnt, AGREED if same else PREFIX)

    def _agree(self, row_id: str, ours: "ByPrefix", theirs: list[bool]) -> None:
        """A generation prompt is given when the model is asked, whether or not TRL has it learnt too."""
        both = zip(ours.tokens, ours.learnt, ours.asked, theirs, strict=True)
        apart = [t for t, a, asked, b in both if a != b and not asked]
        if self.tokenizer.decode(apart).strip():
            raise TrainError(
                f"row {row_id}: what is learnt by prefix and by {{% generation %}} marks differs in "
                f"{self.tokenizer.decode(apart)!r}; mark the template of {self.name} by hand"
            )


def load_tokenizer(base: str | Path) -> Any:
    """The tokenizer of a model folder; refuses one whose tokens the model does not have."""
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    config = AutoConfig.from_pretrained(base, trust_remote_code=False).get_text_config()
    highest = max(tokenizer.get_vocab().values())
    if highest >= config.vocab_size:
        raise TrainError(
            f"the tokenizer of {base} has token {highest}, and the model only {config.vocab_size} of them: they do not "
            "belong together; take the tokenizer that came with the model, or resize the model's embeddings"
        )
    return tokenizer


def longest(base: str | Path, max_length: int) -> int:
    """Most tokens of a row: `max_length`, or the model's context if that is less."""
    config = AutoConfig.from_pretrained(base, trust_remote_code=False).get_text_config()
    return min(max_length, getattr(config, "max_position_embeddings", None) or max_length)


def encode_rows(template: Template, rows: pl.DataFrame, max_length: int, too_long: TooLong) -> Rows:
    """Every row of `rows` (id, messages) encoded or left out with a reason; one without a learnable token is an error.

    The order of the rows is kept. Raises TrainError where nothing is left.
    """
    if rows.is_empty():
        raise TrainError("there is no row to train on; choose some first")
    encoded, left_out = [], {}
    for row_id, messages in rows.select("id", "messages").iter_rows():
        found = template.encode(row_id, messages)
        if not any(found.learnt):
            raise TrainError(
                f"row {row_id} has no learnable token (no answer in it): "
                f"{template.tokenizer.decode(found.tokens)[:120]!r}; drop the row"
            )
        if (n := len(found.tokens)) > max_length and too_long == "refuse":
            raise refused(f"row {row_id}", n, max_length)
        if n > max_length:
            found = _shortened(template, row_id, messages, max_length) if too_long == "truncate" else None
        if found is None:
            left_out[row_id] = f"{n} tokens, over {max_length}"
        else:
            encoded.append(found)
    if not encoded:
        raise TrainError(
            f"all {len(left_out)} rows are longer than the {max_length} tokens of --max-length and the model's "
            f"context, such as row {next(iter(left_out))} ({next(iter(left_out.values()))}); raise --max-length"
        )
    return Rows(encoded, left_out)


class ByPrefix(NamedTuple):
    tokens: list[int]
    learnt: list[bool]
    asked: list[bool]  # of a generation prompt


def by_prefix(wording: Wording, said: Spoken) -> ByPrefix | None:
    """Told by prefixes alone; None where the template is not written from left to right."""
    whole, answers, prompts = wording.write(said), [], []
    for i, message in enumerate(said):
        if message["role"] == "assistant":
            before, upto = wording.write(said[:i], ask=True), wording.write(said[: i + 1])
            if not (upto.startswith(before) and whole.startswith(upto.rstrip())):
                return None
            answers.append((len(before), len(upto.rstrip())))  # what stands after the end token is not for the model
            prompts.append((alike(before, wording.write(said[:i])), len(before)))
    tokens, spans = wording.read(whole)
    return ByPrefix(tokens, _inside(answers, spans), _inside(prompts, spans))


def alike(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How long both begin alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _inside(parts: list[Span], tokens: list[Span]) -> list[bool]:
    return [any(a <= start < b and end > start for a, b in parts) for start, end in tokens]


def _by_marks(wording: Wording, said: Spoken, template: str) -> tuple[list[int], list[bool]]:
    """As the tokenizer's own `return_assistant_tokens_mask`, which would read control tokens out of messages."""
    told = wording.tokenizer.special_tokens_map | {"strftime_now": DAY.strftime}
    how = {"chat_template": template, "return_assistant_tokens_mask": True, **told}
    [text], [marked] = render_jinja_template([said], **how)
    tokens, spans = wording.read(text)
    return tokens, [any(start < b and end > a for a, b in marked) for start, end in spans]


def _learns_no_end(wording: Wording) -> bool:
    """Whether what is learnt by prefix ends in a word; between turns, as some templates leave the last answer open."""
    talk = [{"role": role, "content": "word"} for role in ("user", "assistant", "user")]
    try:
        found = by_prefix(wording, talk)
    except (TemplateError, ValueError):
        return False
    last = [t for t, said in zip(found.tokens, found.learnt, strict=True) if said][-1:] if found else []
    return bool(last) and last[0] not in wording.tokenizer.get_added_vocab().values()


def _marked_form(tokenizer: Any) -> str | None:
    try:
        return get_training_chat_template(tokenizer)
    except ValueError:  # of no family that TRL knows
        return None


def _shortened(template: Template, row_id: str, messages: Messages, max_length: int) -> Encoded | None:
    for cut, rest in later_turns(messages):
        found = template.encode(row_id, rest)
        if len(found.tokens) <= max_length and any(found.learnt):
            return replace(found, cut=cut)
    return None


def later_turns(messages: Messages) -> Iterator[tuple[int, Messages]]:
    """The conversation without ever more of its earliest messages, and how many these are.

    A leading system message stays, and a user begins.
    """
    kept = 1 if messages[0]["role"] == "system" else 0
    for start in range(kept + 1, len(messages)):
        if messages[start]["role"] == "user":
            yield start - kept, messages[:kept] + messages[start:]


def refused(what: str, tokens: int, most: int) -> TrainError:
    return TrainError(
        f"{what} has {tokens} tokens, over the {most} of --max-length and the model's context; raise --max-length, or "
        "say what to do with --too-long drop or truncate"
    )
