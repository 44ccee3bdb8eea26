"""Steps of the user's own, from files of theirs, which are as good as ours; see docs/own-steps.md."""

import ast
import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from curation.step import STEPS, Step, StepError

FILES = "THRESHER_STEPS"  # where processes that this one starts find the files
_LOADED: dict[Path, tuple[str, tuple[str, ...]]] = {}  # file: digest of its code, names of its steps
_CODE: dict[str, dict[str, bytes]] = {}  # digest: the file and what it imports, as they were when it was loaded


class ConfigError(Exception):
    """What was asked for cannot be done so; the message names the key or the file, and the remedy."""


def load_steps(files: Iterable[Path]) -> list[Step]:
    """Register the steps of files, here and in processes that are started from here; a file that is known is not read
    again unless it has changed.

    What these files say is in the keys of what their steps make, with what they import from their own folder. Raises
    ConfigError for a file that has no step, cannot be run, or has a step of a name that is taken.
    """
    found = []
    for file in files:
        path = Path(file).resolve()
        if not path.is_file():
            raise ConfigError(f"there is no file of steps {path}; check the path")
        code = _code(path)
        digest = _digest(code)
        if _LOADED.get(path, ("",))[0] != digest:
            for name in _LOADED.pop(path, ("", ()))[1]:
                del STEPS[name]
            _LOADED[path] = digest, _register(path, digest)
            _CODE[digest] = code
        if str(path) not in (known := [str(p) for p in own_files()]):
            os.environ[FILES] = os.pathsep.join([*known, str(path)])
        found += [STEPS[name] for name in _LOADED[path][1]]
    return found


def own_files() -> list[Path]:
    """The files of steps that THRESHER_STEPS names."""
    return [Path(file) for file in os.environ.get(FILES, "").split(os.pathsep) if file]


def named_files(words: list[str]) -> list[Path]:
    """The files that `--steps FILE` names, wherever it stands in a command; it is taken out of the words."""
    found, kept = [], []
    words_left = iter(words)
    for word in words_left:
        if word == "--steps":
            if (file := next(words_left, None)) is None:
                raise ConfigError("--steps takes a file, such as --steps my_steps.py")
            found.append(Path(file))
        elif word.startswith("--steps="):
            found.append(Path(word.removeprefix("--steps=")))
        else:
            kept.append(word)
    words[:] = kept
    return found


def files_behind(step: Step) -> dict[str, bytes]:
    """The file of a user's own step, first, and what it imports from its folder, by their paths in it; none of ours.

    They are as they were when the step was loaded, whatever they say by now: the step's `code` is their digest.
    """
    return dict(_CODE[step.code]) if step.code else {}


def _code(path: Path) -> dict[str, bytes]:
    """A file, first, and all that it imports from its own folder, by their paths in it."""
    others = _with_imports(path, path.parent, set()) - {path}
    return {file.relative_to(path.parent).as_posix(): file.read_bytes() for file in [path, *sorted(others)]}


def _digest(code: dict[str, bytes]) -> str:
    said = [f"{name}\0{hashlib.sha256(code[name]).hexdigest()}" for name in sorted(code, key=Path)]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def _register(path: Path, digest: str) -> tuple[str, ...]:
    before = dict(STEPS)
    _forget_imports(path)
    sys.path.insert(0, str(path.parent))  # it may import what lies beside it, and that before another file's
    spec = importlib.util.spec_from_file_location(f"own_steps_{digest[:12]}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic looks there for the types that a config names
    try:
        spec.loader.exec_module(module)
        new = tuple(name for name in STEPS if name not in before)
        if not new:
            raise ConfigError(f"{path} has no step; a step is a function under @step, see docs/own-steps.md")
    except BaseException as why:
        for name in set(STEPS) - set(before):
            del STEPS[name]
        if isinstance(why, ConfigError | KeyboardInterrupt):
            raise
        raise ConfigError(_told(path, why)) from why
    finally:
        sys.path.remove(str(path.parent))
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))  # for what it imports when it is run
    for name in new:
        STEPS[name] = replace(STEPS[name], code=digest)
    return new


def _forget_imports(path: Path) -> None:
    """What lies beside the file is imported anew: it may have changed, or be another file's of the same name."""
    for file in _with_imports(path, path.parent, set()) - {path}:
        parts = file.relative_to(path.parent).with_suffix("").parts
        sys.modules.pop(".".join(parts[:-1] if parts[-1] == "__init__" else parts), None)
        Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)  # it knows of seconds alone
    importlib.invalidate_caches()


def _told(path: Path, why: BaseException) -> str:
    """What is wrong with a file, and in which of its lines."""
    if isinstance(why, SyntaxError) and why.filename == str(path):
        return f"{path}, line {why.lineno}: {why.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(why.__traceback__) if frame.filename == str(path)]
    what = str(why) if isinstance(why, StepError) else f"{type(why).__name__}: {why}"
    return f"{path}{f', line {lines[-1]}' if lines else ''}: {what}"


def _with_imports(path: Path, folder: Path, seen: set[Path]) -> set[Path]:
    if path in seen:
        return seen
    seen.add(path)
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # said when it is run
        return seen
    for module in _imported(tree):
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            place = folder.joinpath(*parts[:depth])
            for file in (place.with_suffix(".py"), place / "__init__.py"):
                if file.is_file():
                    _with_imports(file, folder, seen)
    return seen


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)
