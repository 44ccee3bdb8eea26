"""What a second worker brings: rows a second of a step with one and two single-threaded workers of a Ray cluster.

    python -m bench.cluster                                # gopher-repetition, in a few minutes
    python -m bench.cluster --step perplexity --rows 1200  # with the embedded model
    python -m bench.cluster --rows 2000 --shards 8         # a try

Two nodes of one core each are simulated on this machine; the second joins for the second measurement. Beside them the
machine's own limit: the same step in one and in two bare processes that share nothing and have their rows in memory.
What Ray's way adds is in the first numbers (rows sent, columns sent back, parts written and hashed); what starting
workers and loading a model takes is left out of both, and said. Medians of all turns; the bare ones go by turns with
the others.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path

for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS"):
    os.environ[name] = "1"  # before polars and torch look; here, and in all that is started from here
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_register_timeout_seconds": "300"}

import polars as pl  # noqa: E402

from curation.step import STEPS  # noqa: E402
from flows import cluster, steps  # noqa: E402, F401
from flows.engines import EngineSpec, leases  # noqa: E402
from flows.models import lend  # noqa: E402
from flows.run import run_step  # noqa: E402
from storage.schema import ROW, message  # noqa: E402
from storage.store import Manifest, Store  # noqa: E402

SENTENCE = "the quick brown fox jumps over a lazy dog while rain falls on old red roofs and nobody counts the drops"
WORDS = tuple(SENTENCE.split())


def frames(rows: int, shards: int, words: int) -> list[pl.DataFrame]:
    """Rows whose answers have so many words, none the same as another, in shards of one size."""
    said = []
    for i in range(rows):
        text = " ".join(WORDS[(i * 7 + k * (i % 11 + 1)) % len(WORDS)] for k in range(words))
        said.append([message("user", f"Tell me about number {i}."), message("assistant", f"{i}: {text}.")])
    whole = pl.DataFrame({"id": [f"r{i}" for i in range(rows)], "messages": said}).with_columns(
        source=pl.lit("bench"),
        method=pl.lit(None, pl.String),
        parent_id=pl.lit(None, pl.String),
        round=pl.lit(0, pl.Int32),
        drop_reason=pl.lit(None, pl.String),
    )
    return [whole[i::shards] for i in range(shards)]


def by_ray(step: str, address: str, shards: list[pl.DataFrame]) -> float:
    """Seconds that the step takes on the cluster, from a store to a store."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        store, its = Store(folder), STEPS[step]
        parts = [(store.put_part(f"pool{i}", frame, ROW),) for i, frame in enumerate(shards)]
        store.seal(Manifest("pool-1", "rows", "import", 1, {}, {}, {}, tuple(parts)))
        config, lease = lend(its, its.config(), models(step), store, ray=address)
        began = time.monotonic()
        run_step(store, its, config, "pool-1", {}, lease)
        return time.monotonic() - began
    finally:
        shutil.rmtree(folder)


def models(step: str) -> dict[str, EngineSpec]:
    return {role: EngineSpec() for role in STEPS[step].roles}


def bare(step: str, shards: list[pl.DataFrame], processes: int) -> float:
    """Seconds that bare processes take for the same shards, each for its share."""
    fresh = multiprocessing.get_context("spawn")
    start, end = fresh.Barrier(processes + 1), fresh.Barrier(processes + 1)
    shares = [shards[i::processes] for i in range(processes)]
    running = [fresh.Process(target=_alone, args=(step, share, start, end)) for share in shares]
    for process in running:
        process.start()
    start.wait()
    began = time.monotonic()
    end.wait()
    took = time.monotonic() - began
    for process in running:
        process.join()
    return took


def _alone(step: str, shards: list[pl.DataFrame], start: Barrier, end: Barrier) -> None:
    its, folder = STEPS[step], Path(tempfile.mkdtemp(prefix="bench-"))
    with leases(models(step), Store(folder)).open() as engines:
        its(shards[0].head(8), its.config(), engines)
        start.wait()
        for shard in shards:
            its(shard, its.config(), engines)
        end.wait()
    shutil.rmtree(folder)


@contextmanager
def nodes() -> Iterator[tuple[str, Callable[[], object]]]:
    """The address of a cluster of one node, and what adds another."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    Path("/tmp/ray").mkdir(exist_ok=True)  # where Cluster writes an address, wherever its nodes have their files
    there = Cluster()
    try:
        there.add_node(num_cpus=1, include_dashboard=False, temp_dir=folder)
        yield there.address, partial(there.add_node, num_cpus=1)
    finally:
        cluster.leave()
        there.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--step", default="gopher-repetition", help="one that sees one shard at a time")
    asked.add_argument("--rows", type=int, default=40_000)
    asked.add_argument("--shards", type=int, default=16)
    asked.add_argument("--words", type=int, default=120, help="in an answer")
    asked.add_argument("--repeats", type=int, default=3)
    said = asked.parse_args()
    shards = frames(said.rows, said.shards, said.words)
    warm = frames(8 * said.shards, said.shards, 20)
    took: dict[tuple[str, int], list[float]] = {}
    with nodes() as (address, another):
        for workers in (1, 2):
            if workers == 2:
                another()
            began = time.monotonic()
            by_ray(said.step, address, warm)
            print(f"{workers} worker(s): first {len(warm) * 8} rows after {time.monotonic() - began:.1f} s", flush=True)
            for _ in range(said.repeats):
                took.setdefault(("Ray", workers), []).append(by_ray(said.step, address, shards))
                took.setdefault(("bare", workers), []).append(bare(said.step, shards, workers))
    print(f"\n{said.step}, {said.rows:,} rows of {said.words} words in {said.shards} shards; rows a second")
    print(f"{'':<6}{'one':>10}{'two':>10}{'ratio':>8}")
    for what in ("Ray", "bare"):
        one, two = (said.rows / statistics.median(took[what, n]) for n in (1, 2))
        print(f"{what:<6}{one:>10,.0f}{two:>10,.0f}{two / one:>8.2f}")


if __name__ == "__main__":
    main()
