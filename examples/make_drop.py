"""Make raw.jsonl, test.jsonl and spoilt.jsonl of `drop`: questions on short passages, a fifth answered by any span.

    python examples/make_drop.py --data FOLDER --seed 0   # FOLDER holds drop_dev.parquet: context, completion, ref_text

A line of the pool:

    {"instruction": "Passage: In the city, the age distribution …\\nQuestion: Which age group …?", "output": "25 to 44"}
"""

import argparse
import random
import string
from pathlib import Path

import polars as pl

from curation.noise import span
from examples.make import write_lines

LONGEST = 700  # characters of a passage
TEST = 200  # questions held out, on passages of their own; the last passage is taken whole
POOL = 500
SPOILT = 0.2  # as in CLEAR's experiments

Line = dict[str, str | int]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="folder that holds the table")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path(__file__).parent / "drop")
    chosen = options.parse_args()
    draw = random.Random(chosen.seed)
    rows = questions(pl.read_parquet(chosen.data / "drop_dev.parquet"))
    passages = sorted(set(rows["passage"]))
    draw.shuffle(passages)
    held: list[str] = []
    while rows.filter(pl.col("passage").is_in(held)).height < TEST:
        held.append(passages.pop())
    test = rows.filter(pl.col("passage").is_in(held)).to_dicts()
    pool = draw.sample(rows.filter(~pl.col("passage").is_in(held)).to_dicts(), POOL)
    wrong = spoil(pool, draw)
    write_lines(chosen.out / "raw.jsonl", [asked(row) for row in pool])
    write_lines(chosen.out / "test.jsonl", [asked(row) for row in test])
    write_lines(chosen.out / "spoilt.jsonl", wrong)
    print(f"{len(pool)} lines, {len(wrong)} spoilt, {len(test)} test rows on {len(held)} passages of their own")


def questions(table: pl.DataFrame) -> pl.DataFrame:
    """Passage, question, answer and all accepted answers, where the passage is short and says the answer."""
    said = table.select(
        passage=pl.col("context").str.extract(r"(?s)^Passage: (.*)\nQuestion: "),
        question=pl.col("context").str.extract(r"(?s)\nQuestion: (.*)\nAnswer:$"),
        answer=pl.col("completion").str.strip_chars(),
        accepted="ref_text",
    )
    lower = {name: pl.col(name).str.to_lowercase() for name in ("passage", "answer")}
    short = pl.col("passage").str.len_chars() <= LONGEST
    return said.filter(short, lower["passage"].str.contains(lower["answer"], literal=True)).unique(maintain_order=True)


def spoil(rows: list[dict[str, str]], draw: random.Random) -> list[Line]:
    """Answer a share of the rows with another piece of their passage, as long as the answer; says which and how."""
    wrong = []
    for place in sorted(draw.sample(range(len(rows)), round(SPOILT * len(rows)))):
        row = rows[place]
        right = {bare(text) for text in row["accepted"].split("|")}
        pieces = [p.strip(f"{string.punctuation} ") for p in span(row["passage"], row["answer"], draw.random())]
        given = next(piece for piece in pieces if bare(piece) not in {"", *right})
        wrong.append({"line": place + 1, "true": row["answer"], "given": given})
        row["answer"] = given
    return wrong


def asked(row: dict[str, str]) -> Line:
    return {"instruction": f"Passage: {row['passage']}\nQuestion: {row['question']}", "output": row["answer"]}


def bare(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


if __name__ == "__main__":
    main()
