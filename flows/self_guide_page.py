"""The page of a Self-Guide run: what it gave over prompting, what was tried, what was written, good and bad."""

import io
import random
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from flows import statistics as st
from flows import svg
from flows.card import text as shown_as
from flows.report import unscorable
from flows.review import reasons, reviewed
from storage.schema import instruction, response
from storage.store import Store
from synthesis.retelling import input_of

if TYPE_CHECKING:
    from flows.self_guide_config import SelfGuideConfig, Setting
    from flows.self_guide_flow import Chain

SAMPLES = 5
ARMS = ("prompted", "few-shot", "self-guide")


def told(
    config: "SelfGuideConfig",
    store: Store,
    setting: "Setting",
    tried: list[dict[str, Any]],
    chains: list["Chain"],
    shown: dict[tuple[str, int], str],
) -> dict[str, Any]:
    """All that the page says, as plain values for JSON; `shown` has the few-shot answers by task and seed."""
    tasks = {name: _of_task(config, store, [c for c in chains if c.task.name == name], shown) for name in config.tasks}
    compared = [d for task in tasks.values() for d in task["differences"].values()]
    for d, p in zip(compared, st.holm([d["p"] for d in compared]), strict=True):
        d["holm"] = p
    said = {
        "name": config.name,
        "model": config.model,
        "seeds": config.seeds,
        "setting": asdict(setting),
        "setting_in_words": str(setting),
        "search": [one | {"setting": str(one["setting"])} for one in tried],
        "tasks": tasks,
        "failed": [f"{c.label}{c.failed}" for c in chains if c.failed],
    }
    return {"sentence": sentence(said), **said}


def _of_task(
    config: "SelfGuideConfig", store: Store, chains: list["Chain"], shown: dict[tuple[str, int], str]
) -> dict[str, Any]:
    task, done = chains[0].task, [c for c in chains if not c.failed]
    few = [shown[task.name, c.seed] for c in done or chains]
    left_out = unscorable(store, [task.prompted, *few, *(c.tested for c in done)])
    scores = {
        "prompted": np.array([scores_of(store, task.prompted, left_out)] * max(len(done), 1)),
        "few-shot": np.array([scores_of(store, tested, left_out) for tested in few]),
    }
    differences = {}
    if done:
        own = scores["self-guide"] = np.array([scores_of(store, c.tested, left_out) for c in done])
        differences = {arm: asdict(st.estimate(own - scores[arm], -1, 1)) for arm in ARMS[:2]}
    once = {"prompted": scores["prompted"][:1]}  # greedy, and the same for every seed
    grown = [_grown(store, c) for c in chains if c.marked]
    return {
        "metric": config.loop(task.name).evaluate.get("metric", "exact"),
        "heldout_rows": int(scores["prompted"].shape[1]),
        "unscorable": len(left_out),
        "validation_rows": store.manifest(task.validation).counts["live"],
        "arms": {arm: asdict(st.estimate(found, 0, 1)) for arm, found in (scores | once).items()},
        "differences": differences,
        "grown": grown,
        "samples": _samples(store, next((c.marked for c in chains if c.marked), None)),
        "datasets": [
            {k: getattr(c, k) for k in ("seed", "grown", "marked", "own", "adapter", "tested", "failed")}
            for c in chains
        ],
    }


def scores_of(store: Store, tested: str, left_out: set[str]) -> np.ndarray:
    """Of each row that is not left out, in one order; what could not be answered or judged is worth nothing."""
    rows = store.read(tested, ["id", "student_score"]).filter(~pl.col("id").is_in(list(left_out)))
    return rows.sort("id")["student_score"].fill_null(0.0).to_numpy()


