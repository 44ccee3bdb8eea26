"""The exact files that TRL, Axolotl, LLaMA-Factory and ms-swift read, with the settings that read them.

Each folder has the rows to learn from; where the dataset holds pairs also these, for DPO.

    trl            train.jsonl (`messages`), preference.jsonl (`prompt`, `chosen`, `rejected`), sft.yaml, dpo.yaml
    axolotl        train.jsonl (`messages`), preference.jsonl (`messages`, `chosen`, `rejected`), sft.yaml, dpo.yaml
    llama-factory  train.json and preference.json in ShareGPT's form, dataset_info.json, sft.yaml, dpo.yaml
    ms-swift       train.jsonl (`messages`), preference.jsonl (with `rejected_messages`), sft.sh, dpo.sh
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from storage.exporting import Written, origins, pairs, selected
from storage.record_files import write_records
from storage.schema import Messages
from storage.shapes import openai, system_and_turns
from storage.store import Store, StoreError
from storage.turns import Record

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"  # in the settings, to be replaced
_FROM = {"user": "human", "assistant": "gpt", "tool": "observation"}

Learn = Callable[[str, Messages], Record]
Prefer = Callable[[str, Messages, Messages], Record]


def write_trainer(store: Store, dataset: str, folder: Path, final: Path, trainer: str) -> Written:
    """Fill a folder that will be moved to `final`. Definitions of tools go along where the imported rows had them."""
    learn, prefer, settings, suffix = _TRAINERS[trainer]
    tools = _tools(store, dataset)
    lost: Counter[str] = Counter()

    def learnt() -> Iterator[list[Record]]:
        lost.clear()
        for id, messages, *_ in selected(store, dataset, "messages"):
            if trainer == "llama-factory":
                besides = {n for m in messages for n in ("reasoning_content", "name") if m.get(n)}
                lost.update(f"{name} is left out, which {trainer} cannot hold" for name in besides)
            yield [learn(id, messages) | ({"tools": _told(tools[id], trainer)} if id in tools else {})]

    def preferred() -> Iterator[list[Record]]:
        for id, messages, rejected, _ in pairs(store, dataset):
            yield [prefer(id, messages, rejected or [])]

    kind = suffix.removeprefix(".")
    rows = write_records(learnt, folder / f"train{suffix}", kind, f"train{suffix}")
    has_pairs = _any_pair(store, dataset)
    if has_pairs:
        write_records(preferred, folder / f"preference{suffix}", kind, f"preference{suffix}")
    files = settings(final.resolve(), has_pairs)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return Written(rows, dict(lost), _COMMANDS[trainer].format(folder=final))


def _any_pair(store: Store, dataset: str) -> bool:
    try:
        return next(pairs(store, dataset), None) is not None
    except StoreError:
        return False


def _tools(store: Store, dataset: str) -> dict[str, Any]:
    found = {id: json.loads(columns).get("tools") for id, (columns, _) in origins(store, dataset).items() if columns}
    return {id: tools for id, tools in found.items() if tools}


def _told(tools: Any, trainer: str) -> Any:
    """TRL reads definitions of tools as objects, LLaMA-Factory and ms-swift as JSON."""
    if trainer in ("llama-factory", "ms-swift"):
        return tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False)
    return json.loads(tools) if isinstance(tools, str) else tools


def _messages(id: str, messages: Messages) -> Record:
    return {"messages": [openai(m) for m in messages]}


def _trl_pair(id: str, messages: Messages, rejected: Messages) -> Record:
    said = {"prompt": messages[:-1], "chosen": messages[-1:], "rejected": rejected[-1:]}
    return {name: [openai(m) for m in turns] for name, turns in said.items()}


def _axolotl_pair(id: str, messages: Messages, rejected: Messages) -> Record:
    both = {"chosen": openai(messages[-1]), "rejected": openai(rejected[-1])}
    return {"messages": [openai(m) for m in messages[:-1]]} | both


def _factory(id: str, messages: Messages) -> Record:
    """ShareGPT's form, in which question and answer take turns; a result of a tool stands where a question does.

    `system` and `tools` are in every record: its reader fails where `dataset_info.json` names a column that is nowhere.
    """
    system, turns = system_and_turns(messages)
    said = [turn for m in turns for turn in _factory_turns(m)] if all(m["role"] in _FROM for m in turns) else []
    asks = [turn["from"] in ("human", "observation") for turn in said]
    if not said or asks != [n % 2 == 0 for n in range(len(said))] or len(said) % 2:
        raise StoreError(f"row {id} does not take turns of question and answer, which LLaMA-Factory needs; drop it")
    return {"conversations": said, "system": system or "", "tools": ""}


def _factory_turns(m: dict[str, str | None]) -> list[Record]:
    said = [{"from": _FROM[m["role"]], "value": m["content"]}] if m["content"] or not m["tool_calls"] else []
    if calls := _calls(m):
        called = calls[0] if len(calls) == 1 else calls
        said.append({"from": "function_call", "value": json.dumps(called, ensure_ascii=False)})
    return said


def _factory_pair(id: str, messages: Messages, rejected: Messages) -> Record:
    record = _factory(id, messages)
    worse = _factory_turns(rejected[-1])
    chosen = record["conversations"].pop()
    return record | {"chosen": chosen, "rejected": worse[-1]}


def _swift(id: str, messages: Messages) -> Record:
    """Calls of tools are turns of their own, with the JSON of one call each."""
    said: list[Record] = []
    for m in messages:
        if m["content"] or not m["tool_calls"]:
            text = m["content"] or ""
            if m.get("reasoning_content"):
                text = f"<think>\n{m['reasoning_content']}\n</think>\n\n{text}"
            said.append({"role": m["role"], "content": text})
        for call in _calls(m):
            said.append({"role": "tool_call", "content": json.dumps(call, ensure_ascii=False)})
    return {"messages": said}


def _calls(m: dict[str, str | None]) -> list[Any]:
    if not m["tool_calls"]:
        return []
    try:
        calls = json.loads(m["tool_calls"])
    except ValueError:
        return [{"name": m["tool_calls"], "arguments": {}}]
    calls = calls if isinstance(calls, list) else [calls]
    return [
        _arguments(c["function"]) if isinstance(c, dict) and isinstance(c.get("function"), dict) else c for c in calls
    ]


def _arguments(function: Record) -> Record:
    """OpenAI's calls hold their arguments as JSON in a text."""
    said = function.get("arguments")
    try:
        return function | {"arguments": json.loads(said) if isinstance(said, str) else said}
    except ValueError:
        return function


