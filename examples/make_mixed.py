"""Make raw.jsonl, test.jsonl and spoilt.jsonl of `mixed`: three sources, the answers of one of them shuffled.

    python examples/make_mixed.py --data FOLDER --seed 0   # FOLDER holds snips, clinc150 and dolly_3k.parquet

A line of the pool:

    {"instruction": "Which of these …?", "input": "play some jazz", "output": "play music", "set": "snips"}
"""

import argparse
import random
from pathlib import Path

import polars as pl

from examples.make import RECIPES, Line, asked, bare, write_lines

ROWS = 800  # of each source
TEST = 350  # held out, of each source whose answers are right
LONGEST = 600  # characters of a row of Dolly in all


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="folder that holds the tables")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "mixed")
    chosen = options.parse_args()
    draw = random.Random(chosen.seed)
    lines, test = [], []
    for name in RECIPES:
        pool, held = requests(name, chosen.data, draw)
        lines += pool
        test += held
    lines += shuffled(chosen.data, draw)
    draw.shuffle(lines)
    write_lines(chosen.out / "raw.jsonl", lines)
    write_lines(chosen.out / "test.jsonl", test)
    wrong = [{"line": n} for n, line in enumerate(lines, 1) if line["set"] == "dolly"]
    write_lines(chosen.out / "spoilt.jsonl", wrong)
    print(f"{len(lines)} lines, {len(wrong)} of them spoilt, {len(test)} test rows")


def requests(name: str, data: Path, draw: random.Random) -> tuple[list[Line], list[Line]]:
    """Rows of SNIPS or CLINC150 with their right answers, and held-out ones, none of which the pool has."""
    recipe = RECIPES[name]
    table = pl.read_parquet(data / recipe.table, columns=["split", "intent", "text"])
    table = table.filter(pl.col("intent").is_in(list(recipe.labels)))
    held = draw.sample(table.filter(pl.col("split") == "test").to_dicts(), TEST)
    seen = {bare(row["text"]) for row in held}
    pool = []
    for row in table.filter(pl.col("split").is_in(recipe.pool)).to_dicts():
        if bare(row["text"]) not in seen:
            seen.add(bare(row["text"]))
            pool.append(asked(row["text"], row["intent"], recipe) | {"set": name})
    return draw.sample(pool, ROWS), [asked(row["text"], row["intent"], recipe) | {"set": name} for row in held]


def shuffled(data: Path, draw: random.Random) -> list[Line]:
    """Rows of Dolly, each with the answer of another."""
    table = pl.read_parquet(data / "dolly_3k.parquet", columns=["instruction", "input", "output"])
    length = pl.sum_horizontal(pl.all().str.len_chars())
    rows = draw.sample(table.filter(length <= LONGEST).unique(maintain_order=True).to_dicts(), ROWS)
    answers = [row["output"] for row in rows[1:] + rows[:1]]
    return [row | {"output": answer, "set": "dolly"} for row, answer in zip(rows, answers, strict=True)]


if __name__ == "__main__":
    main()
