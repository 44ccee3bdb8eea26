"""A worker's side of a step that is spread over a cluster: it is sent rows and gives back columns.

It has no store. What it needs of the driver's it asks for in the course of its work: answers that models gave before,
and the files of adapters. So a node needs no file system in common with any other, and one process alone writes.
"""

import functools
import hashlib
import pickle
import queue
import secrets
import shutil
import socket
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl

from curation.step import Step, StepConfig, find_step
from flows import (
    engines,
    steps,  # noqa: F401  registers every step
)
from flows.engines import EngineError, EngineSpec
from flows.own_steps import load_steps
from flows.run import written
from storage.responses import Answer
from synthesis.fingerprint import folder_digest

ROOT = Path(__file__).resolve().parent.parent
_CODE = ("storage", "curation", "synthesis", "flows")
_LIBRARIES = ("polars", "numpy", "scikit-learn", "tokenizers", "transformers", "sentence-transformers", "torch")


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of the driver's machine: a model or an adapter."""

    path: str
    digest: str
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """A step with all that it needs but rows."""

    step: str
    code: str
    """Digest of the file of a user's own step; empty for ours."""

    own: Mapping[str, bytes]
    """That file, first, and what it imports from its folder, by path."""

    settings: Mapping[str, Any]
    tables: Mapping[str, pl.DataFrame]
    models: Mapping[str, EngineSpec]
    identities: Mapping[str, str]
    folders: Mapping[tuple[str, str], Folder]
    """By role and `model` or `adapter`: what is no name that every node knows."""


@dataclass(frozen=True, slots=True)
class Done:
    rows: pl.DataFrame
    took: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Wrong:
    why: Exception
    took: Mapping[str, float] = field(default_factory=dict)


@functools.cache
def editions() -> dict[str, str]:
    """What decides here how a step decides: Thresher's own code, by its digest, and the libraries that compute."""
    files = sorted(path for package in _CODE for path in (ROOT / package).rglob("*.py"))
    said = hashlib.sha256()
    for path in files:
        said.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    # a local suffix is the build: +cpu
    return {"Thresher's code": said.hexdigest()[:12]} | {n: metadata.version(n).partition("+")[0] for n in _LIBRARIES}