def _grown(store: Store, chain: "Chain") -> dict[str, Any]:
    """What became of the inputs that were asked for, and what they cost."""
    made, dropped = store.manifest(chain.grown), reviewed(store, chain.marked)
    mine = store.read(chain.marked, ["id", "method"]).filter(pl.col("method") == "self-guide").select("id")
    why = {r["why"].removeprefix("self-guide: "): r["count"] for r in reasons(dropped.join(mine, on="id", how="semi"))}
    spent = store.run_facts(chain.grown)
    labels = store.read(chain.own, ["messages"])["messages"].list.last().struct.field("content")
    known, recited = "training_text" in made.inputs, made.counts.get("refused, recited", 0)
    return {
        "seed": chain.seed,
        "asked": made.counts["rows"],
        "kept": labels.len(),
        "answers": dict(labels.value_counts(sort=True).head(5).iter_rows()),
        "refused": why,
        "recited": recited / max(made.counts["rows"], 1) if known else None,
        "generated_tokens": spent.get("generated_tokens", 0),
        "seconds": spent.get("seconds", 0.0),
        "training_seconds": store.run_facts(chain.adapter).get("seconds", 0.0) if chain.adapter else 0.0,
    }


def _samples(store: Store, marked: str | None) -> list[dict[str, str]]:
    """Rows that were kept and rows that were not, drawn at random."""
    if marked is None:
        return []
    rows = store.read(marked, ["messages", "method", "drop_reason"]).filter(pl.col("method") == "self-guide").to_dicts()
    rng, out = random.Random(0), []
    for kept in (True, False):
        some = [r for r in rows if (r["drop_reason"] is None) is kept and instruction(r["messages"]).strip()]
        for r in rng.sample(some, min(SAMPLES, len(some))):
            why = "kept" if kept else r["drop_reason"].removeprefix("self-guide: ")
            out.append({"input": input_of(r["messages"]), "answer": response(r["messages"]), "why": why})
    return out


def sentence(said: dict[str, Any]) -> str:
    """What can be said in plain words, of each of the two ways to prompt."""
    with_student = {n: t for n, t in said["tasks"].items() if t["differences"]}
    if not with_student:
        return "Self-Guide gave no student."
    told = [
        f"Against {way}, Self-Guide is {_shown({n: t['differences'][arm] for n, t in with_student.items()})}."
        for arm, way in (("few-shot", "few-shot prompting"), ("prompted", "prompting alone"))
    ]
    for name, task in said["tasks"].items():
        students = sum(chain["adapter"] is not None for chain in task["datasets"])
        if students < len(task["datasets"]):
            told.append(f"On {name}, {students or 'none'} of {len(task['datasets'])} seeds gave a student.")
    return " ".join(told)


def _shown(differences: dict[str, Any]) -> str:
    told = {
        "ahead on": [n for n, d in differences.items() if d["holm"] < 0.05 and d["mean"] > 0],
        "behind on": [n for n, d in differences.items() if d["holm"] < 0.05 and d["mean"] < 0],
        "not shown to differ on": [n for n, d in differences.items() if d["holm"] >= 0.05],
    }
    return "; ".join(f"{how} {', '.join(names)}" for how, names in told.items() if names)


def markdown(said: dict[str, Any]) -> str:
    out = [f"# Self-Guide of {said['name']}", "", f"**{said['sentence']}**", ""]
    few = "one seed, which says nothing of other seeds" if len(said["seeds"]) == 1 else f"{len(said['seeds'])} seeds"
    out += [f"Model `{said['model']}`, {few}; {said['setting_in_words']}.", ""]
    for name, task in said["tasks"].items():
        out += [f"## {name}", "", *_arms(task), "", *_written(task), *_sample_lines(task)]
    out += _searched(said)
    if said["failed"]:
        out += [*(f"- {shown_as(told, 300)}" for told in said["failed"]), ""]
    out += [
        "Scores are means over the held-out rows; intervals are for other seeds and other rows (95 %, Student's t over "
        "both), differences are paired by seed and row, p is corrected for all of them (Holm). Few-shot shows the "
        "model as many examples as it had to write from, drawn by the seed; the student is shown none. No held-out row "
        "decided anything.",
        "",
    ]
    return "\n".join(out)


