"""A row as a record of each format: formats.py the other way round, and what a format cannot hold of it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from storage.schema import SPOKEN, Messages, beside_content
from storage.store import StoreError
from storage.turns import Record

_FROM = {"user": "human", "assistant": "gpt", "system": "system", "tool": "tool"}


@dataclass(slots=True)
class Shape:
    """How rows are written, and what was left out on the way: a reason, and in how many rows."""

    format: str
    table: bool = False
    """For a table, which has the same columns in all rows."""
    lists: bool = False
    """Prompts and answers as lists of messages, also where a text would do: tables hold one type in a column."""
    lost: Counter[str] = field(default_factory=Counter)

    def record(self, id: str, messages: Messages, form: Record, rejected: Messages | None, wanted: bool) -> Record:
        """`form` is the origin's; `rejected` the worse answer of a pair; `wanted` what KTO calls the label."""
        if self.format not in ("messages", "preference", "kto", "prompt-completion"):
            besides = {name for m in messages for name in SPOKEN[1:] if m.get(name)}
            self.lost.update(f"{name} is left out, which {self.format} cannot hold" for name in besides)
        if self.format == "preference":
            return _preference(self, messages, rejected or [], form)
        if self.format == "kto":
            return _prompt_completion(self, messages) | {"label": wanted}
        if self.format == "prompt-completion":
            return _prompt_completion(self, messages)
        return _RECORDS[self.format](id, messages, form)


def openai(m: dict[str, str | None]) -> Record:
    """A message as OpenAI's: calls as objects, and only the fields that it has."""
    said: Record = {"role": m["role"], "content": m["content"]}
    try:
        return said | beside_content(m)
    except ValueError:  # a call that is no JSON stays the text that it is
        return said | {name: m[name] for name in SPOKEN if m.get(name)}


def system_and_turns(messages: Messages) -> tuple[str | None, Messages]:
    first = messages[0]
    return (first["content"], messages[1:]) if first["role"] == "system" else (None, messages)


def _sharegpt_turns(m: dict[str, str | None]) -> list[Record]:
    said = [{"from": _FROM[m["role"]], "value": m["content"]}] if m["content"] or not m["tool_calls"] else []
    return said + ([{"from": "function_call", "value": m["tool_calls"]}] if m["tool_calls"] else [])


def _alpaca(id: str, messages: Messages, form: Record) -> Record:
    system, turns = system_and_turns(messages)
    if not turns or len(turns) % 2 or [m["role"] for m in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise StoreError(f"row {id} is no alternation of user and assistant, which alpaca cannot hold; use messages")
    if any(m["tool_calls"] for m in messages):
        raise StoreError(f"row {id} calls tools, which alpaca cannot hold; use messages")
    texts = [m["content"] for m in turns]
    asked, more = texts[-2], ""
    if (n := form.get("input", 0)) and n <= len(asked):
        asked, more = asked[:-n].removesuffix("\n"), asked[-n:]
    record: Record = {"instruction": asked, "input": more, "output": texts[-1]}
    if system is not None:
        record["system"] = system
    if texts[:-2]:
        record["history"] = [texts[n : n + 2] for n in range(0, len(texts) - 2, 2)]
    return record


def _sharegpt(id: str, messages: Messages, form: Record) -> Record:
    system, turns = system_and_turns(messages) if form.get("system") else (None, messages)
    record: Record = {"conversations": [turn for m in turns for turn in _sharegpt_turns(m)]}
    return record | ({} if system is None else {"system": system})


def _messages(id: str, messages: Messages, form: Record) -> Record:
    return {"messages": [openai(m) for m in messages]}


def _text(id: str, messages: Messages, form: Record) -> Record:
    if len(messages) > 1:
        raise StoreError(f"row {id} is a conversation, which text cannot hold; use messages")
    return {"text": messages[0]["content"]}


def _prompt_completion(shape: Shape, messages: Messages) -> Record:
    asked, answer = messages[:-1], messages[-1]
    if not shape.lists and plain(messages):
        return {"prompt": asked[0]["content"], "completion": answer["content"]}
    return {"prompt": [openai(m) for m in asked], "completion": [openai(answer)]}


def _preference(shape: Shape, messages: Messages, rejected: Messages, form: Record) -> Record:
    asked, answers = messages[:-1], {"chosen": messages[-1:], "rejected": rejected[-1:]}
    if form.get("prompt") == 0 and not shape.table:  # it came without a prompt of its own
        return {name: [openai(m) for m in [*asked, *said]] for name, said in answers.items()}
    if not shape.lists and plain(messages) and plain(rejected):
        return {"prompt": asked[0]["content"]} | {name: said[0]["content"] for name, said in answers.items()}
    return {"prompt": [openai(m) for m in asked]} | {n: [openai(m) for m in said] for n, said in answers.items()}


def plain(messages: Messages) -> bool:
    """Whether a row is one question of a user and one answer, and each a text alone."""
    return [m["role"] for m in messages] == ["user", "assistant"] and not any(
        m.get(n) for m in messages for n in SPOKEN
    )


def tree(rows: list[tuple[Messages, Record]]) -> Record:
    """The OpenAssistant tree of the threads of one record, given each with its own columns."""
    root: Record = {}
    for messages, own in rows:
        place, key = root, "prompt"
        path = own.get("thread") or [{}] * len(messages)
        for m, about in zip(messages, path, strict=False):
            if m["role"] == "tool" or m["tool_calls"]:
                raise StoreError("oasst cannot hold calls of tools; use messages")
            node = {"text": m["content"], "role": "assistant" if m["role"] == "assistant" else "prompter", **about}
            if m["role"] == "system":
                node["role"] = "system"
            if key == "prompt":
                place = root.setdefault("prompt", node | {"replies": []})
            else:
                same = (r for r in place["replies"] if {**r, "replies": 0} == node | {"replies": 0})
                found = next(same, None)
                if found is None:
                    found = node | {"replies": []}
                    place["replies"].append(found)
                place = found
            key = "replies"
    about = {name: value for name, value in rows[0][1].items() if name != "thread"}
    return about | root


_RECORDS: dict[str, Callable[[str, Messages, Record], Record]] = {
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "messages": _messages,
    "text": _text,
}