class Worker:
    """Answers each message with one of its own: the result of what it was sent, or something that it asks first.

    A thread of its own does the work for as long as the worker lives: engines may end with the thread they began in.
    """

    def __init__(self) -> None:
        self._heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._job: Job | None = None
        self._step: Step | None = None
        self._config: StepConfig | None = None
        self._began, self._spent, self._lent = 0.0, dict[str, float](), list[Any]()  # of the piece
        # made when something is put there: one that is ended while it prepares leaves none
        self._folder = Path(tempfile.gettempdir()) / f"thresher-{secrets.token_hex(8)}"
        threading.Thread(target=self._live, daemon=True).start()

    def turn(self, message: Any) -> Any:
        self._heard.put(message)
        return self._said.get()

    def close(self) -> None:
        """End the engines, whatever the thread is doing."""
        try:
            engines.release()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    # ---- what engines need of a store

    @property
    def answers(self) -> "Worker":
        return self

    def find(self, keys: list[str], most: int = 0) -> dict[str, str]:
        return self._ask("find", keys, most) if keys else {}

    def put(self, answers: Iterable[Answer]) -> None:
        self._ask("put", list(answers), self._so_far())

    # ---- inside

    def _so_far(self) -> dict[str, float]:
        """What the engines were asked for this piece by now: told with the answers, should this worker not live to tell
        the whole. The engines of a piece are views of their own, which have counted nothing before it."""
        total: Counter[str] = Counter({what: n for what, n in self._spent.items() if "pairs" in what})
        for engine in self._lent:
            total.update(getattr(engine, "used", {}))  # a classifier tells its pairs alone
        total["engine_seconds"] += total.pop("seconds", 0)
        return _took(self._began, total)

    def _ask(self, *question: Any) -> Any:
        self._said.put(question)
        return self._heard.get()

    def _live(self) -> None:
        while True:
            message = self._heard.get()
            if not isinstance(message, Job):
                self._ask("begun")
            self._began, self._spent, self._lent = time.monotonic(), {}, []
            try:
                said = self._begin(message) if isinstance(message, Job) else self._work(message)
            except Exception as why:
                said = Wrong(_portable(why), _took(self._began, self._spent))
            self._said.put(said)

    def _begin(self, job: Job) -> None:
        self._job, self._step = None, self._found(job)
        if job.folders:
            self._folder.mkdir(mode=0o700, exist_ok=True)
        self._config = self._step.config.model_validate(job.settings)
        models = {role: self._placed(role, spec, job) for role, spec in job.models.items()}
        for role, spec in models.items():
            if (mine := engines.identity(spec)) != job.identities[role]:
                raise EngineError(
                    f"the {role} would answer otherwise than where the command runs: {spec.model!r} is {mine}, and "
                    f"{job.identities[role]} there (kind, weights, type of numbers, adapter); have the same model "
                    "everywhere, and GPUs on all machines or on none, the one that the command runs on among them"
                )
        self._job = Job(**{name: getattr(job, name) for name in Job.__slots__} | {"models": models})

    def _work(self, rows: pl.DataFrame) -> Done:
        job, step = self._job, self._step
        if not job.models:
            result = step(rows, self._config, {}, job.tables)
        else:
            with engines.lent(job.models, job.identities, self, spent=self._spent) as lent:
                self._lent = list(lent.values())
                result = step(rows, self._config, lent, job.tables)
        return Done(written(step, result), _took(self._began, self._spent))

    def _found(self, job: Job) -> Step:
        """The step, as it decides where the command runs: of a user's own file what was loaded there, and no other."""
        if job.own:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            folder = self._folder / "steps"
            shutil.rmtree(folder, ignore_errors=True)  # of a step before, or of this one as its file was then
            for name, content in job.own.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            load_steps([folder / next(iter(job.own))])
        step = find_step(job.step)
        if step.code != job.code:
            raise EngineError(
                f"the step {job.step} is another than where the command runs: the digest of its file is {step.code!r}, "
                f"and {job.code!r} there; run the command again, which loads the file anew"
            )
        return step

    def _placed(self, role: str, spec: EngineSpec, job: Job) -> EngineSpec:
        """The spec with folders of this machine: the same ones where they are here too, else sent by the driver."""
        here = {}
        for what in ("model", "adapter"):
            if (folder := job.folders.get((role, what))) is not None:
                same = Path(folder.path).is_dir() and folder_digest(Path(folder.path)) == folder.digest
                here[what] = folder.path if same else str(self._fetched(folder))
        return spec.model_copy(update=here)

    def _fetched(self, folder: Folder) -> Path:
        place = self._folder / folder.digest / Path(folder.path).name  # an engine may look at the name
        if not place.exists():
            coming = place.parent / "coming"
            for name in folder.files:
                (coming / name).parent.mkdir(parents=True, exist_ok=True)
                with (coming / name).open("wb") as file:
                    while block := self._ask("file", folder.path, name, file.tell()):
                        file.write(block)
            coming.rename(place)
        return place


def _took(began: float, spent: Mapping[str, float]) -> dict[str, float]:
    return {"seconds": round(time.monotonic() - began, 3), **spent}


def _portable(why: Exception) -> Exception:
    """The error as the driver can have it, with where it arose."""
    where = "".join(traceback.format_exception(why))
    try:
        told = pickle.loads(pickle.dumps(why))
    except Exception:  # of a library that the driver may not even have
        told = RuntimeError(f"{type(why).__name__}: {why}")
    if isinstance(why, EngineError):
        told = EngineError(f"on {socket.gethostname()}: {why}")
    told.add_note(f"in a worker of the cluster:\n{where}")
    return told
