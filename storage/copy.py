"""A store, or what some names reach in it, to another folder or an object store, and back.

Only what is not there yet is copied, and each file is hashed on the way. The parts of a dataset come before its
manifest, what it was made of before it, and names last: a copy that is cut short is a store, and the same command goes
on with it.

A file that is there already is what a manifest there says of it, if it has the right size; one that no manifest there
speaks of, left by a copy that was cut short or of a run that goes on, is hashed.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from storage.collect import in_order, reached
from storage.manifest import LAYOUT_FILE, Manifest, StoreError, checked_layout, file_digest, layout_text, parse_manifest
from storage.place import Place
from storage.responses import Responses
from storage.store import check_name

_ANSWERS = "responses.sqlite"
_AT_ONCE = 8  # an object store answers each request in tens of milliseconds, whatever else it is asked

Progress = Callable[[int, int], None]  # bytes done, bytes in all


@dataclass(frozen=True, slots=True)
class Copied:
    datasets: int
    """How many the copy has of those that were asked for."""

    new: int
    files: int
    bytes: int
    differ: tuple[str, ...]
    """Datasets that stay behind: a part or a file of theirs was made there too, with other content, as a model's
    answers are; or they were made of such a one."""

    kept: Mapping[str, str]
    """Names that point at something else there, of which the source knows nothing: they stay. Name: dataset there."""


def copy_store(
    source: str,
    target: str,
    names: Iterable[str] = (),
    move_names: bool = False,
    progress: Progress = lambda done, total: None,
) -> Copied:
    """Copy all of a store, or what names reach and nothing else. An address is a folder or fsspec's, `s3://bucket/x`.

    Raises StoreError for what cannot be reached, for a layout on either side that this Thresher does not read, and for
    a file that is not what its manifest says, after all others have been copied.
    """
    ours, theirs = Place(source), Place(target)
    if ours.address == theirs.address:
        raise StoreError(f"{source} and {target} are the same store; name another place to copy to")
    with tempfile.TemporaryDirectory() as folder, ours.errors(), theirs.errors():
        there = _layout(theirs)
        if _layout(ours) is None and not ours.find("datasets"):
            raise StoreError(f"there is no store in {source}; `thresher copy FROM TO` takes two addresses")
        manifests, times = _manifests(ours)
        found = _names(ours)
        wanted = set(manifests)
        if chosen := set(names):
            if missing := sorted(chosen - set(found)):
                raise StoreError(f"there is no name {missing[0]!r} in {source}; there are {', '.join(sorted(found))}")
            found = {name: dataset for name, dataset in found.items() if name in chosen}
            wanted = reached(manifests, found.values())
        if there is None:
            theirs.put_text(LAYOUT_FILE, layout_text())
        sent = {i: made for i, made in manifests.items() if i in wanted}
        files = _files(ours, sent, everything=not chosen)
        theirs.hold([*files, *(f"datasets/{i}/manifest.json" for i in sent)])  # before it is found to be there
        known = _manifests(theirs)[0]
        found_there = _compared(ours, theirs, files, _said(known), Path(folder))
        differ = _differing(sent, known, found_there.other)
        beside = tuple(f"datasets/{dataset}/" for dataset in differ)
        missing = {f: digest for f, digest in files.items() if f in found_there.missing and not f.startswith(beside)}
        copying = _Copying(ours, theirs, missing, found_there.damaged, Path(folder), progress)
        new = copying.run({i: made for i, made in sent.items() if i not in differ}, times)
        moved, wrong, lost = copying.done, copying.wrong, copying.lost
        if not chosen:
            _answers(ours, theirs, Path(folder))
        found = {name: dataset for name, dataset in found.items() if dataset not in {*differ, *lost}}
        kept = _point(theirs, found, manifests, move_names)
    if wrong:
        raise StoreError(
            f"{len(wrong)} files of {source} are not what they were, such as {next(iter(wrong))}, and were not copied; "
            "`thresher verify` there says which datasets that breaks. All else was copied"
        )
    return Copied(len(wanted), new, len(missing), moved, tuple(differ), kept)


def _layout(place: Place) -> int | None:
    said = place.read(LAYOUT_FILE)
    return None if said is None else checked_layout(said, place.address)


def _names(place: Place) -> dict[str, str]:
    names = {file.rpartition("/")[2]: place.read(file).decode().strip() for file in sorted(place.find("refs"))}
    for name in names:
        check_name(name)
    return names


def _manifests(place: Place) -> tuple[dict[str, Manifest], dict[str, float | None]]:
    """All manifests of a place, oldest first and each after what it was made of; and when each was made, if said."""
    mine = [f for f in place.find("datasets") if f.count("/") == 2 and f.endswith(".json")]
    place.hold(mine)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        said = dict(zip(mine, threads.map(place.read, mine), strict=True))
    read, ended = {}, {}
    for file, content in said.items():
        dataset = file.split("/")[1]
        if file.endswith("/manifest.json"):
            read[dataset] = parse_manifest(content, f"{place.address}/{file}")
        elif file.endswith("/run.json"):
            run = json.loads(content)
            ended[dataset] = run.get("started", 0.0) + run.get("seconds", 0.0)
    oldest = {i: read[i] for i in sorted(read, key=lambda i: (ended.get(i, 0.0), i))}
    return {i: read[i] for i in in_order(oldest)}, {i: ended.get(i) for i in read}


def _files(place: Place, manifests: Mapping[str, Manifest], everything: bool) -> dict[str, str | None]:
    """What has to be there before manifests: file, and its digest where one is known."""
    files: dict[str, str | None] = dict.fromkeys(place.find("parts", "reports")) if everything else {}
    place.hold(files)
    beside = set(files) or set(place.find("parts"))
    runs = place.find("datasets")
    for made in manifests.values():
        for part in made.parts.values():
            files[part.file] = part.digest
            if part.facts in beside:
                files[part.facts] = None
        files |= {f"datasets/{made.id}/files/{name}": digest for name, digest in made.files.items()}
        if (run := f"datasets/{made.id}/run.json") in runs:
            files[run] = None
    return files


def _said(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    """Every file that manifests speak of, and its digest."""
    said: dict[str, str] = {}
    for made in manifests.values():
        said |= {file: part.digest for file, part in made.parts.items()}
        said |= {f"datasets/{made.id}/files/{name}": digest for name, digest in made.files.items()}
    return said


@dataclass(frozen=True, slots=True)
class _There:
    """Files that have to be sent; those among them that are there and damaged; those that are there and differ."""

    missing: set[str]
    damaged: set[str]
    other: set[str]


def _compared(
    ours: Place, theirs: Place, files: Mapping[str, str | None], vouched: Mapping[str, str], folder: Path
) -> _There:
    """`vouched`: what manifests there say of their files."""
    folders = {f.split("/")[0] for f in files}
    have, sizes = theirs.find(*folders), ours.find(*folders)
    told = {file: digest for file, digest in files.items() if digest and file in have}
    damaged = {f for f, digest in told.items() if vouched.get(f) == digest and have[f] != sizes.get(f)}
    other = {f for f, digest in told.items() if vouched.get(f, digest) != digest}
    unknown = [f for f in told if f not in vouched]

    def differs(file: str) -> bool:
        with theirs.local(file, folder) as path:
            return path is not None and file_digest(path) != files[file]

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        other |= {file for file, said in zip(unknown, threads.map(differs, unknown), strict=True) if said}
    return _There({f for f in files if f not in have} | damaged, damaged, other)


def _differing(ours: Mapping[str, Manifest], theirs: Mapping[str, Manifest], other: set[str]) -> list[str]:
    """Datasets that are not what goes by their name there, and what was made of them; `ours` come in order."""
    found: dict[str, None] = {}
    for dataset, made in ours.items():
        there = theirs.get(dataset)
        same = there is None or (_said({dataset: there}), there.inputs) == (_said({dataset: made}), made.inputs)
        if not same or other & _said({dataset: made}).keys() or found.keys() & set(made.inputs.values()):
            found[dataset] = None
    return list(found)


class _Copying:
    """Files on their way, and manifests after them as soon as all of a dataset's files have come."""

    def __init__(
        self,
        ours: Place,
        theirs: Place,
        files: Mapping[str, str | None],
        damaged: set[str],
        folder: Path,
        progress: Progress,
    ) -> None:
        self.ours, self.theirs, self.files, self.folder, self.progress = ours, theirs, files, folder, progress
        self.damaged = damaged  # files there that are replaced
        sizes = ours.find(*{f.split("/")[0] for f in files})
        self.sizes = {file: sizes.get(file, 0) for file in files}
        self.done, self.total = 0, sum(self.sizes.values())
        self.wrong: list[str] = []
        """Files that are not what their manifests say."""
        self.lost: set[str] = set()
        """Datasets that lack one of these, or were made of such a one."""

    def run(self, manifests: Mapping[str, Manifest], times: Mapping[str, float | None]) -> int:
        """Copy all, dataset by dataset in order; returns how many were new there."""
        have, new = self.theirs.find("datasets"), 0
        todo = {i: [f for f in self._of(made) if f in self.files] for i, made in manifests.items()}
        first = dict.fromkeys(f for mine in todo.values() for f in mine)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            sent = {file: threads.submit(self._one, file) for file in {**first, **dict.fromkeys(self.files)}}
            try:
                for dataset, made in manifests.items():
                    for file in todo[dataset]:
                        self._count(file, sent)
                    broken = self.lost & set(made.inputs.values()) or set(self.wrong) & set(self._of(made))
                    file = f"datasets/{dataset}/manifest.json"
                    if broken:
                        self.lost.add(dataset)
                    elif file not in have:
                        self.theirs.put_text(file, made.text(), times[dataset])
                        new += 1
                for file in list(sent):
                    self._count(file, sent)
            except BaseException:
                threads.shutdown(wait=True, cancel_futures=True)
                raise
        return new

    def _count(self, file: str, sent: dict[str, Future[bool]]) -> None:
        if (future := sent.pop(file, None)) is None:
            return
        if not future.result():
            self.wrong.append(file)
        self.done += self.sizes[file]
        self.progress(self.done, self.total)

    def _one(self, file: str) -> bool:
        with self.ours.local(file, self.folder) as path:
            if path is None or (self.files[file] is not None and file_digest(path) != self.files[file]):
                return False
            self.theirs.put(path, file, replace=file in self.damaged)
        return True

    def _of(self, made: Manifest) -> list[str]:
        facts = [part.facts for part in made.parts.values()]
        return [*facts, *_said({made.id: made}), f"datasets/{made.id}/run.json"]


def _point(theirs: Place, names: Mapping[str, str], known: Mapping[str, Manifest], move: bool) -> dict[str, str]:
    """Move names, but for those that somebody moved on there; returns these."""
    kept, before = {}, _names(theirs)
    for name, dataset in names.items():
        if (now := before.get(name)) == dataset:
            continue
        if now is not None and now not in known and not move:
            kept[name] = now
        elif theirs.read(f"datasets/{dataset}/manifest.json") is not None:
            theirs.point(name, dataset)
    return kept


def _answers(ours: Place, theirs: Place, folder: Path) -> None:
    """Models' answers and what was spent: those of both. In a folder they go into the file that is there, beside what
    others write."""
    with ours.local(_ANSWERS, folder) as found:
        if found is None:
            return
        mine = Responses(found)
        if theirs.folder:
            mine.copy_into(theirs.folder / _ANSWERS)
            return
        with theirs.local(_ANSWERS, folder) as there:
            both = there or folder / "answers.sqlite"
            if mine.copy_into(both):
                theirs.put(both, _ANSWERS, replace=True)
