"""Workers of a Ray cluster: begun, sent to, listened to, found dead, ended."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flows.cluster_worker import Done, editions
from flows.engines import EngineError
from flows.progress import say
from flows.spread import TRIES, Gone

_PATIENCE = 20.0  # seconds without a worker before it is said
_ENV = {"TOKENIZERS_PARALLELISM": "false", "POLARS_MAX_THREADS": "1", "RAYON_NUM_THREADS": "1"}  # a worker is one core


def no_cluster(address: str, why: str) -> EngineError:
    """The one line about an address at which there is no cluster, or none any more."""
    told = " ".join(why.split())[:300]
    remedy = {
        "local": "is there enough memory and room in /tmp?",
        "auto": "start one with `ray start --head`, or say local, or its host:port",
    }
    tried = (
        "check the address, and that this machine is a node (`ray start --address host:port`); or say ray://host:port"
    )
    return EngineError(f"there is no Ray cluster at {address} ({told}); {remedy.get(address, tried)}")


@contextlib.contextmanager
def reaching(address: str) -> Iterator[None]:
    """Calls of Ray's, each of which fails in ways of its own where the cluster is gone; EngineError with the remedy."""
    try:
        yield
    except Exception as why:
        raise no_cluster(address, f"{type(why).__name__}: {why}") from why


@dataclass(eq=False, slots=True)
class _Worker:
    actor: Any
    met: bool = False  # it has said which Thresher it is
    idle: bool = False


@dataclass(eq=False, slots=True)
class Crew:
    """Satisfies `flows.spread.Crew`: so many actors as the cluster has room for, each of a core or of its GPUs."""

    ray: Any
    address: str
    cards: int
    room: int = 0
    workers: list[_Worker] = field(default_factory=list)
    heard: dict[Any, _Worker] = field(default_factory=dict)  # what is on its way, by its reference
    lost: int = 0  # workers that died since one has done something
    waiting: float | None = None  # since when there is none

    def staff(self, wanted: int) -> list[_Worker]:
        while len(self.workers) < min(wanted, self.room):
            how = {"num_gpus": self.cards, "num_cpus": 0} if self.cards else {"num_cpus": 1}
            with reaching(self.address):
                actor = self.ray.remote(_actor()).options(
                    **how, max_concurrency=2, scheduling_strategy="SPREAD", runtime_env={"env_vars": _ENV}
                )
                self.workers.append(worker := _Worker(actor.remote()))
                self.heard[worker.actor.meet.remote()] = worker
        return [worker for worker in self.workers if worker.idle]

    def share(self, message: Any) -> Any:
        with reaching(self.address):
            return self.ray.put(message)

    def send(self, worker: _Worker, message: Any) -> None:
        worker.idle = False
        with reaching(self.address):
            self.heard[worker.actor.turn.remote(message)] = worker

    def said(self) -> Iterator[tuple[_Worker, Any]]:
        with reaching(self.address):
            ready, _ = self.ray.wait(list(self.heard), num_returns=1, timeout=1.0)
            self._patience()
        for reference in ready:
            worker = self.heard.pop(reference)
            worker.idle = True
            try:
                said = self.ray.get(reference)
            except self.ray.exceptions.RayTaskError as why:
                raise EngineError(f"a worker of the cluster cannot take its work: {why.cause!r}") from why
            except self.ray.exceptions.RayError as why:
                self._bury(worker, why)
                yield worker, Gone(" ".join(str(why).split())[:300])
                continue
            except ConnectionError as why:  # of ray://
                raise no_cluster(self.address, str(why)) from why
            self.lost = 0 if isinstance(said, Done) else self.lost
            if worker.met:
                yield worker, said
            else:
                self._meet(worker, said)

    def rest(self) -> None:
        late = {reference: worker for reference, worker in self.heard.items() if worker.met}
        for reference in late:
            del self.heard[reference]
        self._close(list(late.values()))

    def end(self) -> None:
        self._close(self.workers)
        self.heard = {}

    def _close(self, workers: list[_Worker], seconds: float = 10.0) -> None:
        """Let workers free what they hold, and their files; those that cannot in time are killed as they are."""
        with contextlib.suppress(Exception):
            closed = [worker.actor.close.remote() for worker in workers if worker.met]
            self.ray.wait(closed, num_returns=len(closed), timeout=seconds)
        for worker in workers:
            with contextlib.suppress(Exception):
                self.ray.kill(worker.actor)
        self.workers = [worker for worker in self.workers if worker not in workers]

    def _meet(self, worker: _Worker, said: Mapping[str, str]) -> None:
        node, mine = said["node"], editions()
        if "missing" in said:
            raise EngineError(f"node {node} lacks Thresher or a library ({said['missing']}); install it as it is here")
        if other := [
            f"{name} is {said.get(name)} there and {mine[name]} here" for name in mine if said[name] != mine[name]
        ]:
            raise EngineError(
                f"node {node} would decide otherwise than this machine: {', '.join(other)}; install the same Thresher "
                "with the same requirements.lock on every node"
            )
        worker.met = True

    def _bury(self, worker: _Worker, why: Exception) -> None:
        self._close([worker], 2.0)  # it may live, out of reach: its shard goes to another
        self.lost += 1
        if self.lost > 2 * self.room + TRIES:
            raise EngineError(f"workers of the cluster at {self.address} die before they have done anything: {why}")

    def _patience(self) -> None:
        if any(worker.met for worker in self.workers):
            self.waiting = None
        elif self.waiting is None:
            self.waiting = time.monotonic()
        elif self.waiting and time.monotonic() - self.waiting > _PATIENCE:
            self.waiting = 0  # said once
            free = self.ray.available_resources()
            what = "GPU" if self.cards else "CPU"
            say(f"waiting for a worker: of the cluster's {self.room} places, {free.get(what, 0):g} {what} are free now")


def _actor() -> type:
    """The class of the actors. It is sent to the nodes as it stands here, so that one without Thresher can say so."""

    class Thresher:
        def __init__(self) -> None:
            self.worker = None

        def meet(self) -> dict[str, str]:
            import platform

            try:
                from flows.cluster_worker import Worker, editions

                said = {"node": platform.node(), **editions()}
            except ImportError as why:  # a library whose edition is asked for is not there: one too
                return {"node": platform.node(), "missing": str(why)}
            self.worker = Worker()
            return said

        def turn(self, message: Any) -> Any:
            return self.worker.turn(message)

        def close(self) -> None:
            self.worker.close()

    return Thresher
