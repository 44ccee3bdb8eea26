"""Turns of a conversation as messages: role and content, or from and value; calls of tools and reasoning with them."""

import json
import re
from dataclasses import dataclass
from typing import Any

from storage.schema import SPOKEN, Messages, message

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_ROLES = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
_CALLS = ("function_call", "tool_call")  # roles whose text is the call
_HELD = {"role", "from", "content", "value", "tool_calls", *SPOKEN}
_KINDS = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number", str: "text"}

Record = dict[str, Any]


class Unusable(Exception):
    """Why a record cannot become a row, in words for the person who wrote it."""


@dataclass(slots=True)
class Said:
    """A row in the making."""

    messages: Messages
    note: str | None = None
    """What the messages could not hold."""
    drop_reason: str | None = None
    preferred_to: int | None = None
    """Place, among the rows of the same record, of the row that this one is better than."""
    form: str | None = None
    """What an export must know to write the record as it was, as JSON; see shapes.py."""
    own: Record | None = None
    """Columns of the user that only this row of the record has."""


def storable(text: str) -> str:
    """The text without NUL characters, and with U+FFFD for halves of surrogate pairs, which UTF-8 cannot hold."""
    return _UNSTORABLE.sub(lambda found: "" if found[0] == "\x00" else "\ufffd", text)


def kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")


def written(value: Any) -> str:
    """A value as JSON that the store can hold."""
    try:
        return storable(json.dumps(value, ensure_ascii=False, default=str))
    except RecursionError:
        raise Unusable("not JSON: nested too deeply") from None


def turns(record: Record, field: str) -> tuple[Messages, str | None]:
    """The messages of a field, and a note on what they could not hold."""
    said = present(record, field)
    if isinstance(said, str) and said.lstrip()[:1] == "[":  # tables that hold no lists hold them as JSON
        try:
            said = json.loads(said)
        except (ValueError, RecursionError) as error:
            raise Unusable(f"'{field}' is text that is no JSON: {str(error)[:60]}") from None
    if not isinstance(said, list):
        raise Unusable(f"'{field}' is {kind(said)}, not a list")
    return in_turns(said)


def in_turns(given: list[Any]) -> tuple[Messages, str | None]:
    said, left_out = [], set()
    for n, turn in enumerate(given, 1):
        if not isinstance(turn, dict):
            raise Unusable(f"message {n} is {kind(turn)}, not an object")
        said.append(_turn(turn, n))
        if turn.get("role") == "developer":
            left_out.add("the role developer, taken as system")
        if len(turn) > 2:
            left_out |= {name for name, value in turn.items() if value is not None} - _HELD
    return said, f"left out of the messages: {storable(', '.join(sorted(left_out)))}" if left_out else None


def _turn(turn: Record, n: int) -> dict[str, str | None]:
    named = turn.get("role") if "role" in turn else turn.get("from")
    role = _ROLES.get(named.lower()) if isinstance(named, str) else None
    if role is None:
        raise Unusable(f"message {n} has the unknown role {written(named)[:60]}")
    content = _content(turn.get("content") if "content" in turn else turn.get("value"), n)
    if len(turn) == 2 and role != "assistant":
        return message(role, content)
    calls = turn.get("tool_calls")
    if named.lower() in _CALLS:
        content, calls = "", content
    elif calls is not None and not isinstance(calls, str):
        calls = written(calls) if calls else None
    besides = {}
    for name in SPOKEN[1:]:
        if (text := turn.get(name)) is not None:
            if not isinstance(text, str):
                raise Unusable(f"the {name} of message {n} is {kind(text)}, not text")
            besides[name] = storable(text) or None
    return message(role, content, storable(calls) if calls else None, **besides)


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


def answer(record: Record, field: str) -> str:
    if field in record and record[field] is None:
        raise Unusable(f"no answer: '{field}' is null")
    said = text(record, field)
    if not said.strip():
        raise Unusable(f"no answer: '{field}' is empty")
    return said


def text(record: Record, field: str, optional: bool = False) -> str:
    value = record.get(field) if optional else present(record, field)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise Unusable(f"'{field}' is {kind(value)}, not text")
    return storable(value)


def present(record: Record, field: str) -> Any:
    if field not in record:
        raise Unusable(f"no field '{field}'")
    return record[field]