def _arms(task: dict[str, Any]) -> list[str]:
    out = ["| | score | 95 % interval | self-guide is ahead by | p |", "|---|---|---|---|---|"]
    for arm, e in task["arms"].items():
        d = task["differences"].get(arm)
        lead = f"{d['mean'] * 100:+.1f} ({d['low'] * 100:+.1f} to {d['high'] * 100:+.1f})" if d else ""
        p = f"{d['holm']:.3f}" if d else ""
        out.append(f"| {arm} | {e['mean']:.1%} | {e['low']:.1%} to {e['high']:.1%} | {lead} | {p} |")
    bars = [(arm, e["mean"], e["low"], e["high"]) for arm, e in task["arms"].items()]
    drawn = svg.image(
        svg.intervals(bars, f"{task['metric']}, {task['heldout_rows']:,} held-out rows"), "held-out score"
    )
    if left := task["unscorable"]:
        out += ["", f"{left:,} held-out rows were left out: nothing in their response can be compared by the metric."]
    return [*out, "", drawn]


def _written(task: dict[str, Any]) -> list[str]:
    out = ["| seed | inputs asked for | rows kept | recited | tokens written | seconds | training, seconds |"]
    out += ["|---|---|---|---|---|---|---|"]
    for g in task["grown"]:
        recited = "not known" if g["recited"] is None else f"{g['recited']:.1%}"
        cells = [g["seed"], g["asked"], g["kept"], recited, f"{g['generated_tokens']:,.0f}"]
        cells += [f"{g['seconds']:,.0f}", f"{g['training_seconds']:,.0f}"]
        out.append(f"| {' | '.join(map(str, cells))} |")
    if task["grown"]:
        first = task["grown"][0]
        why = "; ".join(f"{shown_as(reason, 80)} {n}" for reason, n in list(first["refused"].items())[:8])
        said = "; ".join(f"{shown_as(answer, 60)} {n}" for answer, n in first["answers"].items())
        out += ["", f"Not kept with seed {first['seed']}: {why or 'none'}. Commonest answers: {said or 'none'}."]
    return [*out, ""]


def _sample_lines(task: dict[str, Any]) -> list[str]:
    """As a list: where Prefect shows a table, it shows entities as they are written."""
    return [
        *(
            f"- {shown_as(s['input'], 200)} → {shown_as(s['answer'], 200)} ({shown_as(s['why'], 80)})"
            for s in task["samples"]
        ),
        "",
    ]


def _searched(said: dict[str, Any]) -> list[str]:
    if not said["search"]:
        return []
    names = list(said["tasks"])
    rows = ", ".join(f"{said['tasks'][n]['validation_rows']} of {n}" for n in names)
    out = [
        "## Settings that were tried",
        "",
        f"Gain over few-shot prompting on validation rows ({rows}), first seed.",
        "",
    ]
    out += [f"| setting | {' | '.join(names)} | least |", f"|---|{'---|' * (len(names) + 1)}"]
    for one in said["search"]:
        gains = [one["gains"][n] for n in names]
        cells = ["failed" if g is None else f"{g * 100:+.1f}" for g in gains]
        least = "" if None in gains else f"{min(gains) * 100:+.1f}"
        out.append(f"| {one['setting']} | {' | '.join(cells)} | {least} |")
    return [*out, "", f"Taken: {said['setting_in_words']}.", ""]


def terminal(said: dict[str, Any]) -> str:
    console = Console(width=118, file=io.StringIO(), highlight=False)
    table = Table("task", "", "score", "95 % interval", "self-guide is ahead by", "p", box=None)
    for name, task in said["tasks"].items():
        for arm, e in task["arms"].items():
            d = task["differences"].get(arm)
            lead = f"{d['mean'] * 100:+.1f} ({d['low'] * 100:+.1f} to {d['high'] * 100:+.1f})" if d else ""
            cells = [f"{e['mean']:.1%}", f"{e['low']:.1%} to {e['high']:.1%}", lead, f"{d['holm']:.3f}" if d else ""]
            table.add_row(name, arm, *cells)
    console.print(table)
    for name, task in said["tasks"].items():
        kept = ", ".join(f"{g['kept']} of {g['asked']}" for g in task["grown"])
        console.print(f"{name}: rows kept {kept or 'none'}", markup=False)
    if said["search"]:
        console.print(f"Setting: {said['setting_in_words']}", markup=False)
    console.print(said["sentence"], style="bold", markup=False)
    return console.file.getvalue().rstrip()
