"""What a person names to be imported: files, folders, addresses, what `save_to_disk` wrote, data sets of the Hub.

raw.jsonl.gz                    a file, packed or not
folder/                         every file of data in it and below
archive.zip                     every file of data in it
saved/                          what `Dataset.save_to_disk` wrote
s3://bucket/raw.parquet         any address that fsspec knows
hf:tatsu-lab/alpaca@train       a data set of the Hugging Face Hub, and a split of it; hf:NAME:CONFIG@SPLIT
"""

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.core import url_to_fs

from storage.addresses import shown, without_secrets
from storage.hub import open_hub, revision
from storage.records import plain_suffix
from storage.store import StoreError, file_digest
from storage.streams import BOMB_RATIO, is_bomb
from storage.tries import again, network_errors, opened
from storage.turns import storable

_DATA = ("jsonl", "json", "ndjson", "csv", "tsv", "parquet", "arrow", "feather", "zip")
_TEXTS = ("txt", "md", "markdown")


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its name in the origin table, its size in bytes, a digest of its content, how to open it."""

    name: str
    where: str
    size: int
    digest: str
    open: Callable[[], BinaryIO]


def find_sources(given: list[str]) -> tuple[list[Source], list[str]]:
    """The files behind what was named, and those of folders and archives that were left out, as they hold no data."""
    found: list[Source] = []
    left_out: list[str] = []
    for one in given:
        if one.startswith("hf:") and not one.startswith("hf://"):
            found.append(_of_hub(one.removeprefix("hf:")))
        else:
            files, rest = _files(one)
            left_out += rest
            for path, name in files:
                sources, rest = _looked_into(one, path, name)
                found += sources
                left_out += rest
    if not found:
        raise StoreError("there is no file to import; name one or more")
    names = [source.name for source in found]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise StoreError(f"two files are named {twice!r}, so rows could not say which they come from; rename one")
    return found, left_out


def _files(given: str) -> tuple[list[tuple[Any, str]], list[str]]:
    """Paths and names of the files behind one name: a file is itself, a folder what is in it."""
    if "://" not in given:
        path = Path(given)
        if not path.exists():
            raise StoreError(f"there is no file {given}; check the path, or write hf:{given} for a data set of the Hub")
        if not path.is_dir():
            return [(path, path.name)], []
        inside = [p for p in sorted(path.rglob("*")) if p.is_file() and not _hidden(p.relative_to(path).parts)]
        return _of_folder(given, {p.relative_to(path).as_posix(): p for p in inside})
    try:
        files, path = url_to_fs(given)
        if again(files.isdir, path):
            inside = sorted(again(files.find, path))
            told = shown if "http" in given[:4] else str  # elsewhere a question mark is part of a name
            return _of_folder(shown(given), {told(p[len(path) :].lstrip("/")): (files, p) for p in inside})
        try:
            again(files.info, path)
        except FileNotFoundError as why:
            said = f" ({without_secrets(str(why.__cause__), given)})" if why.__cause__ else ""
            raise StoreError(
                f"there is nothing at {shown(given)}{said}; check the address and who may read it"
            ) from why
        return [((files, path), shown(path).rsplit("/", 1)[-1])], []
    except (ImportError, ValueError, OSError, *network_errors()) as error:
        raise StoreError(f"{shown(given)} cannot be opened: {without_secrets(str(error), given)}") from None


def _of_folder(given: str, inside: dict[str, Any]) -> tuple[list[tuple[Any, str]], list[str]]:
    if "dataset_dict.json" in inside:
        splits = sorted({name.split("/")[0] for name in inside if "/" in name})
        raise StoreError(
            f"{given} holds the splits {', '.join(splits)}; name the one to import, such as {given}/{splits[0]}"
        )
    if names := _saved(inside):
        if lost := [name for name in names if name not in inside]:
            raise StoreError(f"{given} lacks {lost[0]}, which its state.json names; fetch the folder again")
        return [(inside[name], name) for name in names], []
    data = [name for name in inside if plain_suffix(name) in _DATA]
    data = data or [name for name in inside if plain_suffix(name) in _TEXTS]
    if not data:
        raise StoreError(f"{given} is a folder without a file of data (.{', .'.join((*_DATA, *_TEXTS))}); name a file")
    return [(inside[name], name) for name in data], [name for name in inside if name not in data]


def _saved(inside: dict[str, Any]) -> list[str]:
    """The files that `save_to_disk` says it wrote; none where a `state.json` is somebody else's."""
    if "state.json" not in inside:
        return []
    try:
        return [file["filename"] for file in json.loads(_bytes(inside["state.json"]))["_data_files"]]
    except (ValueError, KeyError, TypeError):
        return []


