"""How fast InstructMining's indicators are, in rows a second, and how near the approximate neighbours come.

    python -m bench.instructmining mtld         # beside lexicalrichness, in the same run
    python -m bench.instructmining lengths
    python -m bench.instructmining neighbours   # recall of the 6 nearest against exact search on a sample
    python -m bench.instructmining perplexity   # through the step and the store, beside the engine alone

1,000,000 rows of about 60 words, or vectors of 384 numbers, if --rows says nothing else.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from curation.instructmining import KNN, Indicators
from curation.lexical_diversity import mtld
from curation.neighbours import nearest, recall
from curation.step import find_step
from flows.engines import NANO, EngineSpec, leases
from flows.run import run_step
from storage.schema import ROW, message
from storage.store import Manifest, Store
from synthesis.local_engine import LocalEngine

WORDS, DIMENSIONS, AT_ONCE = 60, 384, 50_000


def main() -> None:
    parts = {"mtld": _mtld, "lengths": _lengths, "neighbours": _neighbours, "perplexity": _perplexity}
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("part", choices=parts)
    said.add_argument("--rows", type=int, default=1_000_000)
    said.add_argument("--sample", type=int, default=10_000, help="rows that the other way is measured on")
    asked = said.parse_args()
    parts[asked.part](asked.rows, asked.sample)
    print(f"most memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


def _mtld(rows: int, sample: int) -> None:
    from lexicalrichness import LexicalRichness

    mtld(pl.Series(["compiled before it is timed"]))
    spent, first = 0.0, pl.Series(dtype=pl.Float64)
    for start in range(0, rows, AT_ONCE):
        texts = _texts(min(AT_ONCE, rows - start), start)
        seconds, found = _timed(lambda texts=texts: mtld(texts))
        spent += seconds
        first = found if not start else first
    ours = rows / spent
    few = _texts(min(AT_ONCE, rows), 0).head(sample).to_list()
    seconds, theirs = _timed(lambda: [LexicalRichness(text).mtld(0.72) for text in few])
    apart = float(np.abs(first.head(len(few)).to_numpy() - theirs).max())
    print(f"mtld: {ours:,.0f} rows/s over {rows:,}; lexicalrichness {len(few) / seconds:,.0f} rows/s over {len(few):,}")
    print(f"{ours * seconds / len(few):.1f} times as fast; values differ by {apart:.1e} at the most")


def _lengths(rows: int, sample: int) -> None:
    engine, spent = LocalEngine(NANO), 0.0
    for start in range(0, rows, AT_ONCE):
        texts = _texts(min(AT_ONCE, rows - start), start).to_list()
        spent += _timed(lambda texts=texts: engine.count_tokens(texts))[0]
    print(f"lengths: {rows / spent:,.0f} rows/s over {rows:,} rows")


def _neighbours(rows: int, sample: int) -> None:
    """What the step finds of all vectors, beside the exact search of a sample; the row itself counts for neither."""
    points = _vectors(rows)
    seconds, (ids, far) = _timed(lambda: nearest(points, KNN, "faiss"))
    print(f"neighbours: {rows / seconds:,.0f} rows/s over {rows:,} vectors ({seconds:,.0f} s)")
    some = np.random.default_rng(1).choice(rows, min(sample, rows), replace=False)
    known, true = nearest(points, KNN, "exact", rows=some)
    right = np.mean(np.abs(far[some, -1] - true[:, -1]) < 1e-5)
    print(f"recall@{KNN} {recall(ids[some], known):.4f} on {len(some):,} of these rows", end="")
    print(f"; the {KNN}th distance is within 1e-5 of the exact one for {right:.1%}")


def _perplexity(rows: int, sample: int) -> None:
    """The engine alone on one half of the rows, the step on the other: neither finds the answers of the other."""
    rows = min(rows, 2 * sample)
    texts = _texts(rows, 0).to_list()
    talk = [[message("user", "Go on."), message("assistant", text)] for text in texts]
    engine = LocalEngine(NANO)
    engine.logprobs(talk[:64])
    half = rows // 2
    alone, _ = _timed(lambda: [engine.logprobs(talk[i : min(i + 256, half)]) for i in range(0, half, 256)])
    with tempfile.TemporaryDirectory() as folder:
        store, step = Store(Path(folder)), find_step("instructmining-score")
        frame = _rows(talk[half:])
        part = store.put_part("rows", frame, ROW)
        store.seal(Manifest("import-1", "rows", "import", 1, {}, {}, {}, ((part,),), counts={"live": frame.height}))
        lease = leases({"base": EngineSpec()}, store)
        with lease.open() as engines:
            engines["base"].engine.logprobs(talk[:64])
        config = Indicators(indicators=["perplexity"])
        whole, _ = _timed(lambda: run_step(store, step, config, "import-1", {}, lease))
    print(
        f"perplexity: {(rows - half) / whole:,.0f} rows/s by the step, {half / alone:,.0f} by the engine alone", end=""
    )
    print(f", {(rows - half) / whole / (half / alone):.1%}, {half:,} rows each")


def _timed(work: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def _texts(rows: int, seed: int) -> pl.Series:
    """Words by Zipf's law over 20,000, with a little punctuation; 48 to 72 in each text."""
    rng = np.random.default_rng([7, seed])
    letters = np.random.default_rng(7).integers(97, 123, (20_000, 9), dtype=np.uint8)
    words = [bytes(w[: 2 + i % 8]).decode() for i, w in enumerate(letters)]
    drawn = np.minimum((20_000 ** rng.random((rows, 72))).astype(int), 20_000) - 1
    many = rng.integers(48, 73, rows)
    return pl.Series([" ".join(words[i] for i in line[:n]) + "." for line, n in zip(drawn.tolist(), many, strict=True)])


def _vectors(rows: int) -> np.ndarray:
    """Unit vectors around 2,000 centres, some near to each other, as sentence embeddings of a pool are."""
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((2_000, DIMENSIONS), dtype=np.float32)
    out = np.empty((rows, DIMENSIONS), np.float32)
    for a in range(0, rows, AT_ONCE):
        some = slice(a, min(a + AT_ONCE, rows))
        n = some.stop - a
        out[some] = centres[rng.integers(0, 2_000, n)] + 0.7 * rng.standard_normal((n, DIMENSIONS), dtype=np.float32)
        out[some] /= np.linalg.norm(out[some], axis=1, keepdims=True)
    return out


def _rows(talk: list) -> pl.DataFrame:
    n = len(talk)
    nothing = pl.Series([None] * n, dtype=pl.String)
    columns = {"id": [f"{i:020x}" for i in range(n)], "messages": talk, "source": ["bench"] * n}
    frame = pl.DataFrame(columns, schema_overrides={"messages": pl.List(pl.Struct(dict.fromkeys(MESSAGE, pl.String)))})
    return frame.with_columns(method=nothing, parent_id=nothing, round=pl.lit(0, pl.Int32), drop_reason=nothing)


MESSAGE = ("role", "content", "tool_calls")

if __name__ == "__main__":
    main()
