"""Work in several processes, one for each accelerator; its tasks belong to the flow run that started them."""

import multiprocessing.queues
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager

import cloudpickle
from prefect.context import hydrated_context, serialize_context

from flows.gpus import accelerators

_ENTERED = ExitStack()  # what a process stays inside of as long as it lives


@contextmanager
def side_by_side(workers: int) -> Iterator[Executor]:
    """An executor of fresh processes. Each has a card of its own where there are as many, and its share of the cores.

    They end with this process, however it ends, and at once when it is interrupted.
    """
    fresh, cards = multiprocessing.get_context("spawn"), accelerators()
    places: multiprocessing.queues.SimpleQueue[str] = fresh.SimpleQueue()
    for worker in range(workers):
        places.put(cards[worker % len(cards)] if cards else "")
    given = (places, cloudpickle.dumps(serialize_context()))
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    with _environment(OMP_NUM_THREADS=str(max(1, threads // workers))):
        executor = ProcessPoolExecutor(workers, fresh, _settle, given)
        try:
            yield executor
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        finally:
            executor.shutdown(cancel_futures=True)


def _settle(places: "multiprocessing.queues.SimpleQueue[str]", context: bytes) -> None:
    """What a process does before its first work, and before torch looks for cards."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one decides
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    if card := places.get():
        os.environ["CUDA_VISIBLE_DEVICES"] = card
    _ENTERED.enter_context(hydrated_context(cloudpickle.loads(context)))


@contextmanager
def _environment(**changes: str) -> Iterator[None]:
    """What the processes started inside see."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
