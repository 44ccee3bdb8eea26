"""Rows a second of an import, against `datasets.load_dataset` on the same file in the same run.

    python -m bench.importing --rows 1000000

Writes a file of Alpaca rows, imports it into a new store (ids, validation, origins, Parquet on disk) and has
`datasets.load_dataset("json")` read it into Arrow on disk, each in a process of its own. Prints rows a second and the
peak memory of each process, the ratio of the two, and rows a second of an export of the same rows.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = """the of and to in a is that for it as was with be by on not he his but at are this have from or had an they
which one you were her all she there would their we him been has when who will more no if out so said what up its about
into than them can only other new some could time these two may then do first any "quoted" back\\slash é"""


def write_rows(path: Path, rows: int) -> None:
    """Rows as long as those of Alpaca: 60, 40 for two of five, and 270 characters."""
    draw, words = random.Random(0), [*WORDS.split(), "two\nlines"]
    texts = [" ".join(draw.choices(words, k=400)) for _ in range(500)]
    with path.open("w", encoding="utf-8") as file:
        for n in range(rows):
            text, at = texts[n % 500], draw.randrange(1000)
            more = text[at + 60 : at + 60 + draw.randrange(20, 60)] if n % 5 < 2 else ""
            record = {"instruction": f"{n}: {text[at : at + draw.randrange(30, 90)]}", "input": more}
            record["output"] = text[at + 120 : at + 120 + draw.randrange(40, 500)]
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def import_(path: str, folder: str) -> int:
    from storage.importing import import_files
    from storage.store import Store

    return import_files(Store(Path(folder)), [path], "pool").rows


def load(path: str, folder: str) -> int:
    from datasets import load_dataset

    return load_dataset("json", data_files=path, cache_dir=folder, split="train").num_rows


def export(path: str, folder: str) -> int:
    from storage.exporting import export_rows
    from storage.store import Store

    return export_rows(Store(Path(folder)), "pool", Path(path), "alpaca").rows


def measured(task: str, path: Path, folder: Path) -> dict[str, float]:
    """Rows, seconds without the start of Python and its libraries, and peak memory in MB of a process of its own."""
    words = [sys.executable, "-m", "bench.importing", "--task", task, "--path", str(path), "--folder", str(folder)]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def one(task: str, path: str, folder: str) -> None:
    if task == "load":
        import datasets

        datasets.disable_progress_bars()
    else:
        import storage.importing  # noqa: F401  so that its libraries are not in the time
    started, cpu = time.perf_counter(), time.process_time()
    rows = {"import": import_, "load": load, "export": export}[task](path, folder)
    seconds, spent = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"rows": rows, "seconds": seconds, "cpu": spent, "peak_mb": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--task", choices=["import", "load", "export"], help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        return one(args.task, args.path, args.folder)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "alpaca.jsonl"
        write_rows(path, args.rows)
        print(f"{args.rows:,} Alpaca rows, {path.stat().st_size / 2**20:,.0f} MB")
        found = {task: measured(task, path, Path(folder) / task) for task in ("import", "load")}
        found["export"] = measured("export", Path(folder) / "out.jsonl", Path(folder) / "import")
        for task, said in found.items():
            speed, by_cpu = said["rows"] / said["seconds"], said["rows"] / said["cpu"]
            print(
                f"{task:8} {speed:10,.0f} rows/s  {by_cpu:10,.0f} rows per CPU second  "
                f"{said['seconds']:6.1f} s  {said['peak_mb']:6,.0f} MB at most"
            )
        ratio = found["import"]["seconds"] / found["load"]["seconds"]
        print(f"an import takes {ratio:.2f} times as long as load_dataset")


if __name__ == "__main__":
    main()
