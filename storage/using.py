"""Who uses what in a store, so that `gc` leaves it alone.

Every process keeps a journal of the datasets and parts that it found or made, `using/<host>:<pid>:<random>`, and a lock
on it as long as it lives; a lock goes with its process, however that ends. What is found is written down before it is
relied on, under a lock that `gc` holds alone: so nothing goes between finding and using.

Who may read a store and not write to it keeps no journal, but a lock on `using/readers`: as long as there is one, what
he uses is not known, and nothing goes. A lock needs no more than the right to read.
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
_READING: dict[Path, int] = {}  # open files of `using/readers`
_UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
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
                if why.errno not in _UNWRITABLE:
                    raise
                _read_only(root)
                return
            journal.held.update(new)


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """What this thread finds inside is looked at and forgotten, and `gc` need not mind it."""
    before, _LOOKING.only = getattr(_LOOKING, "only", False), True
    try:
        yield
    finally:
        _LOOKING.only = before


class StillRead(Exception):
    """Somebody uses the store who cannot say what he uses."""


@contextlib.contextmanager
def nobody_else(root: Path) -> Iterator[set[str]]:
    """While inside, no process can begin to use anything; gives what the living ones use already, this one left out.

    Raises StillRead where what somebody uses cannot be told.
    """
    with _gate(root, fcntl.LOCK_EX), _open(root, "readers") as readers:
        try:
            fcntl.flock(readers, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StillRead(f"a command of somebody who may not write to {root}") from None
        yield in_use(root, tidy=True)


def in_use(root: Path, tidy: bool = False) -> set[str]:
    """What other processes that live say they use; `tidy` removes the journals of those that are gone.

    They may be those of other users, which are only read.
    """
    used: set[str] = set()
    own = _JOURNALS.get(root)
    for path in (root / "using").glob("*:*:*"):
        if own and path == own.path:
            continue
        try:
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    used.update(file.read().split("\n"))
                    continue
                if tidy:
                    with contextlib.suppress(PermissionError):
                        path.unlink()
        except FileNotFoundError:
            continue
        except PermissionError:
            raise StillRead(f"a command of another user, whose journal {path} cannot be read") from None
    return used - {""}


@contextlib.contextmanager
def _gate(root: Path, how: int) -> Iterator[None]:
    with _open(root, "gate") as lock:
        fcntl.flock(lock, how)
        yield


@contextlib.contextmanager
def _open(root: Path, name: str) -> Iterator[int]:
    """A file to lock, which another user may have made: to read if not to write."""
    (root / "using").mkdir(parents=True, exist_ok=True)
    path = root / "using" / name
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


def _read_only(root: Path) -> None:
    """Hold everything, as long as this process lives."""
    if root in _READING:
        return
    with contextlib.suppress(OSError):  # no `gc` has ever been here
        file = os.open(root / "using" / "readers", os.O_RDONLY)
        fcntl.flock(file, fcntl.LOCK_SH)
        _READING[root] = file


def _begin(root: Path) -> _Journal:
    path = root / "using" / f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"
    with _open(root, "readers"):
        pass  # it is there for who cannot make it
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.fchmod(file, 0o644)  # whatever the umask: it is for other users to read, also when this process is gone
    fcntl.flock(file, fcntl.LOCK_EX)
    atexit.register(_end, path, os.getpid())
    journal = _JOURNALS[root] = _Journal(path, file)
    return journal


def _end(path: Path, process: int) -> None:
    if os.getpid() == process:  # and not a copy of it, which shares the lock
        path.unlink(missing_ok=True)
