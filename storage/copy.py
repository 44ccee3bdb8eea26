"""A store, or what some names reach in it, to another folder or an object store, and back.

Only what is not there yet is copied, and each file is hashed on the way. Parts come before the manifests that name
them, and names come last: a copy that is cut short is a store, and the same command goes on with it.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
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
    """Datasets that stay behind: a part of theirs was made there too, with other content, as a model's answers are."""

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
        have = theirs.find("datasets", "parts", "reports")
        theirs_too = {f: p.digest for made in _manifests(theirs)[0].values() for f, p in made.parts.items()}
        other = {f for f, digest in files.items() if f in have and theirs_too.get(f, digest) != digest}
        missing = {file: digest for file, digest in files.items() if file not in have}
        moved, wrong = _send(ours, theirs, missing, Path(folder), progress)
        new, differ = _seal(theirs, sent, times, {*wrong, *other})
        if not chosen:
            _answers(ours, theirs, Path(folder))
        kept = _point(theirs, found, manifests, move_names)
    if wrong:
        raise StoreError(
            f"{len(wrong)} files of {source} are not what they were, such as {next(iter(wrong))}, and were not copied; "
            "`thresher verify` there says which datasets that breaks. All else was copied"
        )
    return Copied(len(wanted), new, len(missing), moved, differ, kept)


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


def _send(
    ours: Place, theirs: Place, files: Mapping[str, str | None], folder: Path, progress: Progress
) -> tuple[int, list[str]]:
    """Copy files; returns how many bytes, and the files that are not what their manifests say."""
    sizes = {file: size for file, size in ours.find(*{f.split("/")[0] for f in files}).items() if file in files}
    total, done, wrong = sum(sizes.values()), 0, []

    def one(file: str) -> bool:
        with ours.local(file, folder) as path:
            if path is None or (files[file] is not None and file_digest(path) != files[file]):
                return False
            theirs.put(path, file)
        return True

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for file, right in zip(files, threads.map(one, files), strict=True):
            done += sizes.get(file, 0)
            progress(done, total)
            if not right:
                wrong.append(file)
    return done, wrong


def _seal(
    theirs: Place, manifests: Mapping[str, Manifest], times: Mapping[str, float | None], lost: set[str]
) -> tuple[int, tuple[str, ...]]:
    """Put the manifests of what is whole there, in order; how many were new, and what was left."""
    have, new, left = theirs.find("datasets"), 0, []
    for dataset, made in manifests.items():
        file = f"datasets/{dataset}/manifest.json"
        if lost & {*made.parts, *(f"datasets/{dataset}/files/{name}" for name in made.files)}:
            left.append(dataset)
        elif file not in have:
            theirs.put_text(file, made.text(), times[dataset])
            new += 1
    return new, tuple(left)


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
    """Models' answers: those of both. In a folder they go into the file that is there, beside what others write."""
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
