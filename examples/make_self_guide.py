"""Make the two tasks of `self_guide`: a few right rows of each and a held-out set, out of Super-NaturalInstructions.

    python examples/make_self_guide.py --data FOLDER --seed 0   # FOLDER holds super_ni.parquet

FOLDER's table has the columns `task`, `definition`, `input` and `outputs`; of several outputs the first is the answer.
"""

import argparse
import random
from pathlib import Path

import polars as pl

from examples.make import Line, write_lines

TASKS = {"esnli": "task642_esnli_classification", "openpi": "task1631_openpi_answer_generation"}
FEW, HELD = 60, 240


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="folder that holds the table")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "self_guide")
    chosen = options.parse_args()
    table = pl.read_parquet(chosen.data / "super_ni.parquet")
    for name, task in TASKS.items():
        lines = rows(table.filter(pl.col("task") == task))
        drawn = random.Random(chosen.seed).sample(lines, FEW + HELD)
        write_lines(chosen.out / f"{name}.jsonl", drawn[:FEW])
        write_lines(chosen.out / f"{name}-test.jsonl", drawn[FEW:])
        print(f"{name}: {FEW} of {len(lines):,} rows, {HELD} held out")


def rows(table: pl.DataFrame) -> list[Line]:
    """Each input once, as a line of the Alpaca form."""
    said = table.unique("input", keep="first", maintain_order=True).to_dicts()
    asked = [" ".join(row["definition"].split()) for row in said]
    lines = ["\n".join(part.strip() for part in row["input"].strip().splitlines()) for row in said]
    return [
        {"instruction": a, "input": i, "output": row["outputs"][0].strip()}
        for a, i, row in zip(asked, lines, said, strict=True)
    ]


if __name__ == "__main__":
    main()
