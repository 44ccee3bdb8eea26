"""Datasets on disk: immutable Parquet parts, and a manifest that is written last.

    <root>/parts/ab/ab12….parquet        one part: some columns of some rows, named by the key that made it
    <root>/datasets/<step>-<key>/manifest.json   which parts make which shard; without it a dataset does not exist
    <root>/datasets/<step>-<key>/run.json        clocks and hosts of the run that made it, so that manifests repeat
    <root>/refs/<name>                   a name that a person gave: a pointer to a dataset
    <root>/checkpoints/<step>-<key>/     how far a long run got, until it is done
    <root>/store.json                    the layout of all this; see storage/manifest.py
    <root>/using/                        what running commands use; see storage/using.py
    <root>/tmp/                          what is being written; swept when the process that wrote it is gone

A shard is a list of parts with the same rows in the same order. Reading zips them, later parts over earlier ones, so a
score step writes its own columns and never the messages again.
"""

import contextlib
import difflib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from storage.manifest import (
    Manifest,
    Part,
    Shard,
    StoreError,
    file_digest,
    key_of,
    read_layout,
    read_manifest,
)
from storage.responses import Responses
from storage.schema import ROW, conform, plain
from storage.using import hold
from storage.writing import link_if_absent, put_if_absent, sweep, temporary

