"""The files for other trainers: read back by TRL and `datasets` themselves, by the published rules of the others."""

import json
from pathlib import Path

import polars as pl
import pytest
import yaml

from storage.exporting import export_folder
from storage.importing import import_files
from storage.store import Store, StoreError

FILES = Path(__file__).parent / "files"
TRAINERS = ("trl", "axolotl", "llama-factory", "ms-swift")


def exported(folder: Path, trainer: str, *names: str) -> tuple[Path, list[dict], list[dict]]:
    store = Store(folder / "store")
    import_files(store, [FILES / name for name in names or ("messages.jsonl", "preference.jsonl")], "pool")
    written = export_folder(store, "pool", folder / "out", trainer)
    assert str(folder / "out") in written.read_with
    return folder / "out", *(rows(folder / "out", stem) for stem in ("train", "preference"))


def rows(folder: Path, stem: str) -> list[dict]:
    [path] = folder.glob(f"{stem}.json*")
    return json.loads(path.read_text()) if path.suffix == ".json" else [json.loads(x) for x in path.open()]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_settings_name_the_files_that_are_there(tmp_path, trainer):
    out, *_ = exported(tmp_path, trainer)
    for kind, stem in (("sft", "train"), ("dpo", "preference")):
        [settings] = out.glob(f"{kind}.*")
        said = settings.read_text()
        if trainer == "llama-factory":
            info = json.loads((out / "dataset_info.json").read_text())
            said += info[yaml.safe_load(said)["dataset"]]["file_name"]
            assert yaml.safe_load(settings.read_text())["dataset_dir"] == str(out)
        [file] = out.glob(f"{stem}.json*")
        assert file.name in said


def test_llama_factory_has_questions_at_odd_places_and_answers_at_even_ones(tmp_path):
    _, learnt, pairs = exported(tmp_path, "llama-factory")
    assert all({"system", "tools"} <= set(r) for r in learnt)
    tools = next(r for r in learnt if r["tools"])
    assert tools["system"] == "You may add."
    assert [t["from"] for t in tools["conversations"]] == ["human", "function_call", "observation", "gpt"]
    assert json.loads(tools["conversations"][1]["value"]) == {"name": "add", "arguments": {"a": 2, "b": 2}}
    assert json.loads(tools["tools"])[0]["function"]["name"] == "add"
    assert pairs[1]["system"] == "Be brief."
    assert (pairs[1]["chosen"], pairs[1]["rejected"]) == (
        {"from": "gpt", "value": "Santiago."},
        {"from": "gpt", "value": "Lima."},
    )
    assert pairs[1]["conversations"] == [{"from": "human", "value": "Capital of Chile?"}]


def test_ms_swift_has_a_turn_for_each_call_and_the_rejected_conversation(tmp_path):
    _, learnt, pairs = exported(tmp_path, "ms-swift")
    [tools] = [r["messages"] for r in learnt if "tools" in r]
    assert [m["role"] for m in tools] == ["system", "user", "tool_call", "tool", "assistant"]
    assert json.loads(tools[2]["content"]) == {"name": "add", "arguments": {"a": 2, "b": 2}}
    assert tools[-1]["content"] == "<think>\nThe tool says 4.\n</think>\n\nIt is 4."
    assert [m[-1]["content"] for m in (pairs[0]["messages"], pairs[0]["rejected_messages"])] == ["4", "5"]


def test_axolotl_has_the_turns_before_both_answers(tmp_path):
    out, _, pairs = exported(tmp_path, "axolotl")
    assert pairs[0] == {
        "messages": [{"role": "user", "content": "What is 2+2?"}],
        "chosen": {"role": "assistant", "content": "4"},
        "rejected": {"role": "assistant", "content": "5"},
    }
    [data] = yaml.safe_load((out / "dpo.yaml").read_text())["datasets"]
    assert {data[f"field_{name}"] for name in ("messages", "chosen", "rejected")} == set(pairs[0])


