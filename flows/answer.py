"""What a comparison says: per arm a mean, a paired difference from random, what it cost, and one plain sentence."""

from dataclasses import asdict
from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression

from flows import statistics as st

WORTHWHILE = 0.02  # a difference that people would care about: how many seeds would show it, where none was shown


def answer(results: dict[str, Any]) -> dict[str, Any]:
    """The results of `gather` as arms with intervals, sentences and curves; plain values for JSON."""
    grouped: dict[tuple[str, int | None], list[dict]] = {}
    for cell in results["cells"]:
        grouped.setdefault((cell["arm"], cell["size"]), []).append(cell)
    arms = [_arm(results, arm, size, cells) for (arm, size), cells in grouped.items()]
    compared = [a for a in arms if "difference" in a]
    for a, p in zip(compared, st.holm([a["difference"]["p"] for a in compared]), strict=True):
        a["difference"]["holm"] = p
    for a in arms:
        a["seeds_to_show"] = _seeds_to_show(results, a, len(compared))
        a["sentence"] = sentence(a, results, len(compared))
    return {
        "verdict": verdict(arms, results),
        "untuned": asdict(st.estimate(_matrix([{"answers": results["untuned"]}]), 0, 1)),
        "arms": arms,
        "worth": [w for a in arms if results["baseline"] == "random" and (w := _worth(a, arms))],
        "comparisons": len(compared),
    }


def _arm(results: dict[str, Any], arm: str, size: int | None, cells: list[dict]) -> dict[str, Any]:
    done = [c for c in cells if not c["failed"]]
    said: dict[str, Any] = {"arm": arm, "size": size, "seeds": [c["seed"] for c in done]}
    said["failed"] = {c["seed"]: c["failed"] for c in cells if c["failed"]}
    if not done:
        return said
    said["accuracy"] = asdict(st.estimate(_matrix(done), 0, 1))
    if all("loss" in c["answers"] for c in done):
        said["loss"] = asdict(st.estimate(np.array([c["answers"]["loss"] for c in done])))
    for what in ("taken", "trained_tokens", "training_seconds", "spoilt"):
        if what in done[0]:
            said[what] = float(np.mean([c[what] for c in done]))
    said["choosing"] = {k: float(np.mean([c["choosing"][k] for c in done])) for k in done[0]["choosing"]}
    if pairs := _pairs(results, arm, size):
        against = float(np.mean([b["taken"] for _, b in pairs]))
        said["difference"] = asdict(st.estimate(_difference(pairs), -1, 1)) | {"against": against, "seeds": len(pairs)}
        said["same_rows"] = all(c["choice"] == b["choice"] for c, b in pairs)
    return said


def _pairs(results: dict[str, Any], arm: str, size: int | None) -> list[tuple[dict, dict]]:
    """Cells of an arm, each beside the baseline's with the same seed; `full` stands beside the largest."""
    if arm == results["baseline"]:
        return []
    done = {(c["arm"], c["size"], c["seed"]): c for c in results["cells"] if not c["failed"]}
    base = (results["baseline"], None if results["baseline"] == "full" else size or max(results["sizes"]))
    both = ((done.get((arm, size, seed)), done.get((*base, seed))) for seed in results["seeds"])
    return [(c, b) for c, b in both if c and b]


def _difference(pairs: list[tuple[dict, dict]]) -> np.ndarray:
    return _matrix([c for c, _ in pairs]) - _matrix([b for _, b in pairs])


def _seeds_to_show(results: dict[str, Any], arm: dict[str, Any], comparisons: int) -> int | None:
    """Seeds that would show a difference worth having, corrected for as many comparisons; None if none would."""
    pairs = _pairs(results, arm["arm"], arm["size"])
    if len(pairs) < 2:
        return None
    return st.seeds_to_show(st.spread(_difference(pairs)), WORTHWHILE, 0.05 / comparisons)


def verdict(arms: list[dict[str, Any]], results: dict[str, Any]) -> str:
    """What to do, in a sentence or two, of the arms that had the largest budget."""
    base = results["baseline"]
    compared = [a for a in arms if "difference" in a and a["size"] in (max(results["sizes"]), None)]
    compared = [a for a in compared if not a["same_rows"]]
    if not compared:
        return f"There is nothing to compare with {base}: it failed, or no other arm stands or took other rows."
    better = [a for a in compared if a["difference"]["holm"] < 0.05 and a["difference"]["mean"] > 0]
    if better:
        best, *others = sorted(better, key=lambda a: -a["accuracy"]["mean"])
        with_ = _with(best["difference"]["seeds"])
        rows = f"{best['arm']}, {best['taken']:,.0f} rows" if best["size"] else "the full pool"
        also = f" Also better than {base}: {', '.join(a['arm'] for a in others)}." if others else ""
        also += f" Whether {best['arm']} is ahead of these, `--set baseline={best['arm']}` says." if others else ""
        return f"Take {rows}: {best['accuracy']['mean']:.1%} of the held-out rows right, {with_}.{also}"
    needed = [a["seeds_to_show"] for a in compared if a["arm"] != "full" and a["difference"]["seeds"] > 1]
    points, more = f"{WORTHWHILE * 100:.0f} points", ""
    if None in needed:
        some = " of some arms" if any(needed) else ""
        more = f" For differences of {points}{some} the held-out rows are too few, however many seeds there are."
    elif needed and max(needed) > max(a["difference"]["seeds"] for a in compared):
        more = f" {max(needed):,} seeds would most likely show a difference of {points}."
    return (
        f"Keep {base}: nothing was shown to be better {_with(max(a['difference']['seeds'] for a in compared))}.{more}"
    )


