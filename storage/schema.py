"""What a row is, and the tables that stand beside rows.

One schema for every dataset; a score is an extra typed column named `<method>_<quantity>`, never a `metadata` dict:

    {"id": "5f0c…", "messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
     "source": "raw", "method": null, "parent_id": null, "round": 0, "drop_reason": null}
"""

import hashlib
import json
from typing import Any

import polars as pl
import pyarrow as pa

# Beside role and content: calls of tools as the JSON they came as, and what OpenAI's messages may have besides.
SPOKEN = ("tool_calls", "reasoning_content", "tool_call_id", "name")
MESSAGE = pa.struct([(name, pa.string()) for name in ("role", "content", *SPOKEN)])

ROW = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # see row_id
        pa.field("messages", pa.list_(MESSAGE), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # name of the imported data set it descends from
        pa.field("method", pa.string()),  # step that wrote the row; null for imported rows
        pa.field("parent_id", pa.string()),  # row this one corrects or grows from
        pa.field("round", pa.int32(), nullable=False),  # turn of the loop that first made it; 0 for imported rows
        pa.field("drop_reason", pa.string()),  # null means live, else "<step>: <why>"
    ]
)

# A choice says what was taken this time and why; what was not taken can be taken the next time.
CHOICE = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("taken", pa.bool_(), nullable=False),
        pa.field("why", pa.string(), nullable=False),
        pa.field("weight", pa.float64()),  # probability mass its group had in the draw
        pa.field("round", pa.int32(), nullable=False),
    ]
)

# Two rows with one prompt, of which the first has the better answer; both are rows of one dataset.
PAIR = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # of the row that is preferred
        pa.field("rejected", pa.string(), nullable=False),
        pa.field("why", pa.string(), nullable=False),  # the step that says so
    ]
)

# Where an imported row came from. `columns` holds the user's other columns as JSON.
ORIGIN = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("columns", pa.string()),
        pa.field("note", pa.string()),  # what was repaired on the way in, such as the encoding
        pa.field("form", pa.string()),  # JSON: what an export must know to write the record as it was
    ]
)

# What could not become a row.
REJECT = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("raw", pa.string(), nullable=False),
    ]
)

Messages = list[dict[str, str | None]]


def message(role: str, content: str, tool_calls: str | None = None, **said: str | None) -> dict[str, str | None]:
    """A message with every field that one may have; `said` are those of SPOKEN after the first."""
    return {"role": role, "content": content, **dict.fromkeys(SPOKEN), "tool_calls": tool_calls, **said}


def row_id(messages: Messages, source: str, parent_id: str | None = None, copy: int = 0) -> str:
    """Hash of what the row says and where it comes from, as 20 hex digits.

    `copy` counts equal rows of one source from 0, so that duplicates stay two rows until a step says otherwise.
    """
    said = [[m["role"], m["content"], m.get("tool_calls"), *_besides(m)] for m in messages]
    text = json.dumps([said, source, parent_id, copy], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def _besides(m: dict[str, str | None]) -> list[list[str]]:
    """The fields that most messages lack; left out where there are none, so that an id is what it always was."""
    said = [[name, m[name]] for name in SPOKEN[1:] if m.get(name)]
    return [said] if said else []


def beside_content(m: dict[str, str | None]) -> dict[str, Any]:
    """What a message has besides role and content, as a chat template or a server takes it; ValueError: no JSON."""
    said: dict[str, Any] = {name: m[name] for name in SPOKEN if m.get(name)}
    if "tool_calls" in said:
        calls = json.loads(said["tool_calls"])  # ShareGPT's is one call alone, without OpenAI's wrapping
        said["tool_calls"] = [{"type": "function", "function": calls}] if isinstance(calls, dict) else calls
    return said


def instruction(messages: Messages) -> str:
    """Everything said before the last message, which is what the response answers."""
    return "\n".join(m["content"] or "" for m in messages[:-1])


def prompt(messages: Messages) -> Messages:
    """The messages before the response, as an engine takes them: with the calls of tools and all else that was said."""
    return [
        {"role": m["role"], "content": m["content"] or ""} | {name: m[name] for name in SPOKEN if m.get(name)}
        for m in messages[:-1]
    ]


def with_examples(messages: Messages, examples: list[Messages]) -> Messages:
    """The conversation with the last exchange of others before it, under its system prompt if it has one."""
    heads = sum(m["role"] == "system" for m in messages[:1])
    return [*messages[:heads], *(m for said in examples for m in said[-2:]), *messages[heads:]]


def response(messages: Messages) -> str:
    return messages[-1]["content"] or ""


def conform(rows: pl.DataFrame, schema: pa.Schema = ROW) -> pa.Table:
    """The schema's columns first, in its exact types; any columns of a step's own after them."""
    table = rows.to_arrow()
    extra = [table.schema.field(name) for name in table.column_names if name not in schema.names]
    wanted = pa.schema([*schema, *[f.with_type(_plain(f.type)) for f in extra]])
    return table.select(wanted.names).cast(wanted)


def plain(table: pa.Table) -> pa.Table:
    """The same table with the string types that every reader knows."""
    return table.cast(pa.schema([f.with_type(_plain(f.type)) for f in table.schema]))


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(_plain(f.type)) for f in kind])
    return kind
