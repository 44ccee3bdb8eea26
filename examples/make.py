"""Make raw.jsonl, test.jsonl and spoilt.jsonl of an example: a pool as people have them, the truth kept beside it.

    python examples/make.py snips --data FOLDER --seed 0      # FOLDER holds snips.parquet: split, intent, text

A line of the pool:

    {"instruction": "Which of these does the request ask for: …?", "input": "add clem burke to Pre-Party R&B Jams",
     "output": "add to playlist", "annotator": "Noor"}
"""

import argparse
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from training.nano.labels import HELD_OUT_INTENTS


@dataclass(frozen=True, slots=True)
class Recipe:
    table: str
    pool: tuple[str, ...]  # splits that the pool is drawn from; `test` is held out
    labels: dict[str, str]  # what an intent of the table is called in the pool
    lines: int

    @property
    def instruction(self) -> str:
        return f"Which of these does the request ask for: {', '.join(self.labels.values())}?"

    @property
    def copies(self) -> int:
        return round(COPIES * self.lines)


RECIPES = {
    "snips": Recipe(
        table="snips.parquet",
        pool=("train",),
        labels={
            "AddToPlaylist": "add to playlist",
            "BookRestaurant": "book restaurant",
            "GetWeather": "get weather",
            "PlayMusic": "play music",
            "RateBook": "rate book",
            "SearchCreativeWork": "search creative work",
            "SearchScreeningEvent": "search screening event",
        },
        lines=2800,
    ),
    # Small as it is, all of it is used: 1,800 requests and 56 copies.
    "clinc15": Recipe(
        table="clinc150.parquet",
        pool=("train", "val"),
        labels={intent: intent.replace("_", " ") for intent in HELD_OUT_INTENTS},
        lines=1856,
    ),
}
ANNOTATORS = ("Noor", "Tomasz", "Abena", "Lucía", "Jun", "Maren")

COPIES = 0.03  # share of the lines, half of them exact
SPOILT = 0.35  # share of the answers that are wrong
LATIN1 = 8  # usable lines in the wrong encoding, where as many have an accent
BROKEN = {"truncated": 12, "empty answer": 9, "missing field": 9, "giant": 1}  # lines that cannot become a row
GIANT = 200_000  # characters

Line = dict[str, str | bool]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("name", choices=RECIPES)
    options.add_argument("--data", type=Path, required=True, help="folder that holds the table")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, help="another folder than the one of that name here")
    chosen = options.parse_args()
    recipe = RECIPES[chosen.name]
    out = chosen.out or Path(__file__).parent / chosen.name
    table = pl.read_parquet(chosen.data / recipe.table, columns=["split", "intent", "text"])
    table = table.filter(pl.col("intent").is_in(list(recipe.labels)))
    test = table.filter(pl.col("split") == "test")
    draw = random.Random(chosen.seed)

    usable, spare = draw_rows(table.filter(pl.col("split").is_in(recipe.pool)), test, recipe, draw)
    spoil(usable, recipe, draw)
    usable += copies(usable, recipe, draw)
    lines = [(line, json.dumps(public(line), ensure_ascii=False).encode()) for line in usable]
    lines = in_latin1(lines) + [(None, raw) for raw in broken(spare, draw)]
    draw.shuffle(lines)

    (out / "raw.jsonl").write_bytes(b"".join(raw + b"\n" for _, raw in lines))
    wrong = [
        {"line": n, "true": line["true"], "given": line["output"]}
        for n, (line, _) in enumerate(lines, 1)
        if line and line["true"] != line["output"]
    ]
    write_lines(out / "spoilt.jsonl", wrong)
    write_lines(out / "test.jsonl", [asked(r["text"], r["intent"], recipe) for r in test.to_dicts()])
    told = f"{len(usable)} usable, {recipe.copies} copies, {len(wrong)} spoilt, {test.height} test rows"
    print(f"{len(lines)} lines, {told}")


def draw_rows(
    pool: pl.DataFrame, test: pl.DataFrame, recipe: Recipe, draw: random.Random
) -> tuple[list[Line], list[Line]]:
    """The usable rows and those to be broken. Every row that says what a test row says is among the usable."""
    seen = {bare(text) for text in test["text"]}
    every = [
        asked(r["text"], r["intent"], recipe)
        | {"annotator": draw.choice(ANNOTATORS)}
        | {"true": recipe.labels[r["intent"]]}
        for r in pool.to_dicts()
    ]
    leaked = [line for line in every if bare(line["input"]) in seen]
    others = [line for line in every if bare(line["input"]) not in seen]
    draw.shuffle(others)
    n_broken = sum(BROKEN.values())
    n_drawn = recipe.lines - recipe.copies - n_broken - len(leaked)
    return leaked + others[:n_drawn], others[n_drawn : n_drawn + n_broken]


def spoil(lines: list[Line], recipe: Recipe, draw: random.Random) -> None:
    """Give a share of the lines another of the labels, each of the others as likely."""
    for line in draw.sample(lines, round(SPOILT * len(lines))):
        line["output"] = draw.choice([label for label in recipe.labels.values() if label != line["true"]])


def copies(lines: list[Line], recipe: Recipe, draw: random.Random) -> list[Line]:
    """Copies of lines, every second one with a small edit; a copy keeps the answer of its original, right or wrong."""
    made = []
    for n, line in enumerate(draw.sample(lines, recipe.copies)):
        text = line["input"] if n % 2 else edited(line["input"], n // 2)
        made.append(line | {"input": text, "annotator": draw.choice(ANNOTATORS)})
    return made


def edited(text: str, n: int) -> str:
    match n % 4:
        case 0:
            return text.upper() if text.islower() else text.lower()
        case 1:
            return text.rstrip(".?!") if text[-1] in ".?!" else text + " ."
        case 2:
            return f"please {text}"
        case _:
            return f"{text.rstrip('.?! ')} now"


def in_latin1(lines: list[tuple[Line, bytes]]) -> list[tuple[Line, bytes]]:
    """The first few lines with an accent, written in the encoding of another machine."""
    accented = [n for n, (line, _) in enumerate(lines) if re.search(r"[à-ÿ]", line["input"]) and latin1(line)]
    for n in accented[:LATIN1]:
        line, raw = lines[n]
        lines[n] = (line, raw.decode().encode("latin-1"))
    return lines


def latin1(line: Line) -> bool:
    return all(ord(letter) < 256 for value in public(line).values() for letter in value)


def broken(spare: list[Line], draw: random.Random) -> list[bytes]:
    """Lines as a cut-off download, a lazy annotator, an old exporter and a stray paste leave them."""
    made = []
    for kind, line in zip([k for k, n in BROKEN.items() for _ in range(n)], spare, strict=True):
        said = public(line)
        match kind:
            case "empty answer":
                said["output"] = draw.choice(["", " ", None])
            case "missing field":
                said.pop("output")
            case "giant":
                said["input"] = (said["input"] + " ") * (GIANT // (len(said["input"]) + 1))
        raw = json.dumps(said, ensure_ascii=False)
        made.append((raw[: draw.randrange(20, len(raw) - 2)] if kind == "truncated" else raw).encode())
    return made


def asked(text: str, intent: str, recipe: Recipe) -> Line:
    return {"instruction": recipe.instruction, "input": text.strip(), "output": recipe.labels[intent]}


def public(line: Line) -> Line:
    return {name: value for name, value in line.items() if name != "true"}


def bare(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


if __name__ == "__main__":
    main()
