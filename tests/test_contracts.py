"""Rules that every registered step and every package obeys, whoever wrote it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from curation.privacy import FOUND
from curation.rule import INDICATORS
from curation.step import STEPS, StepError
from flows import steps  # noqa: F401  registers every step
from storage.schema import CHOICE, ROW, conform, message
from tests.fakes import FakeEmbedder, FakeEngine, FakeNLI
from tests.rows import rows

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "storage": ["storage"],
    "curation": ["curation", "storage.schema"],
    "synthesis": ["synthesis", "curation.step", "curation.same_answer", "storage.schema", "storage.wording"],
    "training": ["training", "storage.schema", "storage.wording"],
    "flows": ["flows", "training", "synthesis", "curation", "storage"],
}
OWNERS = {
    "prefect": ["flows/"],
    "torch": [
        "training/",
        "synthesis/local_engine.py",
        "synthesis/decode.py",
        "synthesis/constraint.py",
        "synthesis/classifier.py",
        "synthesis/embedder.py",
        "flows/doctor.py",
    ],
    "pyarrow.parquet": ["storage/"],
    "ray": ["flows/cluster.py"],
    "vllm": ["synthesis/vllm_worker.py"],
}
ENGINES = {
    **dict.fromkeys(
        ("judge", "candidate", "teacher", "student", "base"), FakeEngine(reply=lambda text, i: f"{text} {i}")
    ),
    "embedder": FakeEmbedder(),
    "nli": FakeNLI(),
}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_follow_the_arrow(package):
    seen = 0
    for path, name in imports(package):
        seen += 1
        if name.split(".")[0] in MAY_IMPORT:
            assert under(name, MAY_IMPORT[package]), f"{path} imports {name}"
        for heavy, owners in OWNERS.items():
            if under(name, [heavy]):
                assert any(path.as_posix().startswith(o) for o in owners), f"{path} imports {heavy}; only {owners} may"
    assert seen


def test_no_flow_or_task_takes_a_table():
    found = 0
    for path in sorted((ROOT / "flows").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(d).split("(")[0] in ("flow", "task") for d in node.decorator_list
            ):
                found += 1
                said = ast.unparse(node.args)
                assert "DataFrame" not in said and "Table" not in said, f"{path}: {node.name} takes a table"
    assert found >= 7


def hostile(n: int) -> pl.DataFrame:
    """Rows of every awkward sort: dropped, empty, duplicate, multi-turn, giant, hostile text; with every column."""
    texts = ["a", "", "a", "x" * 5000, "<script>alert(1)</script>", "é\u202e\x01", "Pick: a, b\nplay jazz"]
    pairs = [(texts[i % len(texts)], texts[(i * 3 + 1) % len(texts)]) for i in range(n)]
    rng = np.random.default_rng(n)
    numbers = {k: rng.random(n).round(1).tolist() for k in ("clear_confidence", "clear_consistency", "base_nll")}
    numbers |= {f"instructmining_{k}": [0.5] * n for k in INDICATORS}
    numbers["instructmining_predicted_loss"] = rng.random(n).round(1).tolist()
    out = rows(*pairs).with_columns(
        *[pl.Series(name, values, dtype=pl.Float64) for name, values in numbers.items()],
        pl.Series("split", ["validation" if i % 7 == 3 else "train" for i in range(n)], dtype=pl.String),
        pl.Series("diversity_cluster", rng.integers(0, 3, n), dtype=pl.Int32),
        pl.Series("student_answer", [texts[i % 5] for i in range(n)], dtype=pl.String),
        pl.Series("diversity_share", [1 / 3] * n, dtype=pl.Float64),
        pl.Series("language_code", [["en", "de", None][i % 3] for i in range(n)], dtype=pl.String),
        pl.Series("language_probability", [[0.9, 0.7, None][i % 3] for i in range(n)], dtype=pl.Float64),
        pl.Series("privacy_kinds", [[None, "CREDIT_CARD, EMAIL_ADDRESS"][i % 2] for i in range(n)], dtype=pl.String),
        pl.Series("privacy_found", [[{"kind": "IP_ADDRESS", "text": "a"}] * (i % 3) for i in range(n)], dtype=FOUND),
        pl.Series("embedding", rng.random((n, 4)), dtype=pl.Array(pl.Float32, 4)),
    )
    out = out.with_columns(
        clear_confidence=pl.when(pl.int_range(pl.len()) % 11 == 5).then(None).otherwise("clear_confidence")
    )
    dropped = [{2: "somebody: said so", 4: "clear-filter: doubtful"}.get(i % 5) for i in range(n)]
    return out.with_columns(drop_reason=pl.Series(dropped, dtype=pl.String)).with_columns(
        messages=pl.when(pl.int_range(pl.len()) == 1)
        .then(
            pl.lit(
                pl.Series(
                    [
                        [
                            message("system", "s"),
                            message("user", "u"),
                            message("assistant", "b"),
                            message("user", "v"),
                            message("assistant", "c"),
                        ]
                    ]
                )
            ).first()
        )
        .otherwise("messages")
    )


def tables(frame: pl.DataFrame) -> dict[str, pl.DataFrame]:
    return {
        "heldout": rows(("held out", "x")),
        "results": frame.select("id", student_correct=pl.int_range(pl.len()) % 2 == 0, student_nll=pl.lit(0.5)),
        "weights": pl.DataFrame({"cluster": [0, 1, 2], "weight": [0.2, 0.3, 0.5]}),
        "centroids": STEPS["kmeans-centroids"](hostile(9), STEPS["kmeans-centroids"].config(clusters=2)),
    }


@pytest.mark.parametrize("name", sorted(STEPS))
@limits(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(n=st.integers(0, 200))
def test_every_step_keeps_the_promise_of_its_kind(name, n):
    step, frame = STEPS[name], hostile(n)
    out = step(frame, step.config(), ENGINES, tables(frame))
    if step.kind in ("score", "filter", "revise"):
        old = out.head(frame.height)
        assert old["id"].equals(frame["id"])
        assert step.kind == "revise" or out.height == old.height
        assert conform(out.slice(frame.height), ROW).num_rows == out.height - frame.height
        revived = frame["drop_reason"].str.starts_with(f"{step.revives}: ") if step.revives else pl.Series([False])
        out, was = old, frame["drop_reason"].is_not_null() & ~revived.fill_null(False)
        assert out.filter(was)["drop_reason"].equals(frame.filter(was)["drop_reason"])
        assert set(step.writes) <= set(out.columns)
    elif step.kind == "select":
        assert conform(out, CHOICE).num_rows <= frame.height
    elif step.kind == "make":
        assert conform(out, ROW).num_rows == out.height


@pytest.mark.parametrize("name", sorted(STEPS))
def test_every_step_says_what_it_does_and_every_setting_is_documented(name):
    assert STEPS[name].help
    for field, info in STEPS[name].config.model_fields.items():
        assert info.description, f"{name}: {field} has no line of help"


@pytest.mark.parametrize("name", sorted(n for n in STEPS if STEPS[n].reads))
def test_a_step_names_the_column_that_it_lacks(name):
    with pytest.raises(StepError, match=STEPS[name].reads[0]):
        STEPS[name](rows(("q", "a")), STEPS[name].config(), ENGINES, tables(hostile(3)))


def imports(package: str) -> Iterator[tuple[Path, str]]:
    """Every module imported in a package, with the file that imports it."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path.relative_to(ROOT), alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = node.module in MAY_IMPORT
                names = [f"{node.module}.{a.name}" for a in node.names] if inside else [node.module]
                yield from ((path.relative_to(ROOT), name) for name in names)


def under(name: str, parents: list[str]) -> bool:
    return any(name == parent or name.startswith(parent + ".") for parent in parents)