def _swift_pair(id: str, messages: Messages, rejected: Messages) -> Record:
    return _swift(id, messages) | {"rejected_messages": _swift(id, rejected)["messages"]}


# ---- settings


def _trl_settings(folder: Path, has_pairs: bool) -> dict[str, str]:
    def config(name: str, out: str) -> str:
        data = {"path": "json", "data_files": str(folder / name), "split": "train"}
        return _yaml({"model_name_or_path": MODEL, "datasets": [data], "use_peft": True, "output_dir": out})

    files = {"sft.yaml": config("train.jsonl", "out-sft")}
    return files | ({"dpo.yaml": config("preference.jsonl", "out-dpo")} if has_pairs else {})


def _axolotl_settings(folder: Path, has_pairs: bool) -> dict[str, str]:
    turns = {"field_messages": "messages", "message_property_mappings": {"role": "role", "content": "content"}}
    learn = {"path": str(folder / "train.jsonl"), "ds_type": "json", "type": "chat_template"} | turns
    base = {"base_model": MODEL, "adapter": "lora", "lora_r": 16, "lora_alpha": 32, "lora_target_linear": True}
    rest = {"sequence_len": 2048, "micro_batch_size": 1, "num_epochs": 1}
    files = {
        "sft.yaml": _yaml(
            {**base, "datasets": [learn | {"roles_to_train": ["assistant"]}], **rest, "output_dir": "out-sft"}
        )
    }
    if has_pairs:
        pair = {"path": str(folder / "preference.jsonl"), "ds_type": "json", "split": "train"}
        pair |= {"type": "chat_template.default", **turns, "field_chosen": "chosen", "field_rejected": "rejected"}
        files["dpo.yaml"] = _yaml({**base, "rl": "dpo", "datasets": [pair], **rest, "output_dir": "out-dpo"})
    return files


def _factory_settings(folder: Path, has_pairs: bool) -> dict[str, str]:
    said = {"messages": "conversations", "system": "system"}
    info: Record = {
        "thresher": {"file_name": "train.json", "formatting": "sharegpt", "columns": said | {"tools": "tools"}}
    }
    base = {"model_name_or_path": MODEL, "finetuning_type": "lora", "template": "qwen", "dataset_dir": str(folder)}
    files = {
        "sft.yaml": _yaml({**base, "stage": "sft", "do_train": True, "dataset": "thresher", "output_dir": "out-sft"})
    }
    if has_pairs:
        better = said | {"chosen": "chosen", "rejected": "rejected"}
        info["thresher_pairs"] = {
            "file_name": "preference.json",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": better,
        }
        dpo = {**base, "stage": "dpo", "do_train": True, "dataset": "thresher_pairs", "output_dir": "out-dpo"}
        files["dpo.yaml"] = _yaml(dpo)
    return files | {"dataset_info.json": json.dumps(info, indent=2) + "\n"}


def _swift_settings(folder: Path, has_pairs: bool) -> dict[str, str]:
    files = {"sft.sh": f"swift sft --model {MODEL} --dataset '{folder}/train.jsonl' --output_dir out-sft\n"}
    if has_pairs:
        dpo = f"swift rlhf --rlhf_type dpo --model {MODEL} --dataset '{folder}/preference.jsonl' --output_dir out-dpo\n"
        files["dpo.sh"] = dpo
    return files


def _yaml(said: Record) -> str:
    return yaml.safe_dump(said, sort_keys=False, allow_unicode=True)


_TRAINERS: dict[str, tuple[Learn, Prefer, Callable[[Path, bool], dict[str, str]], str]] = {
    "trl": (_messages, _trl_pair, _trl_settings, ".jsonl"),
    "axolotl": (_messages, _axolotl_pair, _axolotl_settings, ".jsonl"),
    "llama-factory": (_factory, _factory_pair, _factory_settings, ".json"),
    "ms-swift": (_swift, _swift_pair, _swift_settings, ".jsonl"),
}
_COMMANDS = {
    "trl": "trl sft --config {folder}/sft.yaml",
    "axolotl": "axolotl train {folder}/sft.yaml",
    "llama-factory": "llamafactory-cli train {folder}/sft.yaml",
    "ms-swift": "sh {folder}/sft.sh",
}
