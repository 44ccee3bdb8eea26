"""The shapes in which people keep conversations, and how each becomes messages.

    alpaca             {"instruction": "Add.", "input": "2+2", "output": "4"}, optionally "system" and "history"
    sharegpt           {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}
    messages           {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
    prompt-completion  {"prompt": "2+2?", "completion": "4"}, each a text or a list of messages
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from storage.schema import Messages, message

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_ROLES = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
_KINDS = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number", str: "text"}

Record = dict[str, Any]


class Unusable(Exception):
    """Why a record cannot become a row, in words for the person who wrote it."""


@dataclass(frozen=True, slots=True)
class Format:
    parse: Callable[[Record], tuple[Messages, str | None]]  # messages, and a note on what they could not hold
    needs: tuple[str, ...]
    fields: tuple[str, ...]  # what it reads; the rest are the user's own columns


def recognise(records: list[Record]) -> str | None:
    """The format whose fields most of these records have; None if no record has those of any."""
    votes = Counter(name for r in records for name, f in FORMATS.items() if all(field in r for field in f.needs))
    return max(FORMATS, key=lambda name: votes[name]) if votes else None


def as_messages(record: Any, format: str) -> tuple[Messages, str | None]:
    """The messages of a record that can be a row: something asked, and an answer to it at the end."""
    if not isinstance(record, dict):
        raise Unusable(f"not an object but {kind(record)}")
    said, note = FORMATS[format].parse(record)
    if not said:
        raise Unusable("no messages")
    last = said[-1]
    if last["role"] != "assistant":
        raise Unusable(f"no answer: the last message is by the {last['role']}")
    if not last["content"].strip() and not last["tool_calls"]:
        raise Unusable("no answer: the last message is empty")
    if not any(m["content"].strip() for m in said[:-1]):
        raise Unusable("no prompt: nothing is said before the answer")
    return said, note


def own_columns(record: Record, format: str) -> str | None:
    """The user's other columns as JSON, as they came."""
    own = {name: value for name, value in record.items() if name not in FORMATS[format].fields}
    return storable(json.dumps(own, ensure_ascii=False, default=str)) if own else None


def storable(text: str) -> str:
    """The text without NUL characters, and with U+FFFD for halves of surrogate pairs, which UTF-8 cannot hold."""
    return _UNSTORABLE.sub(lambda found: "" if found[0] == "\x00" else "\ufffd", text)


def kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")


def _alpaca(record: Record) -> tuple[Messages, None]:
    system, asked, more = (_text(record, field, optional=True) for field in ("system", "instruction", "input"))
    if "instruction" not in record:
        raise Unusable("no field 'instruction'")
    answer = _answer(record, "output")
    if not asked.strip() and not more.strip():
        raise Unusable("no prompt: 'instruction' and 'input' are empty")
    said = [message("system", system)] if system.strip() else []
    if not isinstance(history := record.get("history") or [], list):
        raise Unusable(f"'history' is {kind(history)}, not a list of pairs of texts")
    for turn in history:
        if not (isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(t, str) for t in turn)):
            raise Unusable("'history' is not a list of pairs of texts")
        said += [message("user", storable(turn[0])), message("assistant", storable(turn[1]))]
    question = f"{asked}\n{more}" if asked.strip() and more.strip() else asked if asked.strip() else more
    return [*said, message("user", question), message("assistant", answer)], None


def _sharegpt(record: Record) -> tuple[Messages, str | None]:
    said, note = _turns(record, "conversations")
    system = _text(record, "system", optional=True)
    return [message("system", system), *said] if system.strip() else said, note


def _messages(record: Record) -> tuple[Messages, str | None]:
    return _turns(record, "messages")


def _prompt_completion(record: Record) -> tuple[Messages, str | None]:
    said, notes = [], []
    for field, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(record.get(field), list):
            turns, note = _turns(record, field)
            said += turns
            notes += [note] if note else []
        else:
            text = _answer(record, field) if role == "assistant" else _text(record, field)
            said.append(message(role, text))
    return said, "; ".join(notes) or None


def _turns(record: Record, field: str) -> tuple[Messages, str | None]:
    """A list of turns, whichever of the two vocabularies it uses: role and content, or from and value."""
    turns = _present(record, field)
    if not isinstance(turns, list):
        raise Unusable(f"'{field}' is {kind(turns)}, not a list")
    said, left_out = [], set()
    for n, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise Unusable(f"message {n} is {kind(turn)}, not an object")
        named = turn.get("role") if "role" in turn else turn.get("from")
        if not isinstance(named, str) or named.lower() not in _ROLES:
            raise Unusable(f"message {n} has the unknown role {storable(json.dumps(named, default=str))[:60]}")
        content = _content(turn.get("content") if "content" in turn else turn.get("value"), n)
        calls = turn.get("tool_calls")
        if named.lower() == "function_call":
            content, calls = "", content
        elif calls is not None and not isinstance(calls, str):
            calls = storable(json.dumps(calls, ensure_ascii=False, default=str)) if calls else None
        said.append(message(_ROLES[named.lower()], content, storable(calls) if calls else None))
        left_out |= {k for k, v in turn.items() if v is not None} - {"role", "from", "content", "value", "tool_calls"}
    return said, f"left out of the messages: {storable(', '.join(sorted(left_out)))}" if left_out else None


def _content(content: Any, n: int) -> str:
    """Text, or OpenAI's list of parts as long as all of them are text."""
    if content is None:
        return ""
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                raise Unusable(f"message {n} holds something that is not text")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise Unusable(f"the content of message {n} is {kind(content)}, not text")
    return storable(content)


def _answer(record: Record, field: str) -> str:
    if field in record and record[field] is None:
        raise Unusable(f"no answer: '{field}' is null")
    answer = _text(record, field)
    if not answer.strip():
        raise Unusable(f"no answer: '{field}' is empty")
    return answer


def _text(record: Record, field: str, optional: bool = False) -> str:
    value = record.get(field) if optional else _present(record, field)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise Unusable(f"'{field}' is {kind(value)}, not text")
    return storable(value)


def _present(record: Record, field: str) -> Any:
    if field not in record:
        raise Unusable(f"no field '{field}'")
    return record[field]


FORMATS = {
    "alpaca": Format(_alpaca, ("instruction", "output"), ("instruction", "input", "output", "system", "history")),
    "sharegpt": Format(_sharegpt, ("conversations",), ("conversations", "system")),
    "messages": Format(_messages, ("messages",), ("messages",)),
    "prompt-completion": Format(_prompt_completion, ("prompt", "completion"), ("prompt", "completion")),
}
