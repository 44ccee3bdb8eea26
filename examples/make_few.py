"""A few right rows of an example's pool: seed50.jsonl of snips, and other draws for measurements.

python examples/make_few.py examples/snips 50 --seed 0 > examples/snips/seed50.jsonl
"""

import argparse
import json
import random
import sys
from pathlib import Path


def few(folder: Path, rows: int, seed: int) -> list[str]:
    """Lines drawn from those of raw.jsonl that are whole, right, said once, and in no held-out row, in their order."""
    spoilt = {json.loads(line)["line"] for line in (folder / "spoilt.jsonl").open(encoding="utf-8")}
    seen = {_said(json.loads(line)) for line in (folder / "test.jsonl").open(encoding="utf-8")}
    right: list[str] = []
    for number, raw in enumerate((folder / "raw.jsonl").read_bytes().splitlines(), 1):
        try:
            said = json.loads(raw.decode("utf-8"))
        except ValueError:  # cut off, or Latin-1
            continue
        whole = bool((said.get("output") or "").strip()) and len(raw) < 10_000
        if number not in spoilt and whole and _said(said) not in seen:
            right.append(raw.decode("utf-8"))
            seen.add(_said(said))
    kept = sorted(random.Random(seed).sample(range(len(right)), rows))
    return [right[i] for i in kept]


def _said(row: dict[str, str]) -> str:
    return "".join(c for c in row.get("input", "").casefold() if c.isalnum())


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("rows", type=int)
    options.add_argument("--seed", type=int, default=0)
    told = options.parse_args()
    sys.stdout.write("".join(f"{line}\n" for line in few(told.folder, told.rows, told.seed)))
