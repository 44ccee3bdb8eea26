"""Raw files into a named dataset: rows, where each came from, and what could not become a row."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from storage.copies import Copies
from storage.formats import FORMATS
from storage.reading import Batch, Raw, read_batches, tell_format
from storage.records import LARGE, SMALL
from storage.schema import REJECT
from storage.sources import Source, find_sources
from storage.store import Manifest, Part, Store, StoreError, check_name, key_of

MAX_CHARS = 32_768
_VERSION = 3  # raise it when the same file would now give other rows
_WAITING = 2  # batches that are written while the next is read

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True, slots=True)
class Imported:
    dataset: str
    rows: int
    rejected: int
    dropped: int
    """Rows that the data itself calls bad, such as the rejected answer of a pair."""
    formats: dict[str, str]
    """File: the format it was taken for."""
    kinds: dict[str, str]
    """File: what kind of file it is, such as "JSON lines in gzip"."""
    notes: dict[str, int]
    """What was repaired or left out on the way in, and in how many rows."""
    left_out: list[str]
    """Files of a folder that hold no data."""

    @property
    def format(self) -> str:
        return ", ".join(dict.fromkeys(self.formats.values()))


@dataclass(slots=True)
class _Parts:
    rows: list[Part] = field(default_factory=list)
    origin: list[Part] = field(default_factory=list)
    rejects: list[Part] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


def import_files(
    store: Store,
    files: Sequence[Path | str],
    name: str,
    format: str = "auto",
    max_chars: int = MAX_CHARS,
    columns: Mapping[str, str] | None = None,
    progress: Progress = lambda done, total: None,
) -> Imported:
    """Import what is named (see sources.py) as one dataset and point the name at it.

    `columns` says which of the user's columns is which field of the format, {"instruction": "question"}. The same files
    and options are found, not read again.
    """
    check_name(name)
    if format not in ("auto", *FORMATS):
        raise StoreError(f"there is no format {format!r}; there are auto, {', '.join(FORMATS)}")
    columns = dict(columns or {})
    _check_columns(columns, format)
    sources, left_out = find_sources([str(f) for f in files])
    config = {
        "source": name,
        "format": format,
        "max_chars": max_chars,
        "columns": columns,
        "files": {s.name: s.digest for s in sources},
    }
    key = key_of("import", _VERSION, SMALL, LARGE, config, [s.name for s in sources])
    dataset = f"import-{key[:12]}"
    if not store.exists(dataset):
        started = time.time()
        raws = [Raw(s.name, s.open, format, columns, ahead=Path(s.where).is_absolute()) for s in sources]
        told = {raw.name: tell_format(raw) for raw in raws}
        formats = {file: said for file, (said, _) in told.items()}
        parts = _write(store, key, raws, name, formats, max_chars, sources, progress)
        rows, rejected = (sum(p.rows for p in made) for made in (parts.rows, parts.rejects))
        dropped = sum(parts.dropped.values())
        made = Manifest(
            id=dataset,
            kind="rows",
            step="import",
            version=_VERSION,
            config=config | {"formats": formats, "kinds": {file: kind for file, (_, kind) in told.items()}},
            engines={},
            inputs={},
            shards=tuple((p,) for p in parts.rows),
            side={"origin": tuple(parts.origin), "rejects": tuple(parts.rejects)},
            counts={"rows": rows, "live": rows - dropped, "rejected": rejected}
            | ({"dropped by import": dropped} if dropped else {}),
        )
        facts = {"paths": [s.where for s in sources], "notes": dict(parts.notes), "left_out": left_out}
        store.note_run(dataset, started=started, seconds=round(time.time() - started, 3), **facts)
        store.seal(made)
    store.name(name, dataset)
    found, facts = store.manifest(dataset), store.run_facts(dataset)
    return Imported(
        dataset,
        found.counts["rows"],
        found.counts["rejected"],
        found.counts.get("dropped by import", 0),
        found.config["formats"],
        found.config["kinds"],
        facts.get("notes", {}),
        facts.get("left_out", []),
    )


def _write(
    store: Store,
    key: str,
    raws: list[Raw],
    name: str,
    formats: dict[str, str],
    max_chars: int,
    sources: list[Source],
    progress: Progress,
) -> _Parts:
    """Read the files and write what has no part yet. Equal rows are counted over all files, so all are read."""
    total, before, number = sum(s.size for s in sources), 0, 0
    parts, copies = _Parts(), Copies()
    with ThreadPoolExecutor(1) as writer:
        waiting: list[Future[None]] = []
        for raw, source in zip(raws, sources, strict=True):
            n_rows, first_reject = 0, None
            for batch in read_batches(raw, name, formats[raw.name], max_chars, copies):
                waiting.append(writer.submit(_put, store, key, number, batch, parts))
                if len(waiting) > _WAITING:
                    waiting.pop(0).result()
                number += 1
                n_rows += batch.rows.num_rows
                if first_reject is None and batch.rejects.num_rows:
                    first_reject = batch.rejects.slice(0, 1).to_pylist()[0]
                progress(before + min(batch.reached, source.size), total)
            if not n_rows:
                raise StoreError(_unusable(raw.name, formats[raw.name], first_reject))
            before += source.size
            progress(before, total)
        for one in waiting:
            one.result()
    if not parts.rejects:
        parts.rejects.append(store.put_part(key_of(key, "rejects"), REJECT.empty_table()))
    return parts


def _put(store: Store, key: str, number: int, batch: Batch, parts: _Parts) -> None:
    for table, content in _filled(batch):
        mine = key_of(key, table, number)
        getattr(parts, table).append(store.part(mine) or store.put_part(mine, content))
    parts.notes.update(_counts(batch.origin["note"]))
    parts.dropped.update(_counts(batch.rows["drop_reason"]))


def _filled(batch: Batch) -> Iterator[tuple[str, pa.Table]]:
    for name, table in (("rows", batch.rows), ("origin", batch.origin), ("rejects", batch.rejects)):
        if table.num_rows:
            yield name, table


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    if column.null_count == len(column):
        return {}
    return {c["values"]: c["counts"] for c in pc.value_counts(column.drop_null()).to_pylist()}


def _check_columns(columns: Mapping[str, str], format: str) -> None:
    known = {f for name, one in FORMATS.items() if format in ("auto", name) for f in one.fields}
    if stray := [ours for ours in columns if ours not in known]:
        raise StoreError(f"{format} has no field {stray[0]!r}; it has {', '.join(sorted(known))}")


def _unusable(file: str, format: str, reject: dict | None) -> str:
    if reject is None:
        return f"{file} has no usable row: it is empty; export it again"
    said = f"such as line {reject['line']}: {reject['reason']}"
    return f"{file} has no usable row as {format}, {said}; mend the file or name its --format"
