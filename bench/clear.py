"""CLEAR's stages on a pool whose wrong rows are known: one page of all arms, and what became of right and wrong rows.

    python examples/clean.py snips --out clean.jsonl
    thresher compare examples/snips/clear.yaml --write results.json
    thresher compare examples/snips/clear.yaml --write clean.json --store .clean \\
        --set pool=$PWD/clean.jsonl --set spoilt=null --set arms={}
    python bench/clear.py results.json clean.json --store .thresher --spoilt examples/snips/spoilt.jsonl \\
        --write docs/evidence/clear-snips

The clean pool is another run, in a store of its own under the same name, since a comparison has one pool; model, steps,
seeds and held-out rows are the same, which is asserted, so that its answers stand beside the others'.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

import polars as pl
from sklearn.metrics import roc_auc_score

from curation.same_answer import same
from flows import page
from flows.noise_bench import auroc_interval
from storage.schema import response
from storage.store import Store

SAME = ("model", "optimizer_steps", "seeds", "heldout", "untuned")  # what both runs must have alike
JUDGED = ("clear_confidence", "clear_consistency", "clear_reflection")


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
    print(f"| arm | seed | round | rows | wrong | {' | '.join(f'AUROC of {c}' for c in JUDGED)} |\n|{'---|' * 8}")
    for arm, seed, turn, dataset in named(store, whole["name"], "clear-score"):
        print(f"| {arm} | {seed} | {turn} | " + " | ".join(told_apart(store.read(dataset), truth)) + " |")
    print(
        "| arm | seed | judged | of these wrong | replaced | were wrong | of these right now | were right, wrong now "
        "| rows to train on | of these wrong | greatest p | AUROC of p |"
    )
    print(f"|{'---|' * 12}")
    for arm, seed, _, dataset in named(store, whole["name"], "clear-correct"):
        print(f"| {arm} | {seed} | " + " | ".join(outcomes(store.read(dataset), truth)) + " |")


def named(store: Store, comparison: str, what: str) -> Iterator[tuple[str, str, str, str]]:
    """Arm, seed, round and dataset of each result of a step in a comparison; what several share, once."""
    seen = set()
    for name, dataset in sorted(store.names().items()):
        found = re.fullmatch(rf"{comparison}\.([^.]+)\.\d+\.seed(\d+)\.round(\d+)\.{what}(?:-\d+)?", name)
        if found and dataset not in seen:
            seen.add(dataset)
            yield *found.groups(), dataset


def together(results: dict, clean: dict) -> dict:
    """Raw, curated and clean rows as arms of one comparison; what is the same rows twice is left out."""
    for what in SAME:
        assert results[what] == clean[what], f"the two runs differ in {what}"
    cells = [c for c in results["cells"] if c["arm"] not in ("longest", "full")]
    cells += [c | {"arm": "clean", "spoilt": 0.0} for c in clean["cells"] if c["arm"] == "random"]
    return results | {"cells": cells, "overlap": []}


def true_answers(store: Store, pool: str, true: dict[int, str]) -> dict[str, str]:
    """The true answer of each row of the pool, by its id."""
    dataset = store.resolve(pool)
    rows = store.read(dataset, ["id", "messages"]).join(
        store.read_side(dataset, "origin").select("id", "line"), on="id"
    )
    said = [response(m) for m in rows["messages"].to_list()]
    return {i: true.get(line, y) for i, line, y in zip(rows["id"], rows["line"], said, strict=True)}


def right(rows: pl.DataFrame, truth: dict[str, str]) -> pl.Series:
    """Whether each row's answer is the true one of the row of the pool that it comes from."""
    parents = dict(rows.select("id", "parent_id").iter_rows())

    def first(row: str) -> str:
        return first(parents[row]) if parents.get(row) else row

    said = rows.select("id", "messages").iter_rows()
    return pl.Series("right", [same(response(m), truth[first(i)]) for i, m in said], dtype=pl.Boolean)


def told_apart(rows: pl.DataFrame, truth: dict[str, str]) -> list[str]:
    """Rows judged, how many of them came with a wrong answer, and the AUROC of telling these, with 95 % of rows."""
    judged = rows.with_columns(right(rows, truth)).filter(pl.col("clear_confidence").is_not_null())
    wrong = ~judged["right"].to_numpy()
    shown = [f"{judged.height:,}", f"{wrong.sum():,}"]
    for column in JUDGED:
        good = judged[column].to_numpy()
        low, high = auroc_interval(good, wrong)
        shown.append(f"{roc_auc_score(~wrong, good):.3f} ({low:.3f} to {high:.3f})")
    return shown


def outcomes(rows: pl.DataFrame, truth: dict[str, str]) -> list[str]:
    """How many rows were judged and replaced, and what that did, by the truth."""
    rows = rows.with_columns(right(rows, truth))
    judged = rows.filter(pl.col("clear_preference").is_not_null() & (pl.col("clear_outcome") != "corrected"))
    new = rows.filter(pl.col("clear_outcome") == "corrected")
    new = new.join(rows.select(parent_id="id", was="right"), on="parent_id")
    live = rows.filter(pl.col("drop_reason").is_null() & (pl.col("split") == "train"))
    known = judged["right"].n_unique() == 2
    auroc = f"{roc_auc_score(~judged['right'], judged['clear_preference']):.3f}" if known else ""
    counts = [
        judged.height,
        (~judged["right"]).sum(),
        new.height,
        (~new["was"]).sum(),
        (new["right"] & ~new["was"]).sum(),
        (~new["right"] & new["was"]).sum(),
        live.height,
    ]
    preferred = judged["clear_preference"].max()
    return [*map(str, counts), f"{(~live['right']).mean():.1%}", f"{preferred or 0:.3f}", auroc]


if __name__ == "__main__":
    main()
