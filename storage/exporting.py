"""Live rows as a file that other tools read: JSON lines in the formats of storage/formats.py, or Parquet."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from storage.schema import MESSAGE, Messages
from storage.store import Store, StoreError

_FROM = {"user": "human", "assistant": "gpt", "system": "system", "tool": "tool"}
_TURN = pa.struct([("role", pa.string()), ("content", pa.string())])


def export_rows(store: Store, dataset: str, path: Path, format: str = "messages") -> int:
    """Write the live rows of a dataset, given by name or id, and return how many. The file appears when it is whole."""
    if format not in (*_RECORDS, "parquet"):
        raise StoreError(f"there is no export format {format!r}; there are {', '.join(_RECORDS)}, parquet")
    dataset = store.resolve(dataset)
    if (kind := store.manifest(dataset).kind) != "rows":
        raise StoreError(f"{dataset} is a {kind}, not rows; export the dataset that it was made from")
    if not path.parent.is_dir():
        raise StoreError(f"there is no folder {path.parent} to write {path.name} to; make it first")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if format == "parquet":
            written = _write_parquet(store, dataset, temporary)
        else:
            written = _write_lines(store, dataset, temporary, _RECORDS[format])
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return written


def _live(store: Store, dataset: str) -> Iterator[pl.DataFrame]:
    for rows in store.shards(dataset, ["id", "messages", "drop_reason"]):
        yield rows.filter(pl.col("drop_reason").is_null())


def _write_lines(store: Store, dataset: str, path: Path, record: Callable[[str, Messages], dict[str, Any]]) -> int:
    written = 0
    with path.open("w", encoding="utf-8") as file:
        for rows in _live(store, dataset):
            for id, messages in rows.select("id", "messages").iter_rows():
                file.write(json.dumps(record(id, messages), ensure_ascii=False) + "\n")
            written += rows.height
        _to_disk(file)
    return written


def _write_parquet(store: Store, dataset: str, path: Path) -> int:
    """One column `messages`. Turns have the key tool_calls only if one has calls: chat templates look for it."""
    calls = pl.col("messages").list.eval(pl.element().struct.field("tool_calls").is_not_null().any()).list.any()
    has_calls = any(rows.select(calls.any()).item() for rows in _live(store, dataset))
    schema = pa.schema([("messages", pa.list_(MESSAGE if has_calls else _TURN))])
    turn = pl.element().struct.field(*[f.name for f in schema.field("messages").type.value_type])
    written = 0
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for rows in _live(store, dataset):
                kept = rows.select(pl.col("messages").list.eval(pl.struct(turn)))
                writer.write_table(kept.to_arrow().cast(schema))
                written += rows.height
        _to_disk(file)
    return written


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _alpaca(id: str, messages: Messages) -> dict[str, Any]:
    system, turns = _system_and_turns(messages)
    if len(turns) % 2 or [m["role"] for m in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise StoreError(f"row {id} is no alternation of user and assistant, which alpaca cannot hold; use messages")
    _refuse_tool_calls(id, messages, "alpaca")
    texts = [m["content"] for m in turns]
    record: dict[str, Any] = {"instruction": texts[-2], "input": "", "output": texts[-1]}
    if system is not None:
        record["system"] = system
    if texts[:-2]:
        record["history"] = [texts[n : n + 2] for n in range(0, len(texts) - 2, 2)]
    return record


def _sharegpt(id: str, messages: Messages) -> dict[str, Any]:
    return {"conversations": [turn for m in messages for turn in _sharegpt_turns(m)]}


def _sharegpt_turns(m: dict[str, str | None]) -> list[dict[str, str | None]]:
    said = [{"from": _FROM[m["role"]], "value": m["content"]}] if m["content"] or not m["tool_calls"] else []
    return said + ([{"from": "function_call", "value": m["tool_calls"]}] if m["tool_calls"] else [])


def _messages(id: str, messages: Messages) -> dict[str, Any]:
    return {"messages": [_openai(m) for m in messages]}


def _prompt_completion(id: str, messages: Messages) -> dict[str, Any]:
    asked, answer = messages[:-1], messages[-1]
    if [m["role"] for m in asked] == ["user"] and not answer["tool_calls"]:
        return {"prompt": asked[0]["content"], "completion": answer["content"]}
    return {"prompt": [_openai(m) for m in asked], "completion": [_openai(answer)]}


def _openai(m: dict[str, str | None]) -> dict[str, Any]:
    said: dict[str, Any] = {"role": m["role"], "content": m["content"]}
    if m["tool_calls"]:
        try:
            said["tool_calls"] = json.loads(m["tool_calls"])
        except ValueError:  # it came as a text that is no JSON
            said["tool_calls"] = m["tool_calls"]
    return said


def _system_and_turns(messages: Messages) -> tuple[str | None, Messages]:
    first = messages[0]
    return (first["content"], messages[1:]) if first["role"] == "system" else (None, messages)


def _refuse_tool_calls(id: str, messages: Messages, format: str) -> None:
    if any(m["tool_calls"] for m in messages):
        raise StoreError(f"row {id} calls tools, which {format} cannot hold; use messages")


_RECORDS = {"alpaca": _alpaca, "sharegpt": _sharegpt, "messages": _messages, "prompt-completion": _prompt_completion}
