"""Pieces of a step among workers elsewhere: who works on which, what becomes of a dead one's, what they ask meanwhile.

The process that runs this alone reads and writes the store. Workers are sent rows and send back columns; each question
of theirs (answers that are kept, answers to be kept, files of an adapter) is answered from here.
"""

from collections import Counter, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from flows.cluster_worker import Done, Job, Wrong
from flows.run import Piece, Worked, parts_of
from flows.spending import cut_short
from storage.store import Store, StoreError

TRIES = 3  # workers that may die over one piece
BLOCK = 16 << 20  # bytes of a file that are sent at a time


@dataclass(frozen=True, slots=True)
class Gone:
    """In the place of what a worker says: it has died."""

    why: str


class Crew(Protocol):
    """Workers that are there or on their way. Each is sent a message and says one thing, in turns."""

    def staff(self, wanted: int) -> list[Hashable]:
        """As many workers as wanted, or as there is room for; those that are idle."""
        ...

    def share(self, message: Any) -> Any:
        """The message, to be sent to many."""
        ...

    def send(self, worker: Hashable, message: Any) -> None: ...

    def said(self) -> Iterator[tuple[Hashable, Any]]:
        """What workers said by now, after a short while at most."""
        ...

    def rest(self) -> None:
        """Nothing is left to do for now: those that are idle stay, and those that still prepare go."""
        ...

    def end(self) -> None: ...


def spread(crew: Crew, store: Store, job: Job, pieces: Sequence[Piece]) -> Iterator[Worked]:
    """Each piece as it is done. A piece whose worker dies is given to another; the third that began it is an error.

    When it is left early, the workers are ended: what they were at is nobody's any more.
    """
    waiting, busy, died = deque(range(len(pieces))), {}, Counter()
    ready: set[Hashable] = set()  # have heard of the job
    begun: set[Hashable] = set()  # have said that they have their piece
    told: dict[Hashable, Mapping[str, float]] = {}  # what they have spent on it by now
    shared, whole = crew.share(job), False
    try:
        while waiting or busy:
            for worker in crew.staff(len(waiting) + len(busy)):
                if worker not in ready:
                    crew.send(worker, shared)
                    continue
                while waiting and parts_of(store, pieces[waiting[0]].keys):
                    yield Worked(waiting.popleft(), None, {})
                if waiting:
                    busy[worker] = waiting.popleft()
                    begun.discard(worker)
                    told.pop(worker, None)
                    crew.send(worker, pieces[busy[worker]].rows())
            for worker, said in crew.said() if waiting or busy else ():
                match said:
                    case Gone(why=why):
                        ready.discard(worker)
                        if worker in busy:
                            waiting.appendleft(piece := busy.pop(worker))
                            cut_short(store, pieces[piece].keys[0], told.pop(worker, {}))
                            if worker in begun:  # else it was dead before, maybe with all others of its node
                                _count(piece, why, died, job, len(pieces))
                    case Wrong(why=why, took=took):
                        if worker in busy:
                            told[worker] = took
                        raise why
                    case Done(rows=rows, took=took):
                        yield Worked(busy.pop(worker), rows, took)
                    case None:
                        ready.add(worker)
                    case ("begun",):
                        begun.add(worker)
                        crew.send(worker, None)
                    case ("put", answers, took):
                        told[worker] = took
                        crew.send(worker, store.answers.put(answers))
                    case question:
                        crew.send(worker, _answer(store, job, question))
        whole = True
    finally:
        for worker, piece in busy.items():  # none where all is done
            cut_short(store, pieces[piece].keys[0], told.get(worker, {}))
        crew.rest() if whole else crew.end()


def _count(piece: int, why: str, died: Counter[int], job: Job, pieces: int) -> None:
    died[piece] += 1
    if died[piece] == TRIES:
        raise StoreError(
            f"{job.step}: shard {piece + 1} of the {pieces} that were left to do ended {TRIES} workers, one after "
            f"another; the last one said: {why}; give the nodes more memory, or mend the row that does it. All other "
            "shards that were done are kept"
        )


def _answer(store: Store, job: Job, question: tuple) -> Any:
    match question:
        case "find", keys, most:
            return store.answers.find(keys, most)
        case "file", folder, name, start:
            known = {f.path: f.files for f in job.folders.values()}
            if name not in known.get(folder, ()):
                raise StoreError(f"a worker asked for {name} in {folder}, which is none of the step's files")
            with (Path(folder) / name).open("rb") as file:
                file.seek(start)
                return file.read(BLOCK)
    raise AssertionError(question)
