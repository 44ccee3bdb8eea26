"""A folder that `datasets.load_dataset` reads: Parquet files of rows, and a card that says where they come from."""

import json
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import yaml

from storage.exporting import Written
from storage.schema import SPOKEN, instruction, plain, response
from storage.store import Manifest, Store, StoreError

SHARD = 262_144  # rows of a file at most
SAMPLES = 5
_LONGEST = 600  # characters of a sample that are shown
_PAPERS = {
    "clear": "Chen and Mueller, *Automated Data Curation for Robust Language Model Fine-Tuning*, 2024, "
    "arXiv:2403.12776",
    "instructmining": "Cao et al., *Instruction Mining: Instruction Data Selection for Tuning Large Language Models*, "
    "2023, arXiv:2307.06290",
    "llm2llm": "Lee et al., *LLM2LLM: Boosting LLMs with Novel Iterative Data Enhancement*, 2024, arXiv:2403.15042",
}
_COLUMNS = """## Columns

`messages` is the conversation, `source` the imported data set that a row descends from, `method` the step that wrote it
(null: imported), `parent_id` the row that it corrects or grew from, `round` the turn of the loop. Other columns are
scores, named `<method>_<quantity>`."""


def write_hf(store: Store, dataset: str, folder: Path, final: Path, name: str) -> Written:
    """Live rows with every column of a row and all scores, in files of at most SHARD rows, and README.md."""
    (folder / "data").mkdir()
    n_files, total = _write_rows(store, dataset, folder / "data")
    if not total:
        raise StoreError(f"{name} has no live row to write")
    for n in range(n_files):
        (folder / "data" / f"{n}.parquet").rename(folder / "data" / f"train-{n:05}-of-{n_files:05}.parquet")
    (folder / "README.md").write_text(_card(store, dataset, name, total), encoding="utf-8")
    return Written(total, {}, f"datasets.load_dataset({str(final)!r})")


def _write_rows(store: Store, dataset: str, folder: Path) -> tuple[int, int]:
    """Returns how many files and rows."""
    columns, said = _columns(store, dataset), _fields_said(store, dataset)
    turns = pl.col("messages").list.eval(pl.struct([pl.element().struct.field(name) for name in said]))
    rows, number, writer, total = 0, 0, None, 0
    for frame in store.shards(dataset):
        live = frame.filter(pl.col("drop_reason").is_null()).with_columns(turns)
        missing = [pl.lit(None, dtype=kind).alias(name) for name, kind in columns.items() if name not in live.columns]
        table = plain(live.with_columns(missing).select(list(columns)).to_arrow())
        if writer is None or rows >= SHARD:
            if writer is not None:
                writer.close()
            writer, rows = pq.ParquetWriter(folder / f"{number}.parquet", table.schema, compression="zstd"), 0
            number += 1
        writer.write_table(table.cast(writer.schema))
        rows += table.num_rows
        total += table.num_rows
    if writer is not None:
        writer.close()
    return number, total


def _columns(store: Store, dataset: str) -> dict[str, pl.DataType]:
    """Every column that some shard has, but the drop reason: all rows that are written are live."""
    found: dict[str, pl.DataType] = {}
    for shard in store.manifest(dataset).shards:
        new = [c for part in shard for c in part.columns if c not in found]
        if new:
            found |= store.read_shard(shard, new).schema
    return {name: kind for name, kind in found.items() if name != "drop_reason"}


def _fields_said(store: Store, dataset: str) -> list[str]:
    """The fields that some message of a live row has: chat templates look for those that are there."""
    used: set[str] = set()
    for rows in store.shards(dataset, ["messages", "drop_reason"]):
        said = rows.filter(pl.col("drop_reason").is_null()).select(pl.col("messages").explode()).unnest("messages")
        used |= {name for name in said.columns if said[name].null_count() < said.height}
    return [name for name in ("role", "content", *SPOKEN) if name in used or name in ("role", "content")]


def _card(store: Store, dataset: str, name: str, rows: int) -> str:
    chain = _ancestors(store, dataset)
    front = {
        "pretty_name": name,
        "tags": ["thresher", "instruction-tuning"],
        "task_categories": ["text-generation"],
        "size_categories": [_size(rows)],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    }
    blocks = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n# {name}",
        f"{rows:,} rows to fine-tune a language model on, as Thresher kept them.",
        _sources(chain),
        _steps(chain),
        _dropped(store, dataset),
        _statistics(store, dataset),
        _samples(store, dataset),
        _citations(chain),
        _COLUMNS,
    ]
    return "\n\n".join(b for b in blocks if b) + "\n"


