"""Writing so that nobody ever reads half a file: under a name of the process's own first, then linked into place."""

import contextlib
import os
import shutil
import socket
import uuid
from pathlib import Path

from storage.manifest import LAYOUT_FILE, layout_text


def temporary(root: Path) -> Path:
    """A path of this process's own, which `sweep` removes once the process is gone; the first says the layout."""
    folder = root / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"
    if not (root / LAYOUT_FILE).exists():
        path.write_text(layout_text())
        link_if_absent(path, root / LAYOUT_FILE)
    return path


def link_if_absent(written: Path, path: Path) -> None:
    """Move a file into its place; if somebody else's is there meanwhile, that one stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written.open("rb") as file:
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):
        os.link(written, path)
    written.unlink()


def put_if_absent(root: Path, path: Path, content: str) -> None:
    written = temporary(root)
    written.write_text(content, encoding="utf-8")
    link_if_absent(written, path)


def sweep(root: Path) -> None:
    """Remove what processes of this host that are gone had begun to write."""
    for path in (root / "tmp").glob(f"{socket.gethostname()}:*"):
        if not _alive(int(path.name.split(":")[1])):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
