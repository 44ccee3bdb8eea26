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
    compared = [a for a in arms if a.get("difference")]
    for a, p in zip(compared, st.holm([a["difference"]["p"] for a in compared]), strict=True):
        a["difference"]["holm"] = p
    for a in arms:
        a["sentence"] = sentence(a, results, len(compared))
    untuned = asdict(st.estimate(_matrix([{"answers": results["untuned"]}]), 0, 1))
    return {
        "verdict": verdict(arms, results),
        "untuned": untuned,
        "arms": arms,
        "worth": [w for a in arms if (w := _worth(a, arms))],
        "comparisons": len(compared),
    }


def _arm(results: dict[str, Any], arm: str, size: int | None, cells: list[dict]) -> dict[str, Any]:
    done = [c for c in cells if not c["failed"]]
    said: dict[str, Any] = {"arm": arm, "size": size, "seeds": [c["seed"] for c in done]}
    said["failed"] = next((c["failed"] for c in cells if c["failed"]), None)
    if not done:
        return said
    said["accuracy"] = asdict(st.estimate(_matrix(done), 0, 1))
    if all("loss" in c["answers"] for c in done):
        said["loss"] = asdict(st.estimate(np.array([c["answers"]["loss"] for c in done])))
    for what in ("taken", "trained_tokens", "training_seconds", "spoilt"):
        if what in done[0]:
            said[what] = float(np.mean([c[what] for c in done]))
    said["choosing"] = {k: float(np.mean([c["choosing"][k] for c in done])) for k in done[0]["choosing"]}
    if arm == "random":
        return said
    against = size or max(results["sizes"])
    pairs = [(c, b) for c in done if (b := _cell(results, "random", against, c["seed"]))]
    if pairs:
        difference = _matrix([c for c, _ in pairs]) - _matrix([b for _, b in pairs])
        found = st.spread(difference)
        said["difference"] = asdict(st.estimate(difference, -1, 1)) | {"against": against}
        said["same_rows"] = all(c["choice"] == b["choice"] for c, b in pairs)
        said["seeds_to_show"] = st.seeds_to_show(found, WORTHWHILE) if len(pairs) > 1 else None
    return said


def verdict(arms: list[dict[str, Any]], results: dict[str, Any]) -> str:
    """What to do, in a sentence or two."""
    shown = [a for a in arms if a.get("difference") and a["difference"]["holm"] < 0.05]
    better = sorted((a for a in shown if a["difference"]["mean"] > 0), key=lambda a: -a["accuracy"]["mean"])
    if not any(a.get("difference") for a in arms):
        return "There is nothing to compare random rows with: name arms in the config, or see why they failed."
    if better:
        best, others = better[0], list(dict.fromkeys(a["arm"] for a in better[1:] if a["arm"] != better[0]["arm"]))
        size = f" with {best['taken']:,.0f} rows" if best["size"] else ""
        also = f" Also better than random: {', '.join(others)}." if others else ""
        return f"Take {best['arm']}{size}: {best['accuracy']['mean']:.1%} of the held-out rows right.{also}"
    seeds = [a["seeds_to_show"] for a in arms if a.get("seeds_to_show")]
    most = max(seeds, default=0)
    more = f" {most} seeds would show a difference of 2 points." if most > len(results["seeds"]) else ""
    more = " More held-out rows would show more than more seeds." if most > 20 else more
    return f"Take random rows: nothing was shown to be better with {len(results['seeds'])} seeds.{more}"


def sentence(arm: dict[str, Any], results: dict[str, Any], comparisons: int) -> str:
    """What can be said of an arm in one plain sentence, and no more than that."""
    size = f" at {arm['size']:,} {results['unit']}" if arm["size"] and len(results["sizes"]) > 1 else ""
    name = f"{arm['arm']}{size}"
    if arm["failed"] and "accuracy" not in arm:
        return f"{name} could not be run: {arm['failed']}"
    if "difference" not in arm:
        return f"{name} is right on {arm['accuracy']['mean']:.1%} of the held-out rows."
    d, seeds = arm["difference"], len(arm["seeds"])
    if arm["same_rows"]:
        return f"{name} chose the same rows as random, so there is nothing to compare."
    points = f"{abs(d['mean']) * 100:.1f} points ({_points(d)})"
    what = "at the same optimiser steps" if arm["arm"] == "full" else f"at the same {d['against']:,} {results['unit']}"
    few = "" if seeds > 1 else "; one seed says nothing about other seeds: run three or more"
    if d["holm"] < 0.05:
        cost = f"; {_cost(arm['choosing'])}" if arm["arm"] not in ("full", "longest") else ""
        return f"{name} {'beats' if d['mean'] > 0 else 'is behind'} random by {points} {what}{cost}{few}."
    if d["p"] < 0.05:
        return (
            f"{name} is {'ahead of' if d['mean'] > 0 else 'behind'} random by {points} {what}, which among "
            f"{comparisons} comparisons may be chance{few}."
        )
    more = arm["seeds_to_show"]
    shown = f"; about {more} would show {WORTHWHILE * 100:.0f} points" if more and more > seeds else ""
    if seeds > 1 and not more:
        shown = f"; no number of seeds would show {WORTHWHILE * 100:.0f} points on so few held-out rows"
    if more and more <= seeds:
        shown = f"; a difference of {WORTHWHILE * 100:.0f} points would most likely have been seen"
    with_ = f"{seeds} seeds" if seeds > 1 else "one seed"
    return f"no difference between {name} and random could be shown with {with_} ({_points(d)}){shown}{few}."


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


def _cell(results: dict[str, Any], arm: str, size: int, seed: int) -> dict[str, Any] | None:
    same = (c for c in results["cells"] if (c["arm"], c["size"], c["seed"]) == (arm, size, seed) and not c["failed"])
    return next(same, None)


def _matrix(cells: list[dict[str, Any]]) -> np.ndarray:
    """Right or wrong, shape (seeds, rows)."""
    return np.array([[float(x) for x in c["answers"]["right"]] for c in cells])
