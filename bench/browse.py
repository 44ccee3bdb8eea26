"""Seconds and peak memory of what the browser of datasets and the cards do with a large dataset.

    python -m bench.browse --rows 1000000

Makes a store with rows of Alpaca's length, five columns of scores, a filter that drops a fifth of them and a hundredth
corrected, as steps would leave them: parts of 16,384 rows side by side. Each task is then done by a process of its own,
in which nothing is kept from before; a page is what the server sends. `nothing` is a process that only imports. Where
others work on the machine only the seconds of the processor tell anything.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from storage.schema import ROW, SPOKEN
from storage.store import Manifest, Store

SHARD = 16384
PAGES = {
    "first page": "",
    "last page": "?page={last}",
    "sort": "?sort=clear_confidence&down=1",
    "sort by text": "?sort=response",
    "filter": "?why=clear-filter&min.clear_confidence=0.1&max.clear_confidence=0.12",
    "search": "?q=the+red+word+77777",
    "row": "/row/{middle}",
}
TASKS = ["nothing", *PAGES, "card"]
WORDS = """the of and to in a is that for it as was with be by on not he his but at are this have from or had an they
which one you were her all she there would their we him been has when who will more no if out so said what"""


def make_store(root: Path, rows: int) -> None:
    store, draw = Store(root), np.random.default_rng(0)
    texts = pl.Series([" ".join(draw.choice(WORDS.split(), 90)) for _ in range(400)])
    seed, scored, marked = [], [], []
    for start in range(0, rows, SHARD):
        n = min(SHARD, rows - start)
        number = np.arange(start, start + n)
        asked = pl.DataFrame({"n": number, "text": texts.gather(number % 400), "at": draw.integers(0, 150, n)})
        said = asked.select(
            id=pl.col("n").hash(7).cast(pl.String).str.zfill(20),
            asked=pl.format("{}: {} the red word {}", "n", pl.col("text").str.slice(0, 60), "n"),
            told=pl.col("text").str.slice(pl.col("at"), 270),
        )
        seed.append((store.put_part(f"seed{start}", _rows(said), ROW),))
        scores = pl.DataFrame({"id": said["id"], "clear_confidence": draw.random(n), "base_nll": draw.random(n) * 3})
        scores = scores.with_columns([(pl.col("base_nll") * i).alias(f"bench_score{i}") for i in (1, 2, 3)])
        scored.append((*seed[-1], store.put_part(f"score{start}", scores)))
        low = scores.select("id", reason=pl.format("clear-filter: confidence {} is not over 0.2", "clear_confidence"))
        low = low.with_columns(drop_reason=pl.when(scores["clear_confidence"] < 0.2).then("reason")).drop("reason")
        marked.append((*scored[-1], store.put_part(f"mark{start}", low)))
    some = store.read_shard(marked[0])[: rows // 100]
    new = some.select(ROW.names).with_columns(
        parent_id="id", id=pl.format("{}x", pl.col("id").str.slice(1)), method=pl.lit("clear-correct")
    )
    marked.append((store.put_part("new", new.with_columns(drop_reason=pl.lit(None, pl.String)), ROW),))
    dropped = sum(store.read_shard(s, ["drop_reason"])["drop_reason"].count() for s in marked)
    counts = {"rows": rows + new.height, "live": rows + new.height - dropped, "dropped by clear-filter": dropped}
    config = {"threshold": 0.2}
    store.seal(Manifest("pool", "rows", "import", 1, {}, {}, {}, tuple(seed), counts={"rows": rows, "live": rows}))
    store.seal(
        Manifest("marked", "rows", "clear-correct", 1, config, {}, {"rows": "pool"}, tuple(marked), counts=counts)
    )


def _rows(said: pl.DataFrame) -> pl.DataFrame:
    fields = [pl.lit(None, pl.String).alias(name) for name in SPOKEN]
    spoken = [
        pl.struct(pl.lit(role).alias("role"), pl.col(column).alias("content"), *fields)
        for role, column in (("user", "asked"), ("assistant", "told"))
    ]
    empty = [pl.lit(None, pl.String).alias(name) for name in ("method", "parent_id", "drop_reason")]
    return said.select(
        "id",
        pl.concat_list(spoken).alias("messages"),
        pl.lit("bench").alias("source"),
        *empty,
        pl.lit(0).alias("round"),
    )


def one(task: str, root: Path) -> None:
    store = Store(root)
    if task == "card":
        from flows.card import card
    else:
        from starlette.testclient import TestClient

        from flows.browser.app import browser

        client, rows = TestClient(browser(root)), store.manifest("marked").counts["rows"]
    started, before = time.perf_counter(), time.process_time()
    if task == "card":
        size = len(card(store, "marked", {"browser": "/datasets"}).encode())
    elif task == "nothing":
        size = 0
    else:
        address = "/datasets/marked" + PAGES[task].format(last=(rows - 1) // 50 + 1, middle=rows // 2)
        answer = client.get(address)
        assert answer.status_code == 200, answer.text
        size = len(answer.content)
    seconds, cpu, again = time.perf_counter() - started, time.process_time() - before, 0.0
    if task in PAGES:
        before = time.process_time()
        client.get(address)
        again = time.process_time() - before
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # since it began
    print(json.dumps({"seconds": seconds, "cpu": cpu, "again": again, "peak_mb": peak, "kb": size / 1000}))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--store", type=Path, help="keep the store in this folder, or take the one that is there")
    options.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.task:
        return one(chosen.task, chosen.store)
    with tempfile.TemporaryDirectory() as temporary:
        folder, began = chosen.store or Path(temporary), time.perf_counter()
        if not (folder / "datasets").exists():
            make_store(folder, chosen.rows)
        size = sum(path.stat().st_size for path in folder.glob("parts/*/*")) / 2**20
        print(f"{chosen.rows:,} rows in a store of {size:,.0f} MB, made in {time.perf_counter() - began:.0f} s")
        for task in TASKS:
            words = [sys.executable, "-m", "bench.browse", "--task", task, "--store", str(folder)]
            said = json.loads(
                subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
            )
            told = f"{said['seconds']:6.2f} s, of the processor {said['cpu']:5.2f}"
            told += f", again {said['again']:5.2f}" if task in PAGES else " " * 13
            print(f"{task:12} {told}  {said['peak_mb']:6,.0f} MB at most {said['kb']:5.0f} kB")


if __name__ == "__main__":
    main()
