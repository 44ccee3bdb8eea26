"""The page of a comparison: Markdown with drawings, the same as HTML, and a short form for the terminal."""

import io
import json
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from rich.console import Console
from rich.table import Table

from flows import svg
from flows.answer import answer
from flows.config import ConfigError

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:66rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;display:block;overflow-x:auto}th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;
text-align:right;white-space:nowrap}th:first-child,td:first-child{text-align:left}img{max-width:100%}
@media(prefers-color-scheme:dark){body{background:#16181d;color:#ddd}th,td{border-color:#3a3d45}}"""


def read_results(path: Path) -> dict[str, Any]:
    """The results of an earlier comparison, from which its page is made again."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        markdown(said, answer(said))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}; `thresher compare` writes one into the store's reports") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{path} holds no results of a comparison; `thresher compare` writes such a file") from None
    return said


def write(path: Path, results: dict[str, Any]) -> None:
    """A comparison as the file's ending wants it: .md, .html, or .json, the results to make the others from."""
    check_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results) + "\n" if path.suffix == ".json" else markdown(results, answer(results))
    path.write_text(as_html(text) if path.suffix == ".html" else text, encoding="utf-8")


def check_path(path: Path) -> None:
    if path.suffix not in (".md", ".html", ".json"):
        raise ConfigError(f"{path}: a page ends in .md, .html or .json")


def markdown(results: dict[str, Any], said: dict[str, Any]) -> str:
    out = [f"# {results['name']}: which rows to train on", "", f"**{_plain(said['verdict'])}**", ""]
    out += [f"- {_plain(sentence)}" for sentence in _sentences(said)]
    base = next((a["accuracy"]["mean"] for a in _largest(results, said) if a["arm"] == results["baseline"]), None)
    drawn = svg.intervals(_bars(results, said), f"held-out accuracy; the line is {results['baseline']}", "{:.1%}", base)
    out += ["", svg.image(drawn, "held-out accuracy of each arm"), ""]
    spoilt = ["spoilt"] if results["spoilt"] is not None else []
    ahead = f"ahead of {results['baseline']}"
    head = ["arm", "rows", "accuracy", "95 % interval", ahead, "chance ahead", "p, corrected", *spoilt]
    u = said["untuned"]
    untuned = ["untuned", "", f"{u['mean']:.1%}", f"{u['low']:.1%} to {u['high']:.1%}"]
    out += _table(head, [untuned, *(_cells(a, results) for a in _ranked(said["arms"]))])
    out += _legend(results, said)
    if len(results["sizes"]) > 1:
        for metric in ("accuracy", "loss"):
            if any(metric in a for a in said["arms"]):
                out += [svg.image(curves(results, said, metric), f"{metric} against the size of the choice"), ""]
        out += _spoken_worth(said)
    out += _what_they_did(results)
    out += [
        "## What it cost",
        "",
        "Means over seeds. What arms or seeds share was computed once and counts for each.",
        "",
    ]
    head = ["arm", "choosing: seconds", "model calls", "generated tokens", "training: seconds", "trained tokens"]
    out += _table(head, [_costs(a, results) for a in _ranked(said["arms"]) if "accuracy" in a])
    return "\n".join([*out, *_overlap(results), *_measured(results)])


def _legend(results: dict[str, Any], said: dict[str, Any]) -> list[str]:
    """What the columns mean, right under them."""
    others = "other seeds and other held-out rows (95 %, Student's t over both)"
    if len(results["seeds"]) == 1:
        others = "other held-out rows (95 %, Student's t); one seed says nothing of other seeds"
    spoilt = "Spoilt: share of the rows taken that are known to be wrong, a written row as its parent; no arm was told."
    return [
        f"The interval is for the true mean over {others}; the difference is paired by seed and row.",
        "Chance ahead: that the true difference is over 0, by this arm alone; p is corrected for all "
        f"{said['comparisons']} comparisons (Holm), and under 0.05 counts as shown.",
        *([spoilt] if results["spoilt"] is not None else []),
        "",
    ]


def _what_they_did(results: dict[str, Any]) -> list[str]:
    """Each arm's steps, what a step does, and where its rows and adapters lie."""
    out = ["## What each arm did", ""]
    for arm, did in results["arms"].items():
        parts = [f"{what}: {', '.join(steps)}" for what, steps in did.items() if steps]
        out.append(f"- **{_plain(arm)}** {_plain('; '.join(parts))}")
    out += ["", *(f"`{step}`: {_plain(does)}  " for step, does in results["steps"].items()), ""]
    lies: dict[str, dict[int, str]] = {}
    for c in results["cells"]:
        if not c["failed"] and c["size"] in (max(results["sizes"]), None):
            right = c["answers"]["right"]
            said = f"{right.count('1') / len(right):.1%} `{c['chosen']}` `{c['adapter']}`"
            lies.setdefault(c["arm"], {})[c["seed"]] = said
    rows = [[_plain(arm), *(by_seed.get(seed, "failed") for seed in results["seeds"])] for arm, by_seed in lies.items()]
    out += [
        "Held-out accuracy, rows and adapter by seed; seeds differ by chance alone.",
        "`thresher export taken-… rows.jsonl` writes rows for other tools, `thresher export-adapter train-… FOLDER` an "
        "adapter.",
        "",
    ]
    return [*out, *_table(["arm", *(f"seed {seed}" for seed in results["seeds"])], rows)]


def _measured(results: dict[str, Any]) -> list[str]:
    seeds = results["seeds"]
    few = f"seed {seeds[0]} alone" if len(seeds) == 1 else f"{len(seeds)} seeds"
    left = results["heldout"].get("unscorable", 0)
    unscorable = f" ({left:,} more are left out: their response cannot be compared by the metric)" if left else ""
    return [
        "## How it was measured",
        "",
        f"Every arm trained `{results['model']}` from the same start, {results['optimizer_steps']} optimiser steps, "
        f"{few}, and answered the same {results['heldout']['rows']:,} held-out rows{unscorable}. No arm saw these; "
        "rows of the pool that equal or nearly equal one were left out of every choice. `full` is all that was left "
        "but the rows kept for validation, at the same steps, so each is seen less often. Arms draw by the random "
        "numbers of the seed, the same for all.",
        "",
        _time(results["seconds"]),
        "",
    ]


def _time(seconds: dict[str, float]) -> str:
    by = f" by {seconds['workers']} processes" if seconds["workers"] > 1 else ""
    return (
        f"All steps and trainings behind it took {seconds['everything']:,.0f} s of computing. The last run of the "
        f"command took {seconds['here']:,.0f} s{by}, in which steps and trainings took {seconds['computing']:,.0f} s."
    )


def as_html(text: str) -> str:
    """The Markdown as a page that stands alone."""
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    title = text.partition("\n")[0].lstrip("# ")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return f"<!doctype html><html lang=en><head>{head}<style>{_STYLE}</style></head><body>{body}</body></html>\n"


def terminal(results: dict[str, Any], said: dict[str, Any]) -> str:
    console = Console(width=118, file=io.StringIO(), highlight=False)
    table = Table("arm", "rows", "accuracy", "", f"ahead of {results['baseline']}", "p", "generated", box=None)
    low = min([a["accuracy"]["low"] for a in said["arms"] if "accuracy" in a] + [said["untuned"]["low"]])
    high = max([a["accuracy"]["high"] for a in said["arms"] if "accuracy" in a] + [said["untuned"]["high"]])
    u = said["untuned"]
    table.add_row("untuned", "", f"{u['mean']:.1%}", _whisker(u, low, high))
    for a in _ranked(said["arms"]):
        if "accuracy" not in a:
            table.add_row(a["arm"], "", "failed")
            continue
        d = a.get("difference")
        ahead = f"{d['mean'] * 100:+.1f} ({d['low'] * 100:+.1f} to {d['high'] * 100:+.1f})" if d else ""
        cost = f"{a['choosing']['generated_tokens']:,.0f}"
        p = _p(d["holm"]) if d else ""
        table.add_row(
            a["arm"],
            f"{a['taken']:,.0f}",
            f"{a['accuracy']['mean']:.1%}",
            _whisker(a["accuracy"], low, high),
            ahead,
            p,
            cost,
        )
    console.print(table)
    console.print()
    for sentence in _sentences(said):
        console.print(sentence, markup=False)
    console.print()
    console.print(said["verdict"], style="bold", markup=False)
    return console.file.getvalue().rstrip()


def curves(results: dict[str, Any], said: dict[str, Any], metric: str) -> str:
    """A metric against the size of the choice, a line with its band for every arm."""
    lines: dict[str, list] = {}
    for a in said["arms"]:
        if metric in a and a["size"]:
            e = a[metric]
            lines.setdefault(a["arm"], []).append((a["size"], e["mean"], e["low"], e["high"]))
    return svg.bands(lines, f"held-out {metric}", results["unit"])


def _sentences(said: dict[str, Any]) -> list[str]:
    return [f"{a['sentence'][0].upper()}{a['sentence'][1:]}" for a in _ranked(said["arms"]) if _tells(a)]


def _tells(a: dict[str, Any]) -> bool:
    """The baseline's accuracy stands in the table; that it failed is worth a sentence."""
    return "difference" in a or bool(a["failed"])


def _bars(results: dict[str, Any], said: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """The untuned model, and every arm at the largest budget."""
    shown = [("untuned", said["untuned"]), *((a["arm"], a["accuracy"]) for a in _largest(results, said))]
    return [(name, e["mean"], e["low"], e["high"]) for name, e in shown]


def _largest(results: dict[str, Any], said: dict[str, Any]) -> list[dict[str, Any]]:
    """The arms that stand at the largest budget, the best first."""
    sized = (max(results["sizes"]), None)
    return [a for a in _ranked(said["arms"]) if "accuracy" in a and a["size"] in sized]


def _ranked(arms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By budget, the full pool with the largest; within it the best first and what failed last."""
    most = max((a["size"] for a in arms if a["size"]), default=0)
    return sorted(arms, key=lambda a: (a["size"] or most, -a["accuracy"]["mean"] if "accuracy" in a else 1.0))


def _plain(text: str) -> str:
    return escape(text, quote=False)


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _chance(value: float) -> str:
    return "&gt;99.9%" if value > 0.999 else "&lt;0.1%" if value < 0.001 else f"{value:.1%}"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *([*cells, *[""] * (len(head) - len(cells))] for cells in rows)]
    return [*(f"| {' | '.join(cells)} |" for cells in lines), ""]


def _cells(a: dict[str, Any], results: dict[str, Any]) -> list[str]:
    if "accuracy" not in a:
        return [a["arm"], "failed"]
    e, d = a["accuracy"], a.get("difference")
    less = "" if a["size"] is None or results["unit"] != "rows" or a["taken"] == a["size"] else f" of {a['size']:,}"
    cells = [a["arm"], f"{a['taken']:,.0f}{less}", f"{e['mean']:.1%}", f"{e['low']:.1%} to {e['high']:.1%}"]
    cells += [f"{d['mean'] * 100:+.1f} ({d['low'] * 100:+.1f} to {d['high'] * 100:+.1f})"] if d else [""]
    cells += [_chance(d["ahead"]), _p(d["holm"]).replace("<", "&lt;")] if d else ["", ""]
    return cells + ([f"{a['spoilt']:.1%}"] if results["spoilt"] is not None else [])


def _costs(a: dict[str, Any], results: dict[str, Any]) -> list[str]:
    c = a["choosing"]
    spent = [c["seconds"], c["requests"], c["generated_tokens"], a["training_seconds"], a["trained_tokens"]]
    name = f"{a['arm']} {a['size']:,}" if a["size"] and len(results["sizes"]) > 1 else a["arm"]
    return [name, *(f"{amount:,.0f}" for amount in spent)]


def _spoken_worth(said: dict[str, Any]) -> list[str]:
    out = [
        f"- {w['rows']:,.0f} rows of {w['arm']} do on average what {w['bound']} {w['random_rows']:,.0f} random rows do."
        for w in said["worth"]
    ]
    return [*out, ""] if out else []


def _overlap(results: dict[str, Any]) -> list[str]:
    if not results["overlap"]:
        return []
    names = [n for n in dict.fromkeys(n for pair in results["overlap"] for n in pair["arms"]) if n != "full"]
    found = {frozenset(pair["arms"]): pair["jaccard"] for pair in results["overlap"]}
    out = [
        "## Rows that two arms have in common",
        "",
        "Of all rows that either took (Jaccard index), mean over seeds.",
        "",
    ]
    cells = [[a, *(_share(found.get(frozenset((a, b)))) for b in names[:i])] for i, a in enumerate(names)]
    return [*out, *_table(["", *names[:-1]], cells[1:])]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _whisker(e: dict[str, float], low: float, high: float, wide: int = 32) -> str:
    """├──●──┤ between the lowest and the highest end of all intervals."""

    def at(v: float) -> int:
        return round((v - low) / ((high - low) or 1.0) * (wide - 1))

    line = [" "] * wide
    line[at(e["low"]) : at(e["high"]) + 1] = "─" * (at(e["high"]) - at(e["low"]) + 1)
    line[at(e["low"])], line[at(e["high"])], line[at(e["mean"])] = "├", "┤", "●"
    return "".join(line)
