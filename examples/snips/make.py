"""Make raw.jsonl, test.jsonl and spoilt.jsonl out of SNIPS: a pool as people have them, with the truth kept beside it.

    python examples/snips/make.py --data FOLDER --seed 0      # FOLDER holds snips.parquet

A line of the pool:

    {"instruction": "Which of these does the request ask for: …?", "input": "add clem burke to Pre-Party R&B Jams",
     "output": "add to playlist", "annotator": "Noor"}
"""

import argparse
import json
import random
import re
from pathlib import Path

import polars as pl

LABELS = {
    "AddToPlaylist": "add to playlist",
    "BookRestaurant": "book restaurant",
    "GetWeather": "get weather",
    "PlayMusic": "play music",
    "RateBook": "rate book",
    "SearchCreativeWork": "search creative work",
    "SearchScreeningEvent": "search screening event",
}
INSTRUCTION = f"Which of these does the request ask for: {', '.join(LABELS.values())}?"
ANNOTATORS = ("Noor", "Tomasz", "Abena", "Lucía", "Jun", "Maren")

LINES = 2800
COPIES = 84  # 3 % of the lines, half of them exact
SPOILT = 0.35  # share of the answers that are wrong
LATIN1 = 8  # usable lines in the wrong encoding
BROKEN = {"truncated": 12, "empty answer": 9, "missing field": 9, "giant": 1}  # lines that cannot become a row
GIANT = 200_000  # characters

Line = dict[str, str | bool]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True, help="folder that holds snips.parquet")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path(__file__).parent)
    chosen = options.parse_args()
    snips = pl.read_parquet(chosen.data / "snips.parquet", columns=["split", "intent", "text"])
    test = snips.filter(pl.col("split") == "test")
    draw = random.Random(chosen.seed)

    usable, spare = draw_rows(snips.filter(pl.col("split") == "train"), test, draw)
    spoil(usable, draw)
    usable += copies(usable, draw)
    lines = [(line, json.dumps(public(line), ensure_ascii=False).encode()) for line in usable]
    lines = in_latin1(lines) + [(None, raw) for raw in broken(spare, draw)]
    draw.shuffle(lines)

    (chosen.out / "raw.jsonl").write_bytes(b"".join(raw + b"\n" for _, raw in lines))
    wrong = [
        {"line": n, "true": line["true"], "given": line["output"]}
        for n, (line, _) in enumerate(lines, 1)
        if line and line["true"] != line["output"]
    ]
    write_lines(chosen.out / "spoilt.jsonl", wrong)
    write_lines(chosen.out / "test.jsonl", [asked(r["text"], LABELS[r["intent"]]) for r in test.to_dicts()])
    print(f"{len(lines)} lines, {len(usable)} usable, {COPIES} copies, {len(wrong)} spoilt, {test.height} test rows")


def draw_rows(train: pl.DataFrame, test: pl.DataFrame, draw: random.Random) -> tuple[list[Line], list[Line]]:
    """The usable rows and those to be broken. Every train row that says what a test row says is among the usable."""
    seen = {bare(text) for text in test["text"]}
    every = [
        asked(r["text"], LABELS[r["intent"]]) | {"annotator": draw.choice(ANNOTATORS)} | {"true": LABELS[r["intent"]]}
        for r in train.to_dicts()
    ]
    leaked = [line for line in every if bare(line["input"]) in seen]
    others = [line for line in every if bare(line["input"]) not in seen]
    draw.shuffle(others)
    n_broken = sum(BROKEN.values())
    n_drawn = LINES - COPIES - n_broken - len(leaked)
    return leaked + others[:n_drawn], others[n_drawn : n_drawn + n_broken]


def spoil(lines: list[Line], draw: random.Random) -> None:
    """Give a share of the lines another of the labels, each of the six as likely."""
    for line in draw.sample(lines, round(SPOILT * len(lines))):
        line["output"] = draw.choice([label for label in LABELS.values() if label != line["true"]])


def copies(lines: list[Line], draw: random.Random) -> list[Line]:
    """Copies of lines, every second one with a small edit; a copy keeps the answer of its original, right or wrong."""
    made = []
    for n, line in enumerate(draw.sample(lines, COPIES)):
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


def asked(text: str, label: str) -> Line:
    return {"instruction": INSTRUCTION, "input": text.strip(), "output": label}


def public(line: Line) -> Line:
    return {name: value for name, value in line.items() if name != "true"}


def bare(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


if __name__ == "__main__":
    main()
