"""The pages of a fitted rule and of a size search: files beside the datasets, Prefect artifacts, terminal lines."""

import json
from typing import Any

import numpy as np
import polars as pl

from curation.rule import Rule
from curation.rule_fit import GATE, Fit, interval
from flows import cards, svg
from flows.progress import say
from storage.store import Store


def publish(store: Store, name: str, said: dict[str, Any], text: str) -> None:
    """Write `<store>/reports/<name>` as .json and .md, and the artifact of that name where there is a server for it."""
    folder = store.root / "reports"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    url = cards.shown(text, cards.safe_key(name))
    say(f"page: {folder / f'{name}.md'}{f' and {url}' if url else ''}")


def fit_facts(
    rule: Rule, found: Fit, seen: pl.DataFrame, table: str, failed: list[str], retired: str | None
) -> dict[str, Any]:
    """All that a fit found, as plain values for JSON; `table` is the dataset of its observations, `seen`.

    `retired` is where the rule lies that had the name before, if this one is refused.
    """
    own = seen.filter(pl.col("subset").is_not_null())
    held = zip(found.predicted.tolist(), found.true.tolist(), strict=True)
    return {
        "name": rule.name,
        "installed": found.passes,
        "retired": retired,
        "sentence": fit_sentence(rule.name, found, retired),
        "rule": rule.model_dump(exclude_none=True),
        "spearman": {"mean": _number(found.spearman), "low": _number(found.low), "high": _number(found.high)},
        "heldout": [{"predicted": predicted, "true": true} for predicted, true in held],
        "fitted": {"observations": found.fitted, "own": found.own},
        "alone": {name: _number(value) for name, value in found.alone.items()},
        "left_out": dict(found.left_out),
        "loss": {"least": own["loss"].min(), "most": own["loss"].max()},
        "trainings": {"subsets": own.height, "of_other_runs": seen.height - own.height, "failed": len(failed)},
        "failed": failed,
        "observations": table,
    }


def fit_sentence(name: str, found: Fit, retired: str | None) -> str:
    n = len(found.true)
    how = f"{found.spearman:.2f} ({found.low:.2f} to {found.high:.2f}) on {n} subsets that it had not seen"
    if found.passes:
        return f"The rule {name} is installed: Spearman's correlation of predicted and true losses is {how}."
    why = f"Spearman's correlation of predicted and true losses is {how}, under {GATE}"
    if not found.terms:
        why = f"no indicator tells anything of the loss after training on {found.fitted} subsets"
    elif np.isnan(found.spearman):
        why = f"its predictions, or the losses, of {n} subsets that it had not seen are all alike"
    gone = f" The one that had the name {name} before can no longer be named either; it lies in {retired}."
    return f"No rule: {why}. It is not installed.{gone if retired else ''}"


def fit_markdown(said: dict[str, Any]) -> str:
    rule, held = said["rule"], said["heldout"]
    done = said["trainings"]
    out = [f"# The rule {said['name']}", "", f"**{said['sentence']}**", ""]
    out += [
        f"- {done['subsets']} trainings on subsets, {done['of_other_runs']} of other runs, {done['failed']} that "
        f"failed; the validation loss of the subsets goes from {said['loss']['least']:.4f} to "
        f"{said['loss']['most']:.4f}.",
        f"- Fitted on {said['fitted']['observations']} observations, {said['fitted']['own']} of them subsets of its "
        f"own, and tried on {len(held)} subsets that were kept apart. All trainings on the same rows are one "
        "observation.",
        f"- R² {rule['r2']:.3f} on what it was fitted on, {rule['leave_one_out_r2']:.3f} with each subset left out.",
        "- log loss = intercept + sum of coefficient times indicator; low is good. A coefficient is no cause: "
        "indicators that vary together share what they tell, and the inflation of the variance says how much.",
        "",
        "| indicator | coefficient | standard error | per std | mean | std | variance inflation | alone |",
        "|---|---|---|---|---|---|---|---|",
        f"| intercept | {rule['intercept']:.4g} | | | | | | |",
    ]
    for name, term in rule["terms"].items():
        cells = [term["coefficient"], term["error"], term["coefficient"] * term["std"], term["mean"], term["std"]]
        numbers = " | ".join(f"{v:.4g}" for v in cells)
        out.append(f"| {name} | {numbers} | {term['inflation']:.2f} | {_told(said['alone'][name])} |")
    if said["left_out"]:
        out += ["", "| left out | why | alone |", "|---|---|---|"]
        out += [f"| {name} | {why} | {_told(said['alone'][name])} |" for name, why in said["left_out"].items()]
    bars = [(name, r, *interval(r, said["fitted"]["own"])) for name, r in said["alone"].items() if r is not None]
    drawn = svg.intervals(bars, "Spearman's correlation of each indicator alone with the loss", "{:.2f}")
    out += ["", svg.image(drawn, "correlation of each indicator with the loss"), ""]
    out += ["## Subsets that were kept apart", "", "| predicted log loss | true log loss |", "|---|---|"]
    out += [f"| {h['predicted']:.4f} | {h['true']:.4f} |" for h in sorted(held, key=lambda h: h["true"])]
    out += ["", f"The observations are the dataset {said['observations']}.", ""]
    return "\n".join([*out, *[f"- {why}" for why in said["failed"]], ""])


def fit_text(said: dict[str, Any]) -> str:
    rule = said["rule"]
    lines = [f"{'indicator':<28} {'coefficient':>12} {'error':>10} {'inflation':>10} {'alone':>7}"]
    for name, t in rule["terms"].items():
        numbers = f"{t['coefficient']:>12.4g} {t['error']:>10.2g} {t['inflation']:>10.2f}"
        lines.append(f"{name:<28} {numbers} {_told(said['alone'][name]):>7}")
    lines += [f"{name:<28} left out: {why}" for name, why in said["left_out"].items()]
    lines.append(f"R² {rule['r2']:.3f}, with each subset left out {rule['leave_one_out_r2']:.3f}")
    return "\n".join([*lines, said["sentence"]])


def size_markdown(said: dict[str, Any]) -> str:
    points = [(p["rows"], p["loss"], p["low"], p["high"]) for p in said["sizes"]]
    out = [f"# How many rows: {said['name']}", "", f"**{said['sentence']}**", ""]
    out += [svg.image(svg.bands({"chosen rows": points}, "validation loss", "rows"), "validation loss by size"), ""]
    out += ["| rows | validation loss | 95 % interval | over the best | 95 % interval |", "|---|---|---|---|---|"]
    for p in said["sizes"]:
        behind = f"{p['behind']:+.4f} | {p['behind_low']:+.4f} to {p['behind_high']:+.4f}" if p["behind"] else "best |"
        out.append(f"| {p['rows']:,} | {p['loss']:.4f} | {p['low']:.4f} to {p['high']:.4f} | {behind} |")
    out += [
        "",
        f"{len(said['seeds'])} trainings of each size at {said['optimizer_steps']} steps; intervals are over seeds and "
        "validation rows. The lowest of several means is lower than it truly is, and the curve may fall, rise and fall "
        "again: a size between two of these was not tried.",
        "",
    ]
    return "\n".join([*out, *[f"- {why}" for why in said["failed"]], ""])


def size_text(said: dict[str, Any]) -> str:
    lines = [f"{'rows':>9} {'validation loss':>16} {'95 % interval':>20}"]
    lines += [f"{p['rows']:>9,} {p['loss']:>16.4f} {p['low']:>10.4f} to {p['high']:.4f}" for p in said["sizes"]]
    return "\n".join([*lines, *said["failed"], said["sentence"]])


def _told(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
