"""Data sets of the Hugging Face Hub: read row by row as they are sent, and written there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from storage.store import StoreError, file_digest, key_of
from storage.tries import again, network_errors

_OF_A_PUSH = "data/train-*"  # what the card says are the rows; see hf_folder.py
_REMEDY = (
    "check the name, the network and HF_TOKEN; or fetch it on a machine that reaches the Hub, "
    "`datasets.load_dataset(NAME).save_to_disk(FOLDER)`, and import the folder"
)


def revision(address: str) -> str:
    """What the data set holds now, as the Hub names it."""
    name, _, _ = _parts(address)
    if Path(name).is_dir():  # a clone of one
        files = sorted(p for p in Path(name).rglob("*") if p.is_file() and ".git" not in p.parts)
        return key_of([(p.relative_to(name).as_posix(), file_digest(p)) for p in files])
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return again(HfApi().dataset_info, name, never=(OfflineModeIsEnabled,)).sha or ""
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError, *network_errors()) as error:
        raise _unreachable(address, error) from error


def open_hub(address: str) -> "_Lines":
    """The rows of one split as JSON lines, sent while they are read."""
    import datasets
    from huggingface_hub.errors import OfflineModeIsEnabled

    name, config, split = _parts(address)
    try:
        found = again(datasets.load_dataset, name, config, streaming=True, never=(OfflineModeIsEnabled,))
    except (datasets.exceptions.DatasetNotFoundError, OSError, ValueError, *network_errors()) as error:
        raise _unreachable(address, error) from error
    if split is None and len(found) > 1:
        raise StoreError(
            f"hf:{address} has the splits {', '.join(found)}; name one, such as hf:{address}@{next(iter(found))}"
        )
    split = split or next(iter(found))
    if split not in found:
        raise StoreError(f"hf:{name} has no split {split!r}; it has {', '.join(found)}")
    return _Lines(iter(found[split]))


def push(folder: Path, name: str, public: bool = False) -> str:
    """Put an exported folder on the Hub as a private data set; returns its address.

    What everybody can read is written only with `public`, which also makes a new data set so; one that is private stays
    it. Files of rows of an earlier push that this one does not have are removed there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    hub = HfApi()
    try:
        try:
            open_to_all = not hub.dataset_info(name, expand=["private"]).private
        except RepositoryNotFoundError:
            open_to_all = public
        if open_to_all and not public:
            raise StoreError(
                f"{folder} is written, but not pushed: everybody can read the data set {name}; say --public if they "
                "may read these rows, or name another"
            )
        address = hub.create_repo(name, repo_type="dataset", private=not public, exist_ok=True)
        said = {"commit_message": "Thresher's export", "delete_patterns": _OF_A_PUSH}
        hub.upload_folder(repo_id=name, folder_path=folder, repo_type="dataset", **said)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        said = str(error).splitlines()[0][:200]
        raise StoreError(
            f"{folder} is written, but cannot be pushed to {name}: {said}; check the name, the network and HF_TOKEN "
            f"(`hf auth login`), then `hf upload {name} {folder} --repo-type dataset`"
        ) from error
    return str(address)


class _Lines:
    """Rows as a file of JSON lines, which is read once and forward."""

    def __init__(self, rows: Iterator[dict[str, Any]]) -> None:
        self._rows, self._ahead, self._sent = rows, bytearray(), 0

    def read(self, size: int) -> bytes:
        while len(self._ahead) < size and (row := next(self._rows, None)) is not None:
            self._ahead += orjson.dumps(row, default=str) + b"\n"
        piece = bytes(self._ahead[:size])
        del self._ahead[:size]
        self._sent += len(piece)
        return piece

    def tell(self) -> int:
        return self._sent

    def close(self) -> None:
        self._rows = iter(())


def _parts(address: str) -> tuple[str, str | None, str | None]:
    """Name, config and split of NAME:CONFIG@SPLIT."""
    rest, _, split = address.partition("@")
    name, _, config = rest.partition(":")
    return name, config or None, split or None


def _unreachable(address: str, error: Exception) -> StoreError:
    return StoreError(f"hf:{address} cannot be read: {str(error).splitlines()[0][:200]}; {_REMEDY}")