__all__ = ["Manifest", "Part", "Shard", "Store", "StoreError", "check_name", "empty_rows", "file_digest", "key_of"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Store:
    """What is found by a store's methods is held: `gc` leaves it alone as long as this process lives."""

    root: Path

    def __post_init__(self) -> None:
        read_layout(self.root)

    @property
    def answers(self) -> Responses:
        """What models answered."""
        return Responses(self.root / "responses.sqlite")

    # ---- datasets

    def ids(self) -> list[str]:
        """Every dataset that exists, oldest first."""
        found = self.root.glob("datasets/*/manifest.json")
        return [p.parent.name for p in sorted(found, key=lambda p: (p.stat().st_mtime_ns, p.parent.name))]

    def exists(self, dataset: str) -> bool:
        path = self._manifest(dataset)
        if not path.exists():
            return False
        hold(self.root, dataset)
        return path.exists()  # still

    def manifest(self, dataset: str) -> Manifest:
        if not self.exists(dataset):
            raise StoreError(f"there is no dataset {dataset!r} in {self.root}; `thresher datasets` lists what there is")
        return read_manifest(self._manifest(dataset))

    def seal(self, made: Manifest) -> str:
        """Publish a dataset. Until this returns nobody can read it; whoever seals first is believed."""
        hold(self.root, made.id)
        put_if_absent(self.root, self._manifest(made.id), made.text())
        return made.id

    def folder(self, dataset: str) -> Path:
        return self.root / "datasets" / dataset

    # ---- reading

    def read_shard(self, shard: Shard, columns: list[str] | None = None) -> pl.DataFrame:
        """The rows of one shard; `columns` leaves the parts that hold none of them on disk."""
        owner = {column: part for part in shard for column in part.columns}
        wanted = list(owner) if columns is None else [c for c in columns if c in owner]
        frames = []
        for part in dict.fromkeys(owner[c] for c in wanted):
            mine = [c for c in wanted if owner[c] is part]
            table = pq.read_table(self.root / part.file, columns=mine)
            frames.append(pl.from_arrow(table))
        return pl.concat(frames, how="horizontal").select(wanted) if frames else pl.DataFrame()

    def shards(self, dataset: str, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
        for shard in self.manifest(dataset).shards:
            yield self.read_shard(shard, columns)

    def read(self, dataset: str, columns: list[str] | None = None) -> pl.DataFrame:
        """All rows; a column that only some shards have is null in the others."""
        frames = list(self.shards(dataset, columns))
        return pl.concat(frames, how="diagonal_relaxed") if frames else empty_rows()

    def flags(self, shard: Shard) -> list[str]:
        """The columns of yes and no that a shard has; told by its files' schemas, no row is read."""
        schemas = [pq.read_schema(self.root / part.file) for part in shard]
        owner = {column: schema.field(column) for schema in schemas for column in schema.names}
        return [column for column, field in owner.items() if pa.types.is_boolean(field.type)]

    def read_side(self, dataset: str, table: str) -> pl.DataFrame:
        parts = self.manifest(dataset).side.get(table, ())
        frames = [pl.from_arrow(pq.read_table(self.root / p.file)) for p in parts]
        return pl.concat(frames) if frames else pl.DataFrame()

    # ---- writing

    def part(self, key: str) -> Part | None:
        """The part that this key made earlier, if it did."""
        path = self.root / _part_file(key)
        if not path.exists():
            return None
        hold(self.root, _part_file(key))
        if not path.exists():
            return None
        meta = pq.read_metadata(path)
        return Part(_part_file(key), meta.num_rows, file_digest(path), tuple(meta.schema.to_arrow_schema().names))

    def put_part(self, key: str, rows: pl.DataFrame | pa.Table, schema: pa.Schema | None = None) -> Part:
        """Write one part. If another process wrote it meanwhile, theirs stays and is returned."""
        table = rows if isinstance(rows, pa.Table) else conform(rows, schema) if schema else plain(rows.to_arrow())
        written = temporary(self.root)
        pq.write_table(table, written, compression="zstd", row_group_size=65536)
        hold(self.root, _part_file(key))
        link_if_absent(written, self.root / _part_file(key))
        part = self.part(key)
        assert part is not None
        return part

    def put_folder(self, dataset: str, source: Path) -> dict[str, str]:
        """Move a folder of files (an adapter) under a dataset that is not sealed yet; returns name: digest."""
        hold(self.root, dataset)
        target = self.folder(dataset) / "files"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            source.rename(target)
        except OSError:
            if not target.is_dir():  # else somebody's is there already, and stays
                raise
        return {p.relative_to(target).as_posix(): file_digest(p) for p in sorted(target.rglob("*")) if p.is_file()}

    def files(self, dataset: str) -> Path:
        return self.folder(dataset) / "files"

    def note_part(self, key: str, **facts: Any) -> None:
        """What making the part of a key cost; beside it, so that its bytes repeat, and before it is put."""
        hold(self.root, _part_file(key))
        put_if_absent(self.root, (self.root / _part_file(key)).with_suffix(".json"), json.dumps(facts))

    def part_facts(self, part: Part) -> dict[str, Any]:
        path = self.root / part.facts
        return json.loads(path.read_text()) if path.exists() else {}

    def note_run(self, dataset: str, **facts: Any) -> None:
        """What a run took and where it ran; kept apart, so that manifests repeat."""
        hold(self.root, dataset)
        put_if_absent(self.root, self.folder(dataset) / "run.json", json.dumps(facts, indent=1, default=str))

    def run_facts(self, dataset: str) -> dict[str, Any]:
        path = self.folder(dataset) / "run.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def scratch(self) -> Path:
        """A folder of this process's own, swept once the process is gone."""
        path = temporary(self.root)
        path.mkdir()
        return path

    @contextlib.contextmanager
    def workplace(self, dataset: str) -> Iterator[Path]:
        """A folder for what a long run would lose if it were killed, for one process at a time; gone once it is done.

        It stays where the run fails or is killed, and the same run finds it again.
        """
        hold(self.root, dataset)
        folder = self.root / "checkpoints" / dataset
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
            shutil.rmtree(folder, ignore_errors=True)

    # ---- names

    def names(self) -> dict[str, str]:
        refs = self.root / "refs"
        return {p.name: p.read_text().strip() for p in sorted(refs.iterdir())} if refs.exists() else {}

    def called(self) -> dict[str, list[str]]:
        """The names of each dataset that has any."""
        found: dict[str, list[str]] = {}
        for name, dataset in self.names().items():
            found.setdefault(dataset, []).append(name)
        return found

    def resolve(self, name: str) -> str:
        """The dataset id behind a name or an id."""
        check_name(name)
        ref = self.root / "refs" / name
        if ref.exists():
            dataset = ref.read_text().strip()
            hold(self.root, dataset)
            return dataset
        if self.exists(name):
            return name
        close = difflib.get_close_matches(name, [*self.names(), *self.ids()], n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else "; `thresher datasets` lists what there is"
        raise StoreError(f"there is no dataset {name!r} in {self.root}{hint}")

    def name(self, name: str, dataset: str, expect: str | None = None) -> None:
        """Point a name at a dataset. With `expect`, only if it still points there (compare and swap)."""
        check_name(name)
        hold(self.root, dataset)
        with self._names_locked() as refs:
            ref = refs / name
            now = ref.read_text().strip() if ref.exists() else None
            if expect is not None and now != expect:
                raise StoreError(f"{name!r} was moved to {now} by somebody else meanwhile; run the command again")
            written = temporary(self.root)
            written.write_text(dataset + "\n")
            os.replace(written, ref)

    def forget(self, names: Iterable[str]) -> None:
        """Take names away; what they pointed at stays until `gc`."""
        with self._names_locked() as refs:
            for name in names:
                check_name(name)
                (refs / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _names_locked(self) -> Iterator[Path]:
        refs = self.root / "refs"
        refs.mkdir(parents=True, exist_ok=True)
        with (self.root / "refs.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield refs

    # ---- the file system

    def sweep(self) -> None:
        """Remove what processes of this host that are gone had begun to write."""
        sweep(self.root)

    def _manifest(self, dataset: str) -> Path:
        return self.folder(dataset) / "manifest.json"


def check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or ".." in name:
        raise StoreError(
            f"{name!r} is no dataset name: letters, digits, '.', '_' and '-', up to 100, the first a letter or digit"
        )


def empty_rows() -> pl.DataFrame:
    return pl.from_arrow(ROW.empty_table())


def _part_file(key: str) -> str:
    return f"parts/{key[:2]}/{key}.parquet"
