"""Is what lies in a store still what was put there: every part hashed again, every name and manifest read."""

import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.manifest import Manifest, StoreError, file_digest
from storage.store import Store

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True, slots=True)
class Broken:
    file: str
    """Relative to the store."""

    why: str
    datasets: tuple[str, ...] = ()
    """What cannot be read any more because of it."""


@dataclass(frozen=True, slots=True)
class Verified:
    datasets: int
    files: int
    bytes: int
    broken: tuple[Broken, ...]


def verify(store: Store, progress: Progress = lambda done, total: None) -> Verified:
    """Everything that is broken. Nothing is changed."""
    manifests, broken = _manifests(store)
    wanted: dict[str, tuple[str | None, list[str]]] = {}  # file: the digest it should have, and who needs it
    for made in manifests:
        own = {(store.files(made.id) / name).relative_to(store.root).as_posix(): d for name, d in made.files.items()}
        for file, digest in {**{f: p.digest for f, p in made.parts.items()}, **own}.items():
            wanted.setdefault(file, (digest, []))[1].append(made.id)
    for path in sorted((store.root / "parts").glob("*/*.parquet")):  # of runs that have not ended: no digest is known
        wanted.setdefault(path.relative_to(store.root).as_posix(), (None, []))
    sizes = {file: _bytes(store.root / file) for file in wanted}
    total, done = sum(sizes.values()), 0
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)) * 2)) as threads:
        said = threads.map(lambda file: _why_broken(store.root / file, wanted[file][0]), wanted)
        for (file, (_, needed_by)), why in zip(wanted.items(), said, strict=True):
            done += sizes[file]
            progress(done, total)
            if why:
                broken.append(Broken(file, why, tuple(needed_by)))
    broken += _names(store, {made.id for made in manifests}) + _answers(store)
    return Verified(len(manifests), len(wanted), total, tuple(broken))


def set_aside(store: Store, found: Verified) -> Path:
    """Move what is broken, and the manifests of what needs it, to `broken/`; the same commands make it again.

    Names stay: once their datasets are made again, they point at them.
    """
    aside = store.root / "broken"
    lost = {dataset for b in found.broken for dataset in b.datasets}
    files = [b.file for b in found.broken if not b.file.startswith("refs/")]
    files += [f"datasets/{d}/manifest.json" for d in sorted(lost)]
    for file in dict.fromkeys(files):
        if (store.root / file).exists():
            (aside / file).parent.mkdir(parents=True, exist_ok=True)
            (store.root / file).rename(aside / file)
    for dataset in lost:  # what a training left may be broken in part: all of it is made again
        if (folder := store.files(dataset)).exists():
            (aside / "datasets" / dataset).mkdir(parents=True, exist_ok=True)
            folder.rename(aside / "datasets" / dataset / f"files-{os.getpid()}")
    return aside


def _manifests(store: Store) -> tuple[list[Manifest], list[Broken]]:
    read, broken = [], []
    for dataset in store.ids():
        file = f"datasets/{dataset}/manifest.json"
        try:
            read.append(made := store.manifest(dataset))
        except StoreError as why:
            broken.append(Broken(file, str(why).partition("; `")[0], (dataset,)))
            continue
        if made.id != dataset:
            broken.append(Broken(file, f"it says that it is {made.id}", (dataset,)))
    return read, broken


def _why_broken(path: Path, digest: str | None) -> str | None:
    try:
        if digest is None:
            pq.read_metadata(path)
        elif (found := file_digest(path)) != digest:
            return f"its content has the digest {found[:12]}…, not {digest[:12]}…"
    except FileNotFoundError:
        return "it is gone"
    except (OSError, pa.ArrowException) as why:
        return f"it cannot be read: {' '.join(str(why).split())}"
    return None


def _names(store: Store, there: set[str]) -> list[Broken]:
    lost = {name: dataset for name, dataset in store.names().items() if dataset not in there}
    return [Broken(f"refs/{name}", f"it points at {dataset!r}, which is not there") for name, dataset in lost.items()]


def _answers(store: Store) -> list[Broken]:
    path = store.root / "responses.sqlite"
    if not path.exists():
        return []
    database = sqlite3.connect(path, timeout=600)
    try:
        said = database.execute("pragma quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as why:
        said = str(why)
    finally:
        database.close()
    return [] if said == "ok" else [Broken(path.name, said)]


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
