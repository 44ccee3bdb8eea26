"""A small store with one dataset of every kind, and a row that tries everything a page could fall for."""

from pathlib import Path

import polars as pl

from storage.schema import CHOICE, ROW
from storage.store import Manifest, Store
from tests.rows import rows

HOSTILE = """```
</code></pre></details></td></table>
<img src="http://203.0.113.7/a.png" onerror="window.injected=1"><script>window.injected=2</script>
[press me](javascript:window.injected=3) ![pixel](http://203.0.113.7/b.png) <http://203.0.113.7/c>
# heading | cell | ~~gone~~ **bold** http://203.0.113.7/d www.example.org me@example.org
<iframe src="http://203.0.113.7/e"></iframe><svg onload="window.injected=4"></svg>&lt;b&gt; \x00 \u202e end"""


def small_store(root: Path, hostile: str = HOSTILE) -> Store:
    """seed (60 rows in two shards) -> scored -> filtered -> chosen -> adapter; three of them have names."""
    store = Store(root)
    said = rows(
        *[(f"What is {i} plus {i}?\nThink first.", f"{i} plus {i} is {2 * i}.") for i in range(59)], (hostile, hostile)
    )
    parts = [(store.put_part(f"seed{i}", said[i * 30 : i * 30 + 30], ROW),) for i in (0, 1)]
    _seal(store, "import-000000000001", "rows", "import", {"format": "alpaca"}, {}, parts, {"rows": 60, "live": 60})
    scores = pl.DataFrame({"id": said["id"], "clear_confidence": [i / 60 for i in range(60)]}).with_columns(
        clear_consistency=pl.when(pl.col("clear_confidence") > 0.1).then(pl.col("clear_confidence") ** 2)
    )
    scored = [(*p, store.put_part(f"score{i}", scores[i * 30 : i * 30 + 30])) for i, p in enumerate(parts)]
    _seal(
        store,
        "clear-score-000000000002",
        "rows",
        "clear-score",
        {"samples": 5, "note": hostile},
        {"rows": "import-000000000001"},
        scored,
        {"rows": 60, "live": 60},
        {"judge": "local:nano"},
    )
    why = [None if i > 20 else f"clear-filter: confidence {i / 60:.3f} is not over 0.35" for i in range(60)]
    marks = pl.DataFrame({"id": said["id"], "clear_threshold": [0.35] * 60, "drop_reason": why})
    marked = [(*s, store.put_part(f"mark{i}", marks[i * 30 : i * 30 + 30])) for i, s in enumerate(scored)]
    counts = {"rows": 60, "live": 39, "dropped by clear-filter": 21}
    _seal(
        store,
        "clear-filter-000000000003",
        "rows",
        "clear-filter",
        {"threshold": 0.35},
        {"rows": "clear-score-000000000002"},
        marked,
        counts,
    )
    chosen = store.put_part("chosen", _choice(said["id"][21:]), CHOICE)
    _seal(
        store,
        "kmeans-quality-000000000004",
        "choice",
        "kmeans-quality",
        {"budget": 13},
        {"rows": "clear-filter-000000000003"},
        [(chosen,)],
        {"rows": 39, "taken": 13},
    )
    _seal_adapter(store)
    _seal(store, "import-000000000006", "rows", "import", {}, {}, [], {"rows": 0, "live": 0})
    for name, dataset in {
        "seed": "import-000000000001",
        "Best.of_all": "clear-filter-000000000003",
        "student": "train-000000000005",
        "nothing": "import-000000000006",
    }.items():
        store.name(name, dataset)
    return store


def _choice(ids: pl.Series) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": ids,
            "taken": [i % 3 == 0 for i in range(39)],
            "why": [f"cluster {i % 4}" for i in range(39)],
            "weight": [1 / (i + 1) for i in range(39)],
            "round": [1] * 39,
        }
    )


def _seal_adapter(store: Store) -> None:
    losses = store.put_part(
        "loss", pl.DataFrame({"step": list(range(50)), "loss": [3 / (i + 1) + 0.2 for i in range(50)]})
    )
    folder = store.scratch()
    (folder / "adapter_config.json").write_text('{"r": 8}')
    files = store.put_folder("train-000000000005", folder)
    _seal(
        store,
        "train-000000000005",
        "adapter",
        "train",
        {"rank": 8, "lr": 1e-4},
        {"rows": "clear-filter-000000000003", "choice": "kmeans-quality-000000000004"},
        [(losses,)],
        {"steps": 50},
        files=files,
    )


def _seal(store, id_, kind, step, config, inputs, shards, counts, engines=None, files=None) -> None:
    store.seal(Manifest(id_, kind, step, 1, config, engines or {}, inputs, tuple(shards), {}, files or {}, counts))


def corrected_store(root: Path) -> Store:
    """before (three rows, of which a filter dropped one) -> corrected: two are replaced, the dropped one too."""
    store = Store(root)
    doubtful = "clear-filter: confidence 0.1 is not over 0.5"
    before = rows(("a", "1"), ("b", "2"), ("c", "3"), drop_reason=[None, doubtful, None])
    marks = pl.Series(["clear-correct: replaced by n0", "clear-correct: replaced by n1", None])
    new = rows(("a", "one"), ("b", "two")).with_columns(
        id=pl.Series(["n0", "n1"]), parent_id=pl.Series(["r0", "r1"]), method=pl.lit("clear-correct")
    )
    first = store.put_part("before", before, ROW)
    marked = store.put_part("marks", before.select("id", drop_reason=marks))
    added = store.put_part("new", new, ROW)
    _seal(store, "before", "rows", "clear-filter", {}, {}, [(first,)], {"rows": 3, "live": 2})
    counts = {"rows": 5, "live": 3}
    _seal(store, "corrected", "rows", "clear-correct", {}, {"rows": "before"}, [(first, marked), (added,)], counts)
    return store
