"""Most memory that a step takes on a dataset of one size and on one four times as large.

    python -m bench.memory --rows 1000000

A step that sees a shard at a time (`split`, `gopher-quality`) should take the same for both; one that sees the dataset
takes as much more as the columns that it asked for are larger: `random` reads no text, `longest` all of it. The store
is that of `bench.browse`, in parts of 16,384 rows. Each step has a process of its own; `nothing` only imports.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.browse import make_store
from curation.step import find_step
from flows import steps  # noqa: F401  registers every step
from flows.run import run_step
from storage.store import Store

STEPS = {
    "nothing": {},
    "split": {},
    "gopher-quality": {},
    "random": {"rows": 1000},
    "choose": {"rows": 1000, "scores": {"clear_confidence": 1.0}},
    "longest": {"rows": 1000},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.one:
        return one(chosen.one[0], Path(chosen.one[1]))
    found = {rows: measured(rows) for rows in (chosen.rows, 4 * chosen.rows)}
    few, many = found.values()
    for name in STEPS:
        more = (many[name]["peak"] - few[name]["peak"]) * 2**20 / (3 * chosen.rows)
        told = ", ".join(f"{said[name]['peak']:,.0f} MB in {said[name]['cpu']:.0f} s" for said in found.values())
        print(f"{name:14} {told} of the processor; {more:,.0f} bytes a row more")


def measured(rows: int) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        make_store(Path(folder), rows)
        words = [sys.executable, "-m", "bench.memory", "--one"]
        ran = {name: subprocess.run([*words, name, folder], stdout=subprocess.PIPE, check=True) for name in STEPS}
    return {name: json.loads(done.stdout.splitlines()[-1]) for name, done in ran.items()}


def one(name: str, folder: Path) -> None:
    if name != "nothing":
        step = find_step(name)
        run_step(Store(folder), step, step.config(**STEPS[name]), "marked")
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    print(json.dumps({"peak": peak, "cpu": time.process_time()}))


if __name__ == "__main__":
    main()