def _hidden(parts: tuple[str, ...]) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in parts)


def _looked_into(given: str, path: Any, name: str) -> tuple[list[Source], list[str]]:
    try:
        return _opened(path, name)
    except (ValueError, OSError, *network_errors()) as error:
        raise StoreError(f"{shown(given)} cannot be opened: {without_secrets(str(error), given)}") from None


def _opened(path: Any, name: str) -> tuple[list[Source], list[str]]:
    """A file as itself, a zip archive as what is in it, and what in there is left out."""
    name = storable(name.encode("utf-8", "replace").decode())
    if isinstance(path, Path):
        where, size, digest, opener = (
            str(path.resolve()),
            path.stat().st_size,
            file_digest(path),
            partial(path.open, "rb"),
        )
    else:
        files, inner = path
        told = again(files.info, inner)
        where, size = shown(files.unstrip_protocol(inner)), told["size"] or 0
        opener = partial(opened, files, inner, where)
        mark = next((told[m] for m in ("ETag", "etag", "xet_hash", "sha256") if told.get(m)), None)
        digest = mark or _digest(opener)
    with opener() as file:
        packed = file.read(4) == b"PK\x03\x04"
    if not packed:
        return [Source(name, where, size, digest, opener)], []
    inside, rest = _inside(name, opener)
    return [
        Source(_named(name, one), where, one.compress_size, digest, partial(_member, opener, one)) for one in inside
    ], [_named(name, one) for one in rest]


def _inside(name: str, opener: Callable[[], BinaryIO]) -> tuple[list[zipfile.ZipInfo], list[zipfile.ZipInfo]]:
    """The members of an archive that hold data, and the others. No more is ever unpacked than a member says."""
    try:
        with opener() as file, zipfile.ZipFile(file) as archive:
            inside = [i for i in archive.infolist() if not i.is_dir() and not _hidden(tuple(i.filename.split("/")))]
    except zipfile.BadZipFile as error:
        raise StoreError(f"{name} is a zip archive that cannot be read: {error}; pack it again") from error
    data = [i for i in inside if plain_suffix(i.filename) in _DATA] or inside
    if not data:
        raise StoreError(f"{name} is an empty zip archive; pack it again")
    if bomb := next((i for i in data if is_bomb(i.file_size, i.compress_size)), None):
        raise StoreError(
            f"{_named(name, bomb)} unpacks to more than {BOMB_RATIO} times its size, so it is not read; unpack it "
            "yourself if you trust it"
        )
    return data, [i for i in inside if i not in data]


def _named(archive: str, one: zipfile.ZipInfo) -> str:
    return storable(f"{archive}/{one.filename}")


def _member(opener: Callable[[], BinaryIO], one: zipfile.ZipInfo) -> BinaryIO:
    try:
        return zipfile.ZipFile(opener()).open(one)  # type: ignore[return-value]
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise StoreError(f"{one.filename} cannot be taken out of its archive: {error}; unpack it yourself") from error


def _digest(opener: Callable[[], BinaryIO]) -> str:
    with opener() as file:
        hashed = hashlib.sha256()
        while piece := file.read(1 << 20):
            hashed.update(piece)
    return hashed.hexdigest()


def _bytes(path: Any) -> bytes:
    return path.read_bytes() if isinstance(path, Path) else again(path[0].cat_file, path[1])


def _of_hub(address: str) -> Source:
    return Source(address, f"hf:{address}", 0, revision(address), partial(open_hub, address))
