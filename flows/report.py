"""What the curation was worth: held-out accuracy of every arm with its interval, and where the rows went."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from sklearn.metrics import roc_auc_score

from curation.step import find_step
from flows import svg
from flows.statistics import estimate
from flows.trajectory import trajectory, trajectory_table
from storage.store import Manifest, Store, StoreError


@dataclass(frozen=True, slots=True)
class Round:
    guarded: str
    scored: str
    choice: str
    chosen: str
    adapter: str
    heldout: str | None
    results: str | None  # on the choice and on validation, which feed the next round; the last has none
    validation: str | None
    grown: list[str]
    weights: str | None = None  # of the clusters, for the next round


@dataclass(frozen=True, slots=True)
class SeedRun:
    """Dataset ids of one whole loop; `arms` are held-out evaluations by name, the baselines' and the rounds'."""

    seed: int
    pool: str
    guarded: str
    arms: dict[str, str]
    random_choice: str | None
    rounds: list[Round]
    adapters: list[str]


@dataclass(frozen=True, slots=True)
class Arm:
    name: str
    mean: float
    low: float
    high: float
    ahead: float | None = None  # of the random choice, paired over rows
    ahead_low: float | None = None
    ahead_high: float | None = None


def arms(store: Store, runs: list[SeedRun]) -> list[Arm]:
    """Accuracy of each arm, and its paired difference from random, with 95 % intervals over rows and seeds.

    Rows whose response the metric cannot compare are left out, see `unscorable`.
    """
    left_out = unscorable(store, _evaluations(runs))
    names = dict.fromkeys(name for run in sorted(runs, key=lambda r: -len(r.rounds)) for name in run.arms)
    # A seed whose loop stopped earlier stands with its last round for the later ones.
    tests = {n: [run.arms.get(n, run.rounds[-1].heldout) for run in runs] for n in names}
    correct = {n: _correct(store, tested, left_out) for n, tested in tests.items()}
    baseline, out = correct.get("random"), []
    for name, matrix in correct.items():
        found = estimate(matrix, 0, 1)
        arm = [name, found.mean, found.low, found.high]
        if baseline is not None and name != "random":
            lead = estimate(matrix - baseline, -1, 1)
            arm += [lead.mean, lead.low, lead.high]
        out.append(Arm(*arm))
    return out


def filter_quality(store: Store, run: SeedRun, spoilt: set[int]) -> list[dict]:
    """Per round: how well CLEAR told the spoilt rows, and how many of them the choice took."""
    origin = store.read_side(run.pool, "origin").select("id", "line")
    wrong = origin.select("id", spoilt=pl.col("line").is_in(list(spoilt)))
    out = []
    if run.random_choice:
        out.append({"choice": "random", **taken_share(store, run.guarded, run.random_choice, wrong)})
    for number, round_ in enumerate(run.rounds, 1):
        told = {"choice": f"round {number}", **taken_share(store, round_.scored, round_.choice, wrong)}
        out.append(told)
        rows = store.read(round_.scored, ["id", "drop_reason", "clear_confidence"]).join(wrong, on="id")
        if "clear_confidence" not in rows.columns:
            continue
        judged = rows.drop_nulls("clear_confidence")
        dropped = judged["drop_reason"].fill_null("").str.starts_with("clear-filter")
        caught = int((dropped & judged["spoilt"]).sum())
        if judged["spoilt"].n_unique() == 2:
            told["auroc"] = float(roc_auc_score(~judged["spoilt"].to_numpy(), judged["clear_confidence"].to_numpy()))
        told |= {
            "precision": caught / max(int(dropped.sum()), 1),
            "recall": caught / max(int(judged["spoilt"].sum()), 1),
        }
    return out


def drop_reasons(store: Store, run: SeedRun) -> list[tuple[str, int]]:
    """Where the rows of the last round went, rejects of the import first."""
    counts = dict(store.manifest(run.rounds[-1].scored).counts)
    rejected = store.manifest(run.pool).counts.get("rejected", 0)
    reasons = [(k.removeprefix("dropped by "), n) for k, n in counts.items() if k.startswith("dropped by ")]
    grown = counts["rows"] - store.manifest(run.pool).counts["rows"]
    return [
        ("rejected on import", rejected),
        ("rows", counts["rows"]),
        ("grown", grown),
        *reasons,
        ("live", counts["live"]),
    ]


def growth(store: Store, run: SeedRun) -> list[dict[str, Any]]:
    """What each step wrote in each round, and how many rows of its own, of any round, the next choice took.

    `recited` is the share that the writing model knew by heart; null where what it was trained on is not known.
    """
    out = []
    for number, (round_, after) in enumerate(zip(run.rounds, run.rounds[1:], strict=False), 1):
        choice = store.read(after.choice).filter("taken")
        took = store.read(after.scored, ["id", "method"]).join(choice, on="id", how="semi")["method"].to_list()
        for made in (store.manifest(d) for d in round_.grown if find_step(store.manifest(d).step).kind == "make"):
            rows, told = made.counts["rows"], {"round": number, "step": made.step, "taken_next": took.count(made.step)}
            known = made.counts.get("refused, recited", 0) / max(rows, 1) if "training_text" in made.inputs else None
            out.append(told | {"rows": rows, "kept": made.counts["live"], "recited": known})
    return out


def seconds(store: Store, runs: list[SeedRun]) -> list[tuple[str, float]]:
    """Seconds that each stage took when it was computed, over all rounds and seeds."""
    ends = [d for run in runs for r in run.rounds for d in (r.choice, *r.grown, *([r.results] if r.results else []))]
    ends += [d for run in runs for d in (*run.arms.values(), *run.adapters)]
    out: dict[str, float] = {}
    for made in lineage(store, ends):
        out[made.step] = out.get(made.step, 0.0) + float(store.run_facts(made.id).get("seconds", 0.0))
    return sorted(((k, round(v, 1)) for k, v in out.items() if v >= 0.05), key=lambda kv: -kv[1])


def lineage(store: Store, ends: list[str]) -> list[Manifest]:
    """These datasets and all that they were made of, each once."""
    seen: dict[str, Manifest] = {}
    stack = list(ends)
    while stack:
        if (dataset := stack.pop()) not in seen:
            seen[dataset] = store.manifest(dataset)
            stack += list(seen[dataset].inputs.values())
    return list(seen.values())


def losses(store: Store, run: SeedRun) -> dict[str, list[list[float]]]:
    """Training loss over steps of the first seed's arms: the baselines', if there are any, and the last round's."""
    rounds = [r.adapter for r in run.rounds]
    others = [a for a in run.adapters if a not in rounds]
    named = dict(zip(("random", "full pool"), others, strict=False)) | {f"round {len(rounds)}": rounds[-1]}
    return {name: [list(row) for row in store.read(made, ["step", "loss"]).rows()] for name, made in named.items()}


