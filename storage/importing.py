"""Raw files into a named dataset: rows, where each came from, and what could not become a row."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.formats import FORMATS
from storage.reading import BATCH, Batch, read_batches, tell_format
from storage.schema import REJECT
from storage.store import Manifest, Part, Store, StoreError, check_name, file_digest, key_of

MAX_CHARS = 32_768
_VERSION = 1  # raise it when the same file would now give other rows

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True, slots=True)
class Imported:
    dataset: str
    rows: int
    rejected: int
    formats: dict[str, str]  # file: the format it was taken for

    @property
    def format(self) -> str:
        return ", ".join(dict.fromkeys(self.formats.values()))


@dataclass(slots=True)
class _Parts:
    rows: list[Part]
    origin: list[Part]
    rejects: list[Part]


def import_files(
    store: Store,
    files: Sequence[Path],
    name: str,
    format: str = "auto",
    max_chars: int = MAX_CHARS,
    progress: Progress = lambda done, total: None,
) -> Imported:
    """Import files as one dataset and point the name at it. The same files and options are found, not read again."""
    check_name(name)
    if format not in ("auto", *FORMATS):
        raise StoreError(f"there is no format {format!r}; there are auto, {', '.join(FORMATS)}")
    files = [Path(f) for f in files]
    _check_files(files)
    config = {
        "source": name,
        "format": format,
        "max_chars": max_chars,
        "files": {f.name: file_digest(f) for f in files},
    }
    key = key_of("import", _VERSION, BATCH, config, [f.name for f in files])
    dataset = f"import-{key[:12]}"
    if not store.exists(dataset):
        started = time.time()
        formats = {f.name: tell_format(f) if format == "auto" else format for f in files}
        parts = _write(store, key, files, name, formats, max_chars, progress)
        rows, rejected = (sum(p.rows for p in made) for made in (parts.rows, parts.rejects))
        made = Manifest(
            id=dataset,
            kind="rows",
            step="import",
            version=_VERSION,
            config=config | {"formats": formats},
            engines={},
            inputs={},
            shards=tuple((p,) for p in parts.rows),
            side={"origin": tuple(parts.origin), "rejects": tuple(parts.rejects)},
            counts={"rows": rows, "live": rows, "rejected": rejected},
        )
        paths = [str(f.resolve()) for f in files]
        store.note_run(dataset, started=started, seconds=round(time.time() - started, 3), paths=paths)
        store.seal(made)
    store.name(name, dataset)
    found = store.manifest(dataset)
    return Imported(dataset, found.counts["rows"], found.counts["rejected"], found.config["formats"])


def _write(
    store: Store,
    key: str,
    files: list[Path],
    name: str,
    formats: dict[str, str],
    max_chars: int,
    progress: Progress,
) -> _Parts:
    """Read the files and write what has no part yet. Equal rows are counted over all files, so all are read."""
    total, before, number = sum(f.stat().st_size for f in files), 0, 0
    parts, copies = _Parts([], [], []), Counter()
    for file in files:
        at, n_rows, first_reject = [0], 0, None
        for batch in read_batches(file, name, formats[file.name], max_chars, copies, at):
            _put(store, key, number, batch, parts)
            number += 1
            n_rows += len(batch.rows)
            first_reject = first_reject or next(iter(batch.rejects), None)
            progress(before + at[0], total)
        if not n_rows:
            raise StoreError(_unusable(file, formats[file.name], first_reject))
        before += file.stat().st_size
    if not parts.rejects:
        parts.rejects.append(store.put_part(key_of(key, "rejects"), REJECT.empty_table()))
    return parts


def _put(store: Store, key: str, number: int, batch: Batch, parts: _Parts) -> None:
    for table, content in batch.tables().items():
        mine = key_of(key, table, number)
        getattr(parts, table).append(store.part(mine) or store.put_part(mine, content))


def _check_files(files: list[Path]) -> None:
    if not files:
        raise StoreError("there is no file to import; name one or more")
    for file in files:
        if file.is_dir():
            raise StoreError(f"{file} is a folder; name the files in it, such as {file}/*.jsonl")
        if not file.exists():
            raise StoreError(f"there is no file {file}; check the path")
    if twice := [n for n, times in Counter(f.name for f in files).items() if times > 1]:
        raise StoreError(f"two files are named {twice[0]!r}, so rows could not say which they come from; rename one")


def _unusable(file: Path, format: str, reject: tuple | None) -> str:
    if reject is None:
        return f"{file} has no usable row: it is empty; export it again"
    _, line, reason, _ = reject
    return f"{file} has no usable row as {format}, such as line {line}: {reason}; mend the file or name its --format"
