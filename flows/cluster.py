"""More machines, by Ray: the shards of a step are worked on by actors, each with engines of its own.

Inside the one process that runs the step: no shard is a task of Prefect's, and what sees all rows at once stays here.
"""

import atexit
import contextlib
import importlib.util
import logging
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from pathlib import Path

import polars as pl

from curation.step import Step, StepConfig
from flows import engines
from flows.cluster_worker import Folder, Job
from flows.crew import Crew, no_cluster, reaching
from flows.engines import PACKAGED, EngineError, EngineSpec, adapter_folder, identity
from flows.own_steps import ConfigError, files_behind
from flows.run import Piece, Work, Worked, by_shard
from flows.spread import spread
from storage.store import Store
from synthesis.fingerprint import folder_digest

_ADDRESS = re.compile(r"local|auto|(ray://)?(?P<host>[^\s:/@]+|\[[0-9a-fA-F:]+\]):(?P<port>\d{1,5})")


def elsewhere(address: str | None, step: Step, models: Mapping[str, EngineSpec]) -> Work | None:
    """How the shards of a step are worked on by the cluster at an address; None for what stays in this process.

    That is a step that sees all rows at once; one that asks a server, which is the limit itself, and whose budget and
    key are here; and all in a process that was started to work beside others.
    """
    served = any(spec.kind == "openai" for spec in models.values())
    if address is None or not by_shard(step) or served or parent_process() is not None:
        return None
    return partial(_work, address, models)


def check_address(address: str | None) -> str | None:
    """The address, if it is one and somebody listens there; ConfigError or EngineError with the remedy."""
    if address is None:
        return None
    if not (said := _ADDRESS.fullmatch(address)):
        raise ConfigError(f"ray: {address!r} is no address; say local, auto, host:port or ray://host:port")
    if importlib.util.find_spec("ray") is None:
        raise EngineError("Ray is not installed; `pip install 'thresher[ray]'`, here and on every node of the cluster")
    if said["host"]:
        try:
            socket.create_connection((said["host"].strip("[]"), int(said["port"])), timeout=5).close()
        except (OSError, OverflowError) as why:
            raise no_cluster(address, str(why)) from None
    return address


def _work(
    address: str,
    models: Mapping[str, EngineSpec],
    store: Store,
    step: Step,
    config: StepConfig,
    pieces: Sequence[Piece],
    tables: Mapping[str, pl.DataFrame],
) -> Iterator[Worked]:
    if pieces:
        cards = max([1, *(getattr(spec.settings, "tensor_parallel", 1) for spec in models.values())])
        yield from spread(_crew(address, cards if models else 0), store, job_of(step, config, models, tables), pieces)


def job_of(step: Step, config: StepConfig, models: Mapping[str, EngineSpec], tables: Mapping[str, pl.DataFrame]) -> Job:
    return Job(
        step=step.name,
        code=step.code,
        own=files_behind(step),
        settings=config.model_dump(mode="json"),
        tables=tables,
        models=models,
        identities={role: identity(spec) for role, spec in models.items()},
        folders={(role, what): f for role, spec in models.items() for what, f in _folders(spec).items()},
    )


def _folders(spec: EngineSpec) -> dict[str, Folder]:
    """What of a spec is a folder of this machine, and no name."""
    found = {"adapter": adapter_folder(spec)}
    if spec.model not in ("nano", PACKAGED) and (model := Path(spec.model).expanduser()).is_dir():
        found["model"] = model
    return {what: _folder(path.resolve()) for what, path in found.items() if path}


def _folder(path: Path) -> Folder:
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return Folder(str(path), folder_digest(path), tuple(files))


# ---- the cluster, of which a process knows one at a time

_CREWS: dict[tuple[str, int], Crew] = {}


def _crew(address: str, cards: int) -> Crew:
    """The workers of an address, kept for the next step; with so many GPUs each, where the cluster has any."""
    import ray

    _connect(address)
    with reaching(address):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cards = cards if places(nodes, 1) else 0
    if cards and (address, cards) not in _CREWS:  # what holds GPUs now would be in the way, here and there
        engines.release()
    if not (room := places(nodes, cards)):
        what = f"no node with {cards} GPUs" if cards else "no CPU"
        raise EngineError(f"the cluster at {address} has {what}; start a node there with `ray start`")
    crew = _CREWS.setdefault((address, cards), Crew(ray, address, cards))
    crew.room = room
    return crew


def places(nodes: Iterable[Mapping[str, float]], cards: int) -> int:
    """How many workers nodes have room for, by what each has: one on each CPU, or on so many GPUs of one node."""
    return sum(int(node.get("GPU", 0) // cards if cards else node.get("CPU", 0)) for node in nodes)


@dataclass(frozen=True, slots=True)
class _Joined:
    address: str
    folder: Path | None  # of a cluster that was started for this process


_JOINED: list[_Joined] = []


def _connect(address: str) -> None:
    if any(j.address == address for j in _JOINED):
        return
    check_address(address)
    for tries_left in (1, 0) if address == "local" else (0,):  # Ray gives a node 30 s to start: few on a busy machine
        leave()
        try:
            return _init(address)
        except KeyboardInterrupt:
            leave()
            raise
        except Exception as why:  # each way to fail has an error of its own
            leave()
            if not tries_left:
                raise no_cluster(address, str(why)) from None


def _init(address: str) -> None:
    """Without Ray's dashboard, usage reports, logs on the terminal, and files in the home folder."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    folder, how = None, {}
    if address == "local":
        os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")  # Ray's 60 are few on a busy machine
        if "RAY_AUTH_TOKEN" not in os.environ and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray writes one into ~/.ray
        folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets lie in it: a path is 107 letters at most
        how = {"include_dashboard": False, "_temp_dir": str(folder)}
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    _JOINED.append(_Joined(address, folder))
    ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR, **how)


def leave() -> None:
    """End the workers, and a cluster that was started for this process."""
    end_workers()
    while _JOINED:
        import ray

        joined = _JOINED.pop()
        with contextlib.suppress(Exception):
            ray.shutdown()
        if joined.folder:
            shutil.rmtree(joined.folder, ignore_errors=True)


def end_workers() -> None:
    while _CREWS:
        _CREWS.popitem()[1].end()


engines.ELSEWHERE.append(end_workers)
atexit.register(leave)
