"""The process that vLLM runs in: started when it is needed, shared by callers, started once more if it dies."""

import contextlib
import itertools
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from curation.step import Failed
from synthesis.fingerprint import EngineError

_AT_ONCE = 500  # requests in one message
_PATIENCE = 60.0  # seconds that a process may take to end when it is killed; a driver may hold it
_LOOK_EVERY = 1.0  # seconds: whether the process lives, should a child of its keep the pipe open
_ROOT = Path(__file__).resolve().parent.parent
Request = tuple[list[int], dict[str, Any]]  # tokens of the prompt, how to sample


_STARTED: set[int] = set()


def process_groups() -> set[int]:
    """Of every engine that this process has started and nobody has seen to be over; all that one starts is in its
    group, and may have ended."""
    return set(_STARTED)


def forget(groups: set[int]) -> None:
    """These were seen empty: their numbers may become those of processes that are nobody's business."""
    _STARTED.difference_update(groups)


class Died(Exception):
    """The process ended before it had answered; the message says what it said last."""


@dataclass
class VllmProcess:
    """`settings` are vLLM's `EngineArgs`, read at every start."""

    settings: dict[str, Any]
    program: tuple[str, ...] = ("-m", "synthesis.vllm_worker")
    _running: "_Running | None" = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    starts: int = 0

    def answers(self, requests: dict[int, Request], adapter: tuple | None) -> Iterator[tuple[int, Any]]:
        """Each request's outcome as it comes: (answers, prompt's log-probabilities, cached tokens) or a `Failed`.

        Raises EngineError when the engine dies twice; what was given before that stays given.
        """
        left, deaths = dict(requests), 0
        while left:
            running = self.start()
            try:
                for i, outcome in running.answers(left, adapter):
                    del left[i]
                    yield i, outcome
            except Died as why:
                deaths += not running.stopped  # by another caller, who needs it started otherwise
                if deaths > 1:
                    had = f"{len(requests) - len(left)} of {len(requests)} answers were had and are kept"
                    raise EngineError(
                        f"vLLM's engine died twice ({why}); {had}: run the same command to go on"
                    ) from why

    def stop(self) -> None:
        """End the process and all that it started; the next question starts another."""
        with self._lock:
            if self._running:
                self._running.stopped = True
                self._running.end()
            self._running = None

    @property
    def pid(self) -> int | None:
        return self._running.process.pid if self._running else None

    def start(self) -> "_Running":
        """The running process, a new one if there is none."""
        with self._lock:
            if self._running is None or self._running.dead:
                if self._running:
                    self._running.end()  # what it left behind holds the memory that the next one needs
                self.starts += 1
                self._running = _Running(dict(self.settings), self.program)
            return self._running


class _Running:
    """One life of the process. A thread reads what it says and hands it to the call that asked."""

    def __init__(self, settings: dict[str, Any], program: tuple[str, ...]) -> None:
        ours, theirs = Pipe()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, *program, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdout=self.log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the parent's to handle, and the whole group can be ended
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, sys.path)])},
        )
        _STARTED.add(self.process.pid)
        theirs.close()
        self.connection: Connection = ours
        self.calls: dict[int, queue.SimpleQueue] = {}
        self.numbers = itertools.count()
        self.sending = threading.Lock()
        self.dead = self.stopped = False
        self.ending = threading.Lock()
        try:
            ours.send(settings)
            self.facts = self._receive()[1]
        except (EOFError, OSError) as why:
            self.end()
            ours.close()
            said = self.last_words()
            raise EngineError(f"vLLM could not start: {said}; `thresher doctor` says which engines work here") from why
        except BaseException:
            self.end()
            ours.close()
            raise
        threading.Thread(target=self._read, daemon=True).start()

    def answers(self, requests: dict[int, Request], adapter: tuple | None) -> Iterator[tuple[int, Any]]:
        call, heard = next(self.numbers), queue.SimpleQueue()
        self.calls[call] = heard
        asked = [(f"{call}/{i}", tokens, how, adapter) for i, (tokens, how) in requests.items()]
        left = set(requests)
        try:
            for start in range(0, len(asked), _AT_ONCE):
                self._send(("ask", asked[start : start + _AT_ONCE]))
            while left:
                outcomes = None if self.dead and heard.empty() else heard.get()
                if outcomes is None:
                    raise Died(self.last_words())
                for i, (kind, told) in outcomes:
                    left.discard(i)
                    yield i, told if kind == "said" else Failed(f"vLLM refuses: {told}")
        finally:
            del self.calls[call]
            if left and not self.dead:
                self._send(("drop", [f"{call}/{i}" for i in left]), quietly=True)

    def end(self) -> None:
        """Kill the process and all that it started; it may be dead already."""
        self.dead = True
        with self.ending:
            if self.process.returncode is None:  # not waited for yet, so that its number is nobody else's
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(_PATIENCE)

    def last_words(self) -> str:
        """The last line that says what is wrong."""
        self.log.seek(0)
        lines = [line.strip() for line in self.log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        wrong = [line for line in lines if re.search(r"(Error|Exception|Killed)\b.*:", line)] or lines
        return re.sub(r"^\[[^]]*\]:?\s*|\x1b\[[0-9;]*m", "", wrong[-1])[:300] if wrong else "it said nothing"

    def _send(self, message: tuple, quietly: bool = False) -> None:
        try:
            with self.sending:
                self.connection.send(message)
        except OSError as why:
            if not quietly:
                raise Died(self.last_words()) from why

    def _receive(self) -> Any:
        """What the process says next; raises EOFError once it has ended and said all."""
        while not self.connection.poll(_LOOK_EVERY):
            if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if self.connection.poll(0):
                    break
                raise EOFError
        return self.connection.recv()

    def _read(self) -> None:
        try:
            while True:
                _, finished = self._receive()
                heard: dict[int, list] = {}
                for name, outcome in finished:
                    call, i = map(int, name.split("/"))
                    heard.setdefault(call, []).append((i, outcome))
                for call, outcomes in heard.items():
                    waiting = self.calls.get(call)
                    if waiting is not None:  # who asked may have gone meanwhile
                        waiting.put(outcomes)
        except (EOFError, OSError):
            pass
        finally:  # whatever it was, nobody is left waiting
            self.end()
            self.connection.close()
            for waiting in list(self.calls.values()):
                waiting.put(None)
