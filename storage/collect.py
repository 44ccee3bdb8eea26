"""What no name reaches, and its removal.

A name reaches its dataset, what that was made of, and so on to the imports: the whole history of its rows. What another
running command uses is reached too, see `storage/using.py`.
"""

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from storage.manifest import Manifest
from storage.store import Store, StoreError
from storage.using import StillRead, in_use, looking, nobody_else


@dataclass(frozen=True, slots=True)
class Garbage:
    datasets: tuple[Manifest, ...]
    """What was made of others before what it was made of, so that one that is left has all that it needs."""

    files: Mapping[Path, int]
    """Parts and what stands beside them: bytes."""

    unfinished: Mapping[Path, int]
    """Folders of runs that never ended: bytes."""

    unsealed: int
    """How many of the parts belong to no dataset: what runs that never ended have done so far."""

    held: int
    """Datasets that only a running command keeps."""

    @property
    def bytes(self) -> int:
        return sum(self.files.values()) + sum(self.unfinished.values())

    @property
    def steps(self) -> Counter[str]:
        return Counter(made.step for made in self.datasets)


def garbage(store: Store) -> Garbage:
    """What `collect` would remove now. Raises StoreError where a manifest cannot be read: it may need anything."""
    with _told():
        return _garbage(store, in_use(store.root))


def collect(store: Store) -> Garbage:
    """Remove it. Whenever this is cut short, each dataset that is left can be read."""
    with _told(), nobody_else(store.root) as used:
        found = _garbage(store, used)
        for made in found.datasets:
            (store.folder(made.id) / "manifest.json").unlink()
            shutil.rmtree(store.folder(made.id))
        for file in found.files:
            file.unlink(missing_ok=True)
        for folder in found.unfinished:
            shutil.rmtree(folder)
    return found


def reached(manifests: Mapping[str, Manifest], ids: Iterable[str]) -> set[str]:
    """These datasets and all that they were made of, as far as it is there."""
    found, ahead = set(), [i for i in ids if i in manifests]
    while ahead:
        if (one := ahead.pop()) not in found:
            found.add(one)
            ahead += [i for i in manifests[one].inputs.values() if i in manifests]
    return found


def in_order(manifests: Mapping[str, Manifest]) -> list[str]:
    """What datasets were made of before them; else in the order given."""
    inputs = {i: [p for p in made.inputs.values() if p in manifests] for i, made in manifests.items()}
    try:
        return list(TopologicalSorter(inputs).static_order())
    except CycleError:  # no store of ours has one
        return list(manifests)


def own_bytes(store: Store, made: Manifest, manifests: Mapping[str, Manifest]) -> int:
    """Bytes on disk of what a dataset adds to those that it was made of."""
    before = {file for i in made.inputs.values() if i in manifests for file in manifests[i].parts}
    parts = [store.root / file for file in made.parts if file not in before]
    return sum(map(_size, [*parts, *(store.files(made.id) / name for name in made.files)]))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except StillRead as why:
        raise StoreError(f"{why} is running, and what it uses is not known; run gc again when it has ended") from None


def _garbage(store: Store, used: set[str]) -> Garbage:
    with looking():
        manifests = {i: store.manifest(i) for i in store.ids()}
    names = store.names()
    if lost := sorted(name for name, made in names.items() if made not in manifests):
        raise StoreError(
            f"{lost[0]} names a dataset that is not there, set aside perhaps, and its parts may be: run what made it "
            f"again, or `thresher forget {lost[0]}` if it is to go"
        )
    named = reached(manifests, names.values())
    kept = reached(manifests, {*named, *used})
    needed = {file for i in kept for file in manifests[i].parts} | used
    sealed = {file for made in manifests.values() for file in made.parts}
    files, unsealed = {}, 0
    for path in sorted((store.root / "parts").glob("*/*")):
        file = path.relative_to(store.root).with_suffix(".parquet").as_posix()
        if file not in needed:
            files[path] = _size(path)
            unsealed += path.suffix == ".parquet" and file not in sealed
    gone = [manifests[i] for i in reversed(in_order(manifests)) if i not in kept]
    for made in gone:
        files.update({path: _size(path) for path in store.folder(made.id).rglob("*") if path.is_file()})
    begun = [*(store.root / "datasets").glob("*"), *(store.root / "checkpoints").glob("*")]
    over = [p for p in begun if p.parent.name == "checkpoints" or p.name not in manifests]
    left = sorted(p for p in over if p.name not in used)
    return Garbage(
        datasets=tuple(gone),
        files=files,
        unfinished={p: sum(_size(f) for f in p.rglob("*") if f.is_file()) for p in left},
        unsealed=unsealed,
        held=len(kept - named),
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
