"""The shapes in which people keep conversations, and how each becomes messages.

preference         {"prompt": "2+2?", "chosen": "4", "rejected": "5"}, each a text or turns; see preferences.py
kto                {"prompt": "2+2?", "completion": "4", "label": true}
alpaca             {"instruction": "Add.", "input": "2+2", "output": "4"}, optionally "system" and "history"
sharegpt           {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}
messages           {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
prompt-completion  {"prompt": "2+2?", "completion": "4"}, each a text or a list of messages
oasst              {"prompt": {"text": "2+2?", "role": "prompter", "replies": [{"text": "4", …}]}}, a tree
text               {"text": "A passage."}, and the passages of text files; a row with an answer and no prompt
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from storage.oasst import threads
from storage.preferences import labelled, pair
from storage.schema import Messages, message
from storage.turns import Record, Said, Unusable, answer, kind, storable, text, turns, written


@dataclass(frozen=True, slots=True)
class Format:
    parse: Callable[[Record], list[Said | Unusable]]  # the rows of a record
    needs: tuple[str, ...]
    fields: tuple[str, ...]  # what it reads; the rest are the user's own columns
    also: tuple[tuple[str, ...], ...] = ()  # other fields that tell the format as well as `needs`
    fits: Callable[[Record], bool] = lambda record: True  # what the values must be like besides

    def tells(self, record: Record) -> bool:
        return any(all(f in record for f in needs) for needs in (self.needs, *self.also)) and self.fits(record)


def recognise(records: list[Record]) -> str | None:
    """The format whose fields most of these records have; None if no record has those of any."""
    votes = Counter(name for r in records for name, f in FORMATS.items() if f.tells(r))
    return max(FORMATS, key=lambda name: votes[name]) if votes else None


def rows_of(record: Any, format: str) -> list[Said | Unusable]:
    """The rows of a record, each something asked and an answer to it at the end; or why there is none."""
    if not isinstance(record, dict):
        raise Unusable(f"not an object but {kind(record)}")
    found = FORMATS[format].parse(record)
    if not found:
        raise Unusable("no messages")
    for said in found:
        if isinstance(said, Said):
            _check(said.messages, alone=format == "text")
    return found


def own_columns(record: Record, format: str, besides: Record | None = None) -> str | None:
    """The user's other columns as JSON, as they came."""
    fields = FORMATS[format].fields
    own = {name: value for name, value in record.items() if name not in fields} | (besides or {})
    return written(own) if own else None


def _check(said: Messages, alone: bool) -> None:
    if not said:
        raise Unusable("no messages")
    last = said[-1]
    if last["role"] != "assistant":
        raise Unusable(f"no answer: the last message is by the {last['role']}")
    if not last["content"].strip() and not last["tool_calls"]:
        raise Unusable("no answer: the last message is empty")
    if not alone and not any(m["content"].strip() for m in said[:-1]):
        raise Unusable("no prompt: nothing is said before the answer")


def _alpaca(record: Record) -> list[Said]:
    system, asked, more = (text(record, field, optional=True) for field in ("system", "instruction", "input"))
    if "instruction" not in record:
        raise Unusable("no field 'instruction'")
    said_last = answer(record, "output")
    if not asked.strip() and not more.strip():
        raise Unusable("no prompt: 'instruction' and 'input' are empty")
    said = [message("system", system)] if system.strip() else []
    for turn in _history(record):
        if not (isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(t, str) for t in turn)):
            raise Unusable("'history' is not a list of pairs of texts")
        said += [message("user", storable(turn[0])), message("assistant", storable(turn[1]))]
    question = f"{asked}\n{more}" if asked.strip() and more.strip() else asked if asked.strip() else more
    form = f'{{"input": {len(more)}}}' if more.strip() else None
    return [Said([*said, message("user", question), message("assistant", said_last)], form=form)]


def _history(record: Record) -> list[Any]:
    history = record.get("history") or []
    if isinstance(history, str) and history.lstrip()[:1] == "[":  # a table that holds no lists
        try:
            history = json.loads(history)
        except (ValueError, RecursionError):
            raise Unusable("'history' is text that is no JSON") from None
    if not isinstance(history, list):
        raise Unusable(f"'history' is {kind(history)}, not a list of pairs of texts")
    return history


def _sharegpt(record: Record) -> list[Said]:
    said, note = turns(record, "conversations")
    system = text(record, "system", optional=True)
    if not system.strip():
        return [Said(said, note)]
    return [Said([message("system", system), *said], note, form='{"system": 1}')]


def _messages(record: Record) -> list[Said]:
    return [Said(*turns(record, "messages"))]


def _prompt_completion(record: Record) -> list[Said]:
    said, notes = [], []
    for field, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(record.get(field), list):
            spoken, note = turns(record, field)
            said += spoken
            notes += [note] if note else []
        else:
            said.append(message(role, answer(record, field) if role == "assistant" else text(record, field)))
    return [Said(said, "; ".join(notes) or None)]


def _text(record: Record) -> list[Said]:
    return [Said([message("assistant", answer(record, "text"))])]


def _is_label(record: Record) -> bool:
    return next(record[f] for f in ("label", "kto_tag") if f in record) in (None, True, False, "true", "false")


def _is_tree(record: Record) -> bool:
    return record["prompt"] is None or (isinstance(record["prompt"], dict) and "replies" in record["prompt"])


# Where two have equal votes the first is taken, so what says more of a record stands first.
FORMATS = {
    "preference": Format(
        pair,
        ("chosen", "rejected"),
        (
            *("prompt", "instruction", "input", "conversations", "messages", "system"),
            *("chosen", "rejected", "rejected_response", "rejected_messages"),
        ),
        (("messages", "rejected_response"), ("messages", "rejected_messages")),
    ),
    "kto": Format(
        labelled,
        ("prompt", "completion", "label"),
        ("prompt", "completion", "instruction", "input", "output", "conversations", "messages", "label", "kto_tag"),
        (
            *(("messages", label) for label in ("label", "kto_tag")),
            *(("conversations", label) for label in ("label", "kto_tag")),
            ("instruction", "output", "kto_tag"),
        ),
        _is_label,
    ),
    "alpaca": Format(_alpaca, ("instruction", "output"), ("instruction", "input", "output", "system", "history")),
    "sharegpt": Format(_sharegpt, ("conversations",), ("conversations", "system")),
    "messages": Format(_messages, ("messages",), ("messages",)),
    "prompt-completion": Format(_prompt_completion, ("prompt", "completion"), ("prompt", "completion")),
    "oasst": Format(threads, ("prompt",), ("prompt",), fits=_is_tree),
    "text": Format(_text, ("text",), ("text",)),
}
