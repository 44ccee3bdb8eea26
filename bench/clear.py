"""CLEAR's stages on a pool whose wrong rows are known: one page of all arms, and what became of right and wrong rows.

    python examples/clean.py snips --out clean.jsonl
    thresher compare examples/snips/clear.yaml --write results.json
    thresher compare examples/snips/clear.yaml --write clean.json \\
        --set pool=$PWD/clean.jsonl --set spoilt=null --set arms={}
    python bench/clear.py results.json clean.json --store .thresher --spoilt examples/snips/spoilt.jsonl \\
        --write docs/evidence/clear-snips

The clean pool is another run, since a comparison has one pool; model, steps, seeds and held-out rows are the same,
which is asserted, so that its answers stand beside the others'.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.metrics import roc_auc_score

from flows import page
from storage.schema import response
from storage.store import Store

SAME = ("model", "optimizer_steps", "seeds", "heldout", "untuned")  # what both runs must have alike


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("results", type=Path)
    options.add_argument("clean", type=Path)
    options.add_argument("--store", type=Path, required=True)
    options.add_argument("--spoilt", type=Path, required=True)
    options.add_argument("--write", type=Path, required=True, help="without its ending: .json and .md are written")
    chosen = options.parse_args()
    whole = together(page.read_results(chosen.results), page.read_results(chosen.clean))
    for ending in (".json", ".md"):
        page.write(chosen.write.with_suffix(ending), whole)
    spoilt = [json.loads(line) for line in chosen.spoilt.read_text().splitlines()]
    store = Store(chosen.store.resolve())
    truth = true_answers(store, whole["name"], {line["line"]: line["true"] for line in spoilt})
    print(
        "| arm | seed | judged | wrong before | replaced | of them wrong before | right after | harmed | AUROC of p |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, dataset in sorted(store.names().items()):
        if name.endswith(".clear-correct") and name.startswith(f"{whole['name']}."):
            arm, seed = name.split(".")[1], name.split("seed")[1].split(".")[0]
            print(f"| {arm} | {seed} | " + " | ".join(outcomes(store.read(dataset), truth)) + " |")


def together(results: dict, clean: dict) -> dict:
    """Raw, curated and clean rows as arms of one comparison; what is the same rows twice is left out."""
    for what in SAME:
        assert results[what] == clean[what], f"the two runs differ in {what}"
    cells = [c for c in results["cells"] if c["arm"] not in ("longest", "full")]
    cells += [c | {"arm": "clean", "spoilt": 0.0} for c in clean["cells"] if c["arm"] == "random"]
    return results | {"cells": cells, "overlap": []}


def true_answers(store: Store, pool: str, true: dict[int, str]) -> pl.DataFrame:
    """For each row of the pool: id, its true answer, and whether it came with another."""
    dataset = store.resolve(pool)
    rows = store.read(dataset, ["id", "messages"]).join(
        store.read_side(dataset, "origin").select("id", "line"), on="id"
    )
    said = [response(m) for m in rows["messages"].to_list()]
    answers = [true.get(line, y) for line, y in zip(rows["line"], said, strict=True)]
    return pl.DataFrame({"parent_id": rows["id"], "true": answers, "wrong": rows["line"].is_in(list(true))})


def outcomes(rows: pl.DataFrame, truth: pl.DataFrame) -> list[str]:
    """How many rows were judged and replaced, and what that did, by the truth."""
    judged = rows.filter(pl.col("clear_preference").is_not_null()).join(truth, left_on="id", right_on="parent_id")
    new = rows.filter(pl.col("clear_outcome") == "corrected").join(truth, on="parent_id")
    right = np.array([response(m) == t for m, t in new.select("messages", "true").iter_rows()], dtype=bool)
    was_wrong = new["wrong"].to_numpy()
    known = judged["wrong"].n_unique() == 2
    auroc = roc_auc_score(judged["wrong"], judged["clear_preference"]) if known else float("nan")
    counts = [
        judged.height,
        judged["wrong"].sum(),
        new.height,
        was_wrong.sum(),
        right.sum(),
        (~right & ~was_wrong).sum(),
    ]
    return [*map(str, counts), f"{auroc:.3f}"]


if __name__ == "__main__":
    main()