def sentence(found: list[Arm], rows: int, seeds: int) -> str:
    """What can be said in one plain sentence."""
    rounds = [a for a in found if a.name.startswith("round")]
    best = rounds[-1]
    if best.ahead is None:
        return f"The last round reached {best.mean:.1%} on the held-out rows."
    amount = f"{abs(best.ahead) * 100:.1f} points ({best.ahead_low * 100:.1f} to {best.ahead_high * 100:.1f})"
    over = f"{seeds} seeds" if seeds > 1 else "one seed"
    if best.ahead_low > 0:
        return f"The loop's choice beats a random choice of the same {rows} rows by {amount}, {over}."
    if best.ahead_high < 0:
        return f"The loop's choice is behind a random choice of the same {rows} rows: {amount}, {over}."
    return f"No difference from a random choice of the same {rows} rows could be shown: {amount}, {over}."


def facts(store: Store, runs: list[SeedRun], budget_rows: int, spoilt: set[int] | None) -> dict[str, Any]:
    """Everything that the report says, as plain values for JSON."""
    found = arms(store, runs)
    lines = store.read_side(runs[0].pool, "origin")["line"]
    return {
        "sentence": sentence(found, budget_rows, len(runs)),
        "arms": [asdict(arm) for arm in found],
        "unscorable": len(unscorable(store, _evaluations(runs))),
        "spoilt": float(lines.is_in(list(spoilt)).mean()) if spoilt is not None else None,
        "choices": [filter_quality(store, run, spoilt) for run in runs] if spoilt is not None else [],
        "rows": dict(drop_reasons(store, runs[0])),
        "grown": growth(store, runs[0]),
        "seconds": dict(seconds(store, runs)),
        "losses": losses(store, runs[0]),
        "cluster_weights": trajectory(
            store, runs[0].rounds[0].scored, [r.weights for r in runs[0].rounds if r.weights]
        ),
        "seeds": [run.seed for run in runs],
        "datasets": [asdict(run) for run in runs],
    }


def markdown(title: str, said: dict[str, Any], notes: list[str] = ()) -> str:
    out = [f"# {title}", "", said["sentence"], ""]
    out += ["| arm | held-out accuracy | 95 % interval | ahead of random |", "|---|---|---|---|"]
    for a in said["arms"]:
        out.append(f"| {a['name']} | {a['mean']:.1%} | {a['low']:.1%} to {a['high']:.1%} | {ahead(a)} |")
    if left := said["unscorable"]:
        out += ["", f"{left:,} held-out rows were left out: nothing in their response can be compared by the metric."]
    bars = [(a["name"], a["mean"], a["low"], a["high"]) for a in said["arms"]]
    out += ["", svg.image(svg.intervals(bars, "held-out accuracy")), ""]
    if said["choices"]:
        out += _spoilt_table(said)
    if said["cluster_weights"]:
        out += trajectory_table(said["cluster_weights"])
    out += ["## Training loss", "", svg.image(svg.lines(said["losses"], "training loss"), "training loss by step"), ""]
    out += ["## Where the rows went", "", "| what | rows |", "|---|---|"]
    out += [f"| {what} | {n:,} |" for what, n in said["rows"].items()]
    out += _grown_table(said)
    out += ["", "## Seconds per stage", "", "| stage | seconds |", "|---|---|"]
    out += [f"| {stage} | {s:,.1f} |" for stage, s in said["seconds"].items()]
    out += [f"| all | {sum(said['seconds'].values()):,.1f} |", ""]
    return "\n".join([*out, *notes])


