"""Where a store lies: a folder, or an address that fsspec knows, such as `s3://bucket/store`."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from storage.addresses import shown, without_secrets
from storage.manifest import StoreError
from storage.store import Store
from storage.using import hold
from storage.writing import link_if_absent, put_if_absent, temporary


class Place:
    """Files by their paths relative to the store. What is put is whole or not there at all."""

    def __init__(self, address: str) -> None:
        try:
            # S3's would hold ten pieces of each file in memory at a time
            options = {"max_concurrency": 1} if address.startswith(("s3://", "s3a://")) else {}
            self.files, self.root = fsspec.core.url_to_fs(address, skip_instance_cache=True, **options)
        except (ImportError, ValueError) as why:
            raise StoreError(
                f"{shown(address)}: {without_secrets(str(why), address)}; a store lies in a folder or behind an "
                "address of fsspec's, and s3:// needs `pip install s3fs`"
            ) from None
        self.root = self.root.rstrip("/")
        self.folder = Path(self.root) if isinstance(self.files, LocalFileSystem) else None
        self.address = self.root if self.folder else shown(self.files.unstrip_protocol(self.root))

    def find(self, *folders: str) -> dict[str, int]:
        """Every file in these folders, and its bytes."""
        found = {}
        for folder in folders:
            with contextlib.suppress(FileNotFoundError):
                said = self.files.find(f"{self.root}/{folder}", detail=True).values()
                found |= {file["name"][len(self.root) + 1 :]: file["size"] for file in said if file["type"] == "file"}
        return found

    def read(self, file: str) -> bytes | None:
        try:
            return self.files.cat_file(f"{self.root}/{file}")
        except FileNotFoundError:
            return None

    def hold(self, files: Iterable[str]) -> None:
        """Keep `gc` from files in a folder as long as this process lives; nothing collects an address."""
        if self.folder:
            hold(self.folder, *{what for file in files for what in _held(file)})

    @contextlib.contextmanager
    def local(self, file: str, folder: Path) -> Iterator[Path | None]:
        """The file on this machine; fetched into the folder where it is elsewhere, for as long as it is needed."""
        if self.folder:
            path = self.folder / file
            yield path if path.exists() else None
            return
        path = folder / uuid.uuid4().hex
        try:
            self.files.get_file(f"{self.root}/{file}", str(path))
            yield path
        except FileNotFoundError:
            yield None
        finally:
            path.unlink(missing_ok=True)

    def put(self, path: Path, file: str, replace: bool = False) -> None:
        """Put a file of this machine there. What is there stays in a folder, unless it is to be replaced."""
        if self.folder is None:
            self.files.put_file(str(path), f"{self.root}/{file}")
            return
        self.hold([file])
        written = temporary(self.folder)
        shutil.copyfile(path, written)
        if replace:
            os.replace(written, self.folder / file)
        else:
            link_if_absent(written, self.folder / file)

    def put_text(self, file: str, text: str, time: float | None = None) -> None:
        """Put a text there, as old as it is said to be."""
        if self.folder is None:
            self.files.pipe_file(f"{self.root}/{file}", text.encode())
            return
        self.hold([file])
        put_if_absent(self.folder, self.folder / file, text)
        if time is not None:
            os.utime(self.folder / file, (time, time))

    def point(self, name: str, dataset: str) -> None:
        """Move a name."""
        if self.folder:
            Store(self.folder).name(name, dataset)
        else:
            self.files.pipe_file(f"{self.root}/refs/{name}", f"{dataset}\n".encode())

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """What an object store's library raises is told as what went wrong there."""
        try:
            yield
        except StoreError:
            raise
        except Exception as why:
            if self.folder:
                raise
            told = without_secrets(" ".join(f"{type(why).__name__}: {why}".split()))
            raise StoreError(
                f"{self.address} could not be reached or refused: {told[:300]}; check the address, the credentials and "
                "AWS_ENDPOINT_URL, then run the same command: it goes on"
            ) from why


def _held(file: str) -> list[str]:
    """As what `gc` knows a file."""
    where, _, rest = file.partition("/")
    if where == "datasets":
        return [rest.split("/")[0]]
    return [f"{os.path.splitext(file)[0]}.parquet"] if where == "parts" else []
