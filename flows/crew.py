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
            actor = self.ray.remote(_actor()).options(
                **how, max_concurrency=2, scheduling_strategy="SPREAD", runtime_env={"env_vars": _ENV}
            )
            self.workers.append(worker := _Worker(actor.remote()))
            self.heard[worker.actor.meet.remote()] = worker
        return [worker for worker in self.workers if worker.idle]

    def share(self, message: Any) -> Any:
        return self.ray.put(message)

    def send(self, worker: _Worker, message: Any) -> None:
        worker.idle = False
        self.heard[worker.actor.turn.remote(message)] = worker

    def said(self) -> Iterator[tuple[_Worker, Any]]:
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
            self.lost = 0 if isinstance(said, Done) else self.lost
            if worker.met:
                yield worker, said
            else:
                self._meet(worker, said)

    def rest(self) -> None:
        late = {reference: worker for reference, worker in self.heard.items() if worker.met}
        for reference, worker in late.items():
            del self.heard[reference]
            self.workers.remove(worker)
            self.ray.kill(worker.actor)

    def end(self) -> None:
        """Let the workers free what they hold; those that cannot at once are killed."""
        met = [worker.actor.close.remote() for worker in self.workers if worker.met]
        with contextlib.suppress(Exception):
            self.ray.wait(met, num_returns=len(met), timeout=10.0)
        for worker in self.workers:
            with contextlib.suppress(Exception):
                self.ray.kill(worker.actor)
        self.workers, self.heard = [], {}

    def _meet(self, worker: _Worker, said: Mapping[str, str]) -> None:
        node, mine = said["node"], editions()
        if "missing" in said:
            raise EngineError(f"node {node} has no Thresher ({said['missing']}); install it there, as it is here")
        if other := [
            f"{name} is {said.get(name)} there and {mine[name]} here" for name in mine if said[name] != mine[name]
        ]:
            raise EngineError(
                f"node {node} would decide otherwise than this machine: {', '.join(other)}; install the same Thresher "
                "with the same requirements.lock on every node"
            )
        worker.met = True

    def _bury(self, worker: _Worker, why: Exception) -> None:
        self.workers.remove(worker)
        with contextlib.suppress(Exception):
            self.ray.kill(worker.actor)  # it may live, out of reach: its shard goes to another
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
            except ImportError as why:
                return {"node": platform.node(), "missing": str(why)}
            self.worker = Worker()
            return {"node": platform.node(), **editions()}

        def turn(self, message: Any) -> Any:
            return self.worker.turn(message)

        def close(self) -> None:
            self.worker.close()

    return Thresher