def test_without_pairs_there_is_nothing_to_prefer(tmp_path):
    store = Store(tmp_path / "store")
    import_files(store, [FILES / "alpaca.jsonl"], "pool")
    export_folder(store, "pool", tmp_path / "out", "trl")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["sft.yaml", "train.jsonl"]
    with pytest.raises(StoreError, match="is there already; name a folder that is new or empty"):
        export_folder(store, "pool", tmp_path / "out", "trl")


def test_a_data_set_has_a_card_of_where_it_comes_from(tmp_path):
    store = Store(tmp_path / "store")
    import_files(store, [FILES / "preference.jsonl"], "pool")
    export_folder(store, "pool", tmp_path / "out", "hf")
    assert pl.read_parquet(tmp_path / "out" / "data" / "train-00000-of-00001.parquet").height == 3
    _, front, card = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    for said in ("# pool", "## Sources and licences", "`preference.jsonl`", "## Steps and settings", "| import | 3 |",
                 "## Statistics", "## Sample rows", "Santiago."):  # fmt: skip
        assert said in card, said


@pytest.mark.real
def test_datasets_loads_what_was_exported(tmp_path):
    import datasets

    store = Store(tmp_path / "store")
    import_files(store, [FILES / "messages.jsonl", FILES / "preference.jsonl"], "pool")
    export_folder(store, "pool", tmp_path / "hf", "hf")
    loaded = datasets.load_dataset(str(tmp_path / "hf"), split="train", cache_dir=str(tmp_path / "cache"))
    live = store.read(store.resolve("pool")).filter(pl.col("drop_reason").is_null())
    assert loaded["id"][:] == live["id"].to_list()
    assert [m[-1]["content"] for m in loaded["messages"]] == [m[-1]["content"] for m in live["messages"].to_list()]
    for suffix in ("jsonl", "csv", "parquet", "arrow"):
        from storage.exporting import export_rows

        export_rows(store, "pool", tmp_path / f"out.{suffix}", "messages")
        kind = {"jsonl": "json"}.get(suffix, suffix)
        files = str(tmp_path / f"out.{suffix}")
        read = datasets.load_dataset(kind, data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
        assert read.num_rows == live.height


@pytest.mark.real
@pytest.mark.timeout(900)
def test_trl_trains_on_what_was_exported(tmp_path, tiny_model):
    """One step of SFT and of DPO by TRL's own trainers, on the files and settings of the folder."""
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    out, learnt, pairs = exported(tmp_path, "trl", "alpaca.jsonl", "preference.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    quick = {"max_steps": 1, "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True, "save_strategy": "no"}
    for name, trainer, config, rows in (
        ("sft", SFTTrainer, SFTConfig, learnt),
        ("dpo", DPOTrainer, DPOConfig, pairs),
    ):
        [said] = yaml.safe_load((out / f"{name}.yaml").read_text())["datasets"]
        data = load_dataset(
            said["path"], data_files=said["data_files"], split=said["split"], cache_dir=str(tmp_path / "c")
        )
        assert data.num_rows == len(rows)
        settings = config(output_dir=str(tmp_path / name), max_length=200, **quick)
        trained = trainer(model=str(tiny_model), args=settings, train_dataset=data, processing_class=tokenizer)
        trained.train()
        assert trained.state.global_step == 1


@pytest.mark.real
def test_trl_reads_the_settings(tmp_path):
    from trl import ModelConfig, ScriptArguments, SFTConfig, TrlParser
    from trl.scripts.utils import DatasetMixtureConfig, get_dataset

    out, learnt, _ = exported(tmp_path, "trl")
    parser = TrlParser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig))
    *_, mixture = parser.parse_args_and_config(["--config", str(out / "sft.yaml"), "--bf16", "false"])
    assert get_dataset(mixture)["train"].num_rows == len(learnt)
