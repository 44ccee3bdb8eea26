"""Who uses what in a store, so that `gc` leaves it alone.

Every process keeps a journal of the datasets and parts that it found or made, `using/<host>:<pid>:<random>`, and a lock
on it as long as it lives; a lock goes with its process, however that ends. What is found is written down before it is
relied on, under a lock that `gc` holds alone: so nothing goes between finding and using.
"""

import atexit
import contextlib
import errno
import fcntl
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class _Journal:
    path: Path
    file: int
    held: set[str] = field(default_factory=set)


_JOURNALS: dict[Path, _Journal] = {}
_ONE_AT_A_TIME = threading.RLock()
_LOOKING = threading.local()


def hold(root: Path, *what: str) -> None:
    """Say that this process uses datasets (by id) or parts (by file), until it ends."""
    if getattr(_LOOKING, "only", False):
        return
    with _ONE_AT_A_TIME:
        known = _JOURNALS.get(root)
        if new := [w for w in what if known is None or w not in known.held]:
            try:
                with _gate(root, fcntl.LOCK_SH):
                    journal = known or _begin(root)
                    os.write(journal.file, "".join(f"{w}\n" for w in new).encode())
            except OSError as why:
                if why.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                    raise
                return  # where nothing can be written, nothing can be removed
            journal.held.update(new)


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """What this thread finds inside is looked at and forgotten, and `gc` need not mind it."""
    before, _LOOKING.only = getattr(_LOOKING, "only", False), True
    try:
        yield
    finally:
        _LOOKING.only = before


@contextlib.contextmanager
def nobody_else(root: Path) -> Iterator[set[str]]:
    """While inside, no process can begin to use anything; gives what the living ones use already, this one left out."""
    with _gate(root, fcntl.LOCK_EX):
        yield in_use(root, tidy=True)


def in_use(root: Path, tidy: bool = False) -> set[str]:
    """What other processes that live say they use; `tidy` removes the journals of those that are gone."""
    used: set[str] = set()
    own = _JOURNALS.get(root)
    for path in (root / "using").glob("*:*:*"):
        if own and path == own.path:
            continue
        with contextlib.suppress(FileNotFoundError), path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                used.update(file.read().split("\n"))
                continue
            if tidy:
                path.unlink()
    return used - {""}


@contextlib.contextmanager
def _gate(root: Path, how: int) -> Iterator[None]:
    (root / "using").mkdir(parents=True, exist_ok=True)
    with (root / "using" / "gate").open("w") as lock:
        fcntl.flock(lock, how)
        yield


def _begin(root: Path) -> _Journal:
    path = root / "using" / f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    fcntl.flock(file, fcntl.LOCK_EX)
    atexit.register(_end, path, os.getpid())
    journal = _JOURNALS[root] = _Journal(path, file)
    return journal


def _end(path: Path, process: int) -> None:
    if os.getpid() == process:  # and not a copy of it, which shares the lock
        path.unlink(missing_ok=True)
