"""The pool of an example with the true answers put back: what no curation can do better than.

    python examples/clean.py snips --out clean.jsonl       # raw.jsonl line for line, mended by spoilt.jsonl
"""

import argparse
import json
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("name", choices=sorted(p.parent.name for p in HERE.glob("*/spoilt.jsonl")))
    options.add_argument("--out", type=Path, required=True)
    chosen = options.parse_args()
    folder = HERE / chosen.name
    said = [json.loads(line) for line in (folder / "spoilt.jsonl").read_text().splitlines()]
    raw = (folder / "raw.jsonl").read_bytes().splitlines(keepends=True)
    chosen.out.write_bytes(b"".join(mended(raw, {line["line"]: line["true"] for line in said})))
    print(f"{len(raw)} lines, {len(said)} mended")


def mended(raw: list[bytes], true: dict[int, str]) -> list[bytes]:
    """The lines with true answers in the place of wrong ones; `true` counts lines from 1. Any other line as it is."""
    return [_with_answer(line, true[n]) if n in true else line for n, line in enumerate(raw, 1)]


def _with_answer(line: bytes, answer: str) -> bytes:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        text = line.decode("latin-1")
    return (json.dumps(json.loads(text) | {"output": answer}, ensure_ascii=False) + "\n").encode()


if __name__ == "__main__":
    main()