def _grown_table(said: dict[str, Any]) -> list[str]:
    if not said["grown"]:
        return []
    out = ["", "## What was grown", ""]
    out += ["| round | by | replies read, and rows short | kept | recited | its rows in the next choice |"]
    out += ["|---|---|---|---|---|---|"]
    for g in said["grown"]:
        recited = "not known" if g["recited"] is None else f"{g['recited']:.1%}"
        out.append(f"| {g['round']} | {g['step']} | {g['rows']:,} | {g['kept']:,} | {recited} | {g['taken_next']:,} |")
    return out


def ahead(arm: dict[str, Any]) -> str:
    """How far an arm is ahead of the random choice, with its interval; empty for that choice itself."""
    if arm["ahead"] is None:
        return ""
    return f"{arm['ahead']:+.1%} ({arm['ahead_low']:+.1%} to {arm['ahead_high']:+.1%})"


def filter_cells(line: dict[str, Any]) -> list[str]:
    """AUROC, precision and recall of the filter, empty where there was no filter."""
    return [f"{line[k]:.3f}" if k in line else "" for k in ("auroc", "precision", "recall")]


def _spoilt_table(said: dict[str, Any]) -> list[str]:
    out = [f"Of the pool, {said['spoilt']:.1%} of the rows carry a wrong answer.", ""]
    out += [
        "| choice | spoilt | grown | AUROC of confidence | filter precision | filter recall |",
        "|---|---|---|---|---|---|",
    ]
    for lines in zip(*said["choices"], strict=False):
        both = set.intersection(*(set(line) for line in lines)) - {"choice"}
        mean = {k: float(np.mean([line[k] for line in lines])) for k in both}
        cells = [f"{mean['spoilt']:.1%}", f"{mean['grown']:.0f}", *filter_cells(mean)]
        out.append(f"| {lines[0]['choice']} | " + " | ".join(cells) + " |")
    return [*out, ""]


def taken_share(store: Store, rows: str, choice: str, wrong: pl.DataFrame) -> dict:
    """Share of spoilt rows among those taken; a grown row has its parent's answer, and is as wrong.

    Whether a corrected answer is right is not known from its parent: such rows are counted among the grown ones alone.
    """
    parents = store.read(rows, ["id", "parent_id", "method"])
    took = store.read(choice, ["id", "taken"]).filter("taken").join(parents, on="id")
    known = took.filter(pl.col("method").ne_missing("clear-correct"))
    from_ = known.select(id=pl.coalesce("parent_id", "id")).join(wrong, on="id", how="left")
    return {"spoilt": float(from_["spoilt"].mean() or 0.0), "grown": took.height - took["parent_id"].null_count()}


def unscorable(store: Store, evaluations: list[str]) -> set[str]:
    """Rows with answers and no verdict on any: their response has nothing to compare, such as no number.

    They say nothing of a model. An answer that a model failed to give is a wrong one, and one without a verdict of its
    own where others have one. Raises StoreError where no row is left.
    """
    columns = ["id", "student_answer", "student_correct"]
    rows = pl.concat([store.read(d, columns) for d in dict.fromkeys(evaluations)])
    told = rows.group_by("id").agg(pl.col("student_answer", "student_correct").is_not_null().any())
    left_out = set(told.filter(pl.col("student_answer") & ~pl.col("student_correct"))["id"])
    if left_out and len(left_out) == told.height:
        raise StoreError(
            f"none of the {told.height:,} rows has a response that the metric can compare, such as a number; "
            "take another `metric` under `evaluate`"
        )
    return left_out


def _evaluations(runs: list[SeedRun]) -> list[str]:
    return [tested for run in runs for tested in (*run.arms.values(), run.rounds[-1].heldout) if tested]


def _correct(store: Store, evaluations: list[str], left_out: set[str]) -> np.ndarray:
    """Held-out correctness, shape (seeds, rows), the rows in one order."""
    frames = [store.read(d, ["id", "student_correct"]).sort("id") for d in evaluations]
    frames = [f.filter(~pl.col("id").is_in(list(left_out))) for f in frames]
    return np.array([f["student_correct"].fill_null(False).to_numpy() for f in frames], dtype=float)