def _ancestors(store: Store, dataset: str) -> list[Manifest]:
    """The datasets that this one was made from and itself, the first one first."""
    found: dict[str, Manifest] = {}
    todo = [dataset]
    while todo:
        made = store.manifest(todo.pop())
        if made.id in found:
            continue
        found[made.id] = made
        todo += [i for i in made.inputs.values() if store.exists(i)]
    return list(reversed(found.values()))


def _sources(chain: list[Manifest]) -> str:
    lines = []
    for made in chain:
        if made.step == "import":
            files = ", ".join(f"`{file}` (digest {digest[:12]}…)" for file, digest in made.config["files"].items())
            lines.append(
                f"- **{made.config['source']}**: {made.counts['rows']:,} rows from {files}; licence: not stated"
            )
    note = "Thresher does not know the licences of imported files. Write them here before you publish."
    return "## Sources and licences\n\n" + "\n".join(lines) + f"\n\n{note}" if lines else ""


def _steps(chain: list[Manifest]) -> str:
    lines = ["## Steps and settings"]
    for made in chain:
        said = {
            k: v for k, v in made.config.items() if k not in ("files", "formats", "kinds") and v not in (None, {}, [])
        }
        models = "".join(f"; {role}: {who[:60]}" for role, who in made.engines.items())
        lines.append(f"1. **{made.step}** (version {made.version}){models}: {made.summary}")
        if said:
            lines.append(
                "\n   ```yaml\n" + _indented(yaml.safe_dump(said, sort_keys=False, allow_unicode=True)) + "   ```\n"
            )
    return "\n".join(lines)


def _indented(text: str) -> str:
    return "".join(f"   {line}\n" for line in text.splitlines())


def _dropped(store: Store, dataset: str) -> str:
    reasons: dict[str, int] = {}
    for rows in store.shards(dataset, ["drop_reason"]):
        why = rows.select(pl.col("drop_reason").drop_nulls().str.split(":").list.first())
        for reason, times in why.to_series().value_counts().iter_rows():
            reasons[reason] = reasons.get(reason, 0) + times
    if not reasons:
        return ""
    lines = [f"| {why} | {times:,} |" for why, times in sorted(reasons.items(), key=lambda r: -r[1])]
    return "## What was left out\n\n| dropped by | rows |\n|---|---|\n" + "\n".join(lines)


def _statistics(store: Store, dataset: str) -> str:
    lengths: list[pl.DataFrame] = []
    sources: dict[str, int] = {}
    for rows in store.shards(dataset, ["messages", "source", "drop_reason"]):
        live = rows.filter(pl.col("drop_reason").is_null())
        content = pl.element().struct.field("content").str.len_chars()
        counted = pl.col("messages").list.eval(content)
        answer = counted.list.last()
        lengths.append(
            live.select(turns=pl.col("messages").list.len(), answer=answer, prompt=counted.list.sum() - answer)
        )
        for source, times in live["source"].value_counts().iter_rows():
            sources[source] = sources.get(source, 0) + times
    told = pl.concat(lengths)
    lines = ["## Statistics", "", "| | mean | median | largest |", "|---|---|---|---|"]
    names = {"prompt": "characters of the prompt", "answer": "characters of the answer", "turns": "messages"}
    for column, name in names.items():
        values = told[column]
        lines.append(f"| {name} | {values.mean():,.1f} | {values.median():,.0f} | {values.max():,} |")
    return "\n".join(lines) + "\n\nRows by source: " + ", ".join(f"{s} {n:,}" for s, n in sorted(sources.items()))


def _samples(store: Store, dataset: str) -> str:
    lines = ["## Sample rows"]
    for rows in store.shards(dataset, ["messages", "drop_reason"]):
        for messages in rows.filter(pl.col("drop_reason").is_null())["messages"].head(SAMPLES).to_list():
            said = {"prompt": instruction(messages), "response": response(messages)}
            shown = {k: v if len(v) <= _LONGEST else v[:_LONGEST] + " …" for k, v in said.items()}
            text = json.dumps(shown, ensure_ascii=False, indent=1).replace("```", "\\u0060\\u0060\\u0060")
            lines.append(f"```json\n{text}\n```")
            if len(lines) > SAMPLES:
                return "\n\n".join(lines)
    return "\n\n".join(lines)


def _citations(chain: list[Manifest]) -> str:
    cited = [paper for method, paper in _PAPERS.items() if any(made.step.startswith(method) for made in chain)]
    return "## Citations\n\n" + "\n".join(f"- {paper}" for paper in cited) if cited else ""


def _size(rows: int) -> str:
    for most, name in ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if rows < most:
            return name
    return "n>1M"
