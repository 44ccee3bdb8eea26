"""What Prefect costs: seconds of a loop that go to it, and of a single step with and without a server.

    python -m bench.prefect_share                    # a piece of the shipped example, as `make demo` runs it whole
    python -m bench.prefect_share --rows 2800 --rounds 3 --steps 100

Each line is a process of its own. "not recorded" names a server that is not there, so that the loop runs without one;
both loops have a fresh store. The difference holds starting the server and waiting for it to write all down.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from flows.server import serving

ROOT = Path(__file__).parents[1]
NOWHERE = "http://127.0.0.1:9/api"


def example(folder: Path, rows: int, rounds: int, steps: int) -> Path:
    """The shipped loop on its first rows."""
    for name, most in (("raw", rows), ("test", max(20, rows // 7))):
        lines = (ROOT / f"examples/snips/{name}.jsonl").read_bytes().splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_bytes(b"".join(lines[:most]))
    config = yaml.safe_load((ROOT / "examples/snips/loop.yaml").read_text())
    config |= {"name": "share", "budget": {"rows": rows // 4, "rounds": rounds, "optimizer_steps": steps}}
    config.pop("spoilt", None)
    (folder / "loop.yaml").write_text(yaml.safe_dump(config))
    return folder / "loop.yaml"


def took(*words: object, **environment: str) -> tuple[float, float]:
    """Seconds of wall time and of the processor that a `thresher` command took; what it says is shown if it fails."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    command = [sys.executable, "-m", "flows.cli", *map(str, words)]
    ran = subprocess.run(command, cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True)
    if ran.returncode not in (0, 3):
        sys.exit(ran.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rows", type=int, default=160, help="rows of the pool")
    asked.add_argument("--rounds", type=int, default=1)
    asked.add_argument("--steps", type=int, default=10, help="optimiser steps of each training")
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        config = example(folder, given.rows, given.rounds, given.steps)
        plain = took("run", config, "--store", folder / "plain", PREFECT_API_URL=NOWHERE)
        recorded = took("run", config, "--store", folder / "recorded")
        with serving(folder / "recorded"):
            seen = took("step", "tokens", "share", "--store", folder / "recorded")
        alone = took("step", "tokens", "share", "--name", "again", "--store", folder / "plain")
        nothing = took("datasets", "--json", "--store", folder / "plain")
    print(f"loop of {given.rows} rows, {given.rounds} round(s), {given.steps} steps;    seconds: wall, processor")
    for what, (wall, processor) in {
        "loop, not recorded": plain,
        "loop, on a server of its own": recorded,
        "thresher datasets": nothing,
        "thresher step, no server": alone,
        "thresher step, a server there": seen,
    }.items():
        print(f"{what:32}{wall:8.1f}{processor:8.1f}")
    more = [now - before for now, before in zip(recorded, plain, strict=True)]
    print(f"Prefect: {more[0]:.1f} s, {more[0] / recorded[0]:.1%} of the wall time; {more[1]:.1f} s of the processor")


if __name__ == "__main__":
    main()
