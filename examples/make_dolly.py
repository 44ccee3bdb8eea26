"""Make raw.jsonl and test.jsonl of `dolly_3k`: instructions that people wrote and answered, some of them held out.

    python examples/make_dolly.py --data FOLDER --seed 0   # FOLDER holds dolly_3k.parquet, and its columns are a line's

A line of the pool:

    {"instruction": "What is the currency of the Cayman Islands?", "input": "", "output": "…", "category": "open_qa"}
"""

import argparse
import random
from pathlib import Path

import polars as pl

from examples.make import write_lines

COLUMNS = ("instruction", "input", "output", "category")
LONGEST = 1000  # characters of a row in all
TEST = 300  # rows held out; no instruction of theirs is in the pool


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="folder that holds the table")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "dolly_3k")
    chosen = options.parse_args()
    draw = random.Random(chosen.seed)
    table = pl.read_parquet(chosen.data / "dolly_3k.parquet").select(COLUMNS)
    length = pl.sum_horizontal(pl.col("instruction", "input", "output").str.len_chars())
    rows = table.filter(length <= LONGEST).to_dicts()
    draw.shuffle(rows)
    held = {row["instruction"] for row in rows[:TEST]}
    test, pool = rows[:TEST], [row for row in rows[TEST:] if row["instruction"] not in held]
    write_lines(chosen.out / "raw.jsonl", pool)
    write_lines(chosen.out / "test.jsonl", test)
    print(f"{len(pool)} lines, {len(test)} test rows")


if __name__ == "__main__":
    main()
