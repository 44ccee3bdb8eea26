"""Does a step keep the promise of its kind, on rows of every awkward sort and with engines that sometimes fail?"""

import hashlib
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from curation.step import Completion, Failed, Step, StepError
from storage.schema import CHOICE, ROW, Messages, conform, message

SIZES = (0, 1, 2, 40)
_TEXTS = ["a", "", "a", "x" * 5000, "<script>alert(1)</script>", "é\u202e\x01", "Pick: a, b\nplay jazz"]


def broken_promises(step: Step) -> list[str]:
    """What is wrong with a step, in words; nothing where all is well."""
    wrong = [] if step.help else ["it has no docstring, which is its help"]
    wrong += [
        f"{name} has no line of help under it"
        for name, info in step.config.model_fields.items()
        if not info.description
    ]
    try:
        config = step.config()
    except ValueError:
        return [*wrong, "a setting has no default, so it cannot be tried here; give it one"]
    for n in SIZES:
        rows = awkward_rows(n, (*step.reads, *step.takes, *config.columns()))
        given = (config, {role: Awkward() for role in step.roles}, {t: _table(t, rows) for t in step.tables})
        try:
            out = step(rows, *given)
            if step.kind in ("select", "make"):
                conform(out, CHOICE if step.kind == "select" else ROW)
            elif step.kind == "revise":
                conform(out.slice(n), ROW)
            if not out.equals(step(rows, *given), null_equal=True):
                wrong.append(f"with {n} rows it gives another result the second time; draw with a seed")
            if step.scope == "shard" and step.kind in ("score", "filter") and n > 2:
                halves = [step(half, *given) for half in (rows.head(n // 3), rows.slice(n // 3))]
                if not pl.concat(halves, how="vertical_relaxed").equals(out, null_equal=True):
                    wrong.append('what it says of a row depends on the other rows; say scope="dataset"')
        except StepError as why:
            wrong.append(f"with {n} rows: {why}")
        except Exception as why:
            own = step.fn.__code__.co_filename
            frames = traceback.extract_tb(why.__traceback__)
            last = [f for f in frames if f.filename == own][-1:] or frames[-1:]
            where = f"{last[0].filename.rpartition('/')[2]}, line {last[0].lineno}"
            wrong.append(f"with {n} rows: {type(why).__name__}: {' '.join(str(why).split())[:200]} ({where})")
    return list(dict.fromkeys(wrong))


def awkward_rows(n: int, columns: Sequence[str] = ()) -> pl.DataFrame:
    """Rows that are dropped, empty, duplicate, multi-turn, giant, of hostile text; a column asked for has numbers and
    nulls, where it is none that our steps make."""
    texts = [(_TEXTS[i % len(_TEXTS)], _TEXTS[(i * 3 + 1) % len(_TEXTS)]) for i in range(n)]
    said = [[message("user", q), message("assistant", a)] for q, a in texts]
    if n > 1:
        turns = [("system", "s"), ("user", "u"), ("assistant", "b"), ("user", "v"), ("assistant", "c")]
        said[1] = [message(role, text) for role, text in turns]
    rng = np.random.default_rng(n)
    marks = [{2: "somebody: said so", 4: "clear-filter: doubtful"}.get(i % 5) for i in range(n)]
    rows = pl.DataFrame(
        {
            "id": [f"r{i}" for i in range(n)],
            "messages": said,
            "source": ["test"] * n,
            "method": [None] * n,
            "parent_id": [None] * n,
            "round": [0] * n,
            "drop_reason": marks,
        },
        schema=pl.from_arrow(ROW.empty_table()).schema,
    )
    known = {
        "split": pl.Series(["validation" if i % 7 == 3 else "train" for i in range(n)], dtype=pl.String),
        "embedding": pl.Series(rng.random((n, 4)), dtype=pl.Array(pl.Float32, 4)),
        "diversity_cluster": pl.Series(rng.integers(0, 3, n), dtype=pl.Int32),
        "student_answer": pl.Series([_TEXTS[i % 5] for i in range(n)], dtype=pl.String),
    }
    for column in columns:
        drawn = [None if i % 11 == 5 else v for i, v in enumerate(rng.random(n).round(1).tolist())]
        numbers = pl.Series(drawn, dtype=pl.Float64)
        if column not in rows.columns:
            rows = rows.with_columns(known.get(column, numbers).alias(column))
    return rows


@dataclass
class Awkward:
    """Every engine in one, which answers what it was asked; every fifth question fails, and every seventh is empty."""

    identity: str = "awkward"
    labels: tuple[str, ...] = ("contradiction", "neutral", "entailment")
    used: Counter[str] = field(default_factory=Counter)

    def generate(self, prompts: list[Messages], *, n: int = 1, **_: Any) -> list[list[Completion]]:
        def answer(i: int) -> Completion:
            said = prompts[i][-1]["content"]
            return Completion("", error="the engine failed") if i % 5 == 4 else Completion("" if i % 7 == 6 else said)

        return [[answer(i)] * n for i in range(len(prompts))]

    def logprobs(self, conversations: list[Messages]) -> list[list[float] | Failed]:
        return [
            Failed("the engine failed") if i % 5 == 4 else [-1.0] * len(c[-1]["content"].split())
            for i, c in enumerate(conversations)
        ]

    def choose(self, prompts: list[Messages], answers: list[str]) -> list[list[float] | Failed]:
        share = [1 / len(answers)] * len(answers)
        return [Failed("the engine failed") if i % 5 == 4 else share for i in range(len(prompts))]

    def classify(self, pairs: list[tuple[str, str]]) -> list[list[float] | Failed]:
        return [Failed("the engine failed") if i % 5 == 4 else [0.2, 0.3, 0.5] for i in range(len(pairs))]

    def embed(self, texts: list[str]) -> np.ndarray:
        drawn = [list(hashlib.sha256(t.encode("utf-8", "surrogatepass")).digest()[:8]) for t in texts]
        found = np.array(drawn, np.float32).reshape(len(texts), 8) + 1
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [len(t.split()) for t in texts]


def _table(name: str, rows: pl.DataFrame) -> pl.DataFrame:
    """A table as a step of ours makes it; for other names, rows."""
    known: Mapping[str, pl.DataFrame] = {
        "results": rows.select("id", student_correct=pl.int_range(pl.len()) % 2 == 0, student_nll=pl.lit(0.5)),
        "weights": pl.DataFrame({"cluster": [0, 1, 2], "weight": [0.2, 0.3, 0.5]}),
        "centroids": pl.DataFrame(
            {"cluster": [0, 1], "share": [0.4, 0.6], "centroid": [[1.0, 0, 0, 0], [0, 0, 0, 1.0]]},
            schema_overrides={"cluster": pl.Int32, "centroid": pl.Array(pl.Float32, 4)},
        ),
    }
    return known.get(name, awkward_rows(3))