def _with(seeds: int) -> str:
    return f"with {seeds} seeds" if seeds > 1 else "with one seed; run three or more"


def sentence(arm: dict[str, Any], results: dict[str, Any], comparisons: int) -> str:
    """What can be said of an arm in one plain sentence, and no more than that."""
    size = f" at {arm['size']:,} {results['unit']}" if arm["size"] and len(results["sizes"]) > 1 else ""
    name, base = f"{arm['arm']}{size}", results["baseline"]
    failed = "; ".join(f"seed {seed}: {why}" for seed, why in arm["failed"].items())
    if "accuracy" not in arm:
        return f"{name} could not be run: {next(iter(arm['failed'].values()))}"
    without = f" Failed with {failed}" if failed else ""
    if "difference" not in arm:
        return f"{name} is right on {arm['accuracy']['mean']:.1%} of the held-out rows.{without}"
    if arm["same_rows"]:
        return f"{name} chose the same rows as {base}, so there is nothing to compare.{without}"
    d = arm["difference"]
    points, seeds = f"{abs(d['mean']) * 100:.1f} points ({_points(d)})", d["seeds"]
    few = "" if seeds > 1 else "; one seed says nothing about other seeds: run three or more"
    if d["holm"] < 0.05:
        cost = f"; {_cost(arm['choosing'])}" if arm["arm"] not in ("full", "longest") else ""
        told = f"{'beats' if d['mean'] > 0 else 'is behind'} {base} by {points} {_at(arm)}{cost}"
        return f"{name} {told}{few}.{without}"
    if d["p"] < 0.05:
        told = f"{'ahead of' if d['mean'] > 0 else 'behind'} {base} by {points} {_at(arm)}"
        return f"{name} is {told}, which among {comparisons} comparisons may be chance{few}.{without}"
    with_ = f"{seeds} seeds ({_points(d)}){_what_would_show(arm, seeds)}" if seeds > 1 else f"one seed ({_points(d)})"
    return f"no difference between {name} and {base} could be shown with {with_}{few}.{without}"


def _what_would_show(arm: dict[str, Any], seeds: int) -> str:
    more, points = arm["seeds_to_show"], f"{WORTHWHILE * 100:.0f} points"
    if not more:
        return f"; no number of seeds would show {points} on so few held-out rows"
    if more > seeds:
        return f"; about {more:,} seeds would show {points}"
    return f"; {points} would most likely have been seen"


def _at(arm: dict[str, Any]) -> str:
    """What was alike: the rows where there were as many, and the steps always."""
    if arm["size"] is None:
        return "at the same optimiser steps"
    taken, against = round(arm["taken"]), round(arm["difference"]["against"])
    return f"at the same {taken:,} rows" if taken == against else f"with {taken:,} rows against {against:,}"


def _points(d: dict[str, float]) -> str:
    """The interval, in points, as seen from the side that is ahead."""
    low, high = sorted((d["low"], d["high"]) if d["mean"] >= 0 or d["p"] >= 0.05 else (-d["high"], -d["low"]))
    return f"{low * 100:.1f} to {high * 100:.1f}"


def _cost(choosing: dict[str, float]) -> str:
    if choosing["generated_tokens"]:
        return f"choosing cost {choosing['generated_tokens']:,.0f} generated tokens"
    return f"choosing took {choosing['seconds']:,.0f} s and no generated token"


def _worth(arm: dict[str, Any], arms: list[dict[str, Any]]) -> dict[str, Any] | None:
    """How many random rows do what an arm's rows do, read off the curve of random; where a difference was shown."""
    curve = sorted((a["taken"], a["accuracy"]["mean"]) for a in arms if a["arm"] == "random" and "accuracy" in a)
    if arm["arm"] == "full" or "difference" not in arm or arm["difference"]["holm"] >= 0.05 or len(curve) < 2:
        return None
    rows, accuracy = map(np.array, zip(*curve, strict=True))
    rising = IsotonicRegression().fit_transform(np.log(rows), accuracy)
    mean, said = arm["accuracy"]["mean"], {"arm": arm["arm"], "rows": arm["taken"]}
    if mean > rising[-1]:
        return said | {"random_rows": float(rows[-1]), "bound": "more than"}
    if mean < rising[0]:
        return said | {"random_rows": float(rows[0]), "bound": "fewer than"}
    keep = np.r_[True, np.diff(rising) > 0]  # a flat stretch is reached at its first rows
    return said | {"random_rows": float(np.exp(np.interp(mean, rising[keep], np.log(rows[keep])))), "bound": "about"}


def _matrix(cells: list[dict[str, Any]]) -> np.ndarray:
    """Right or wrong, shape (seeds, rows)."""
    return np.array([[float(x) for x in c["answers"]["right"]] for c in cells])
