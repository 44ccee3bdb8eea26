"""What `noise-bench` found, as a page of Markdown and as tables on the terminal."""

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from flows import svg

Cells = Iterator[tuple[str, ...]]
_CAUGHT = ("precision", "recall", "lift")


def sentence(said: dict[str, Any]) -> str:
    """What can be said in two plain sentences."""
    found = f"AUROC {said['auroc']:.3f} ({said['low']:.3f} to {said['high']:.3f})"
    if said["low"] > 0.5:
        tells = f"{said['column']} tells spoilt answers from right ones: {found}"
    elif said["high"] < 0.5:
        tells = f"{said['column']} takes spoilt answers for better than right ones: {found}"
    else:
        tells = f"{said['column']} could not be shown to tell spoilt answers from right ones: {found}"
    doubt = "" if said["declared"] else ", its direction taken from the flags, so over 0.5 by construction"
    judged = said["rows"] - said["unjudged"]
    how = f"{said['threshold']}, at its own settings," if said["threshold"] else "Dropping as many as were spoilt"
    drops = "drops" if said["threshold"] else "takes"
    went = f"{how} {drops} {said['dropped']:,.0f} of {judged:,} rows: {_share(said['recall'])} of the spoilt ones"
    if not said["dropped"]:
        return f"{tells}{doubt}. {how} {drops} no row."
    hit = f"{_share(said['precision'])} of what goes is spoilt, {_lift(said['lift'])} times what a random drop has"
    return f"{tells}{doubt}. {went}. {hit}."


def about(said: dict[str, Any]) -> str:
    kinds = ", ".join(f"{kind} {found['rows']:,}" for kind, found in said["by_kind"].items())
    unjudged = f" {said['unjudged']:,} rows have no score and are left out." if said["unjudged"] else ""
    return (
        f"{said['spoilt']:,} of {said['rows']:,} rows are spoilt ({said['share_spoilt']:.1%}; rate "
        f"{said['noise']['rate']}, seed {said['noise']['seed']}): {kinds}.{unjudged}"
    )


def markdown(title: str, said: dict[str, Any]) -> str:
    out = [f"# {title}", "", sentence(said), "", about(said), ""]
    for (heading, *names), rows in _tables(said):
        out += [f"## {heading}", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        out += [f"| {' | '.join(cells)} |" for cells in rows] + [""]
    drawn = {
        "recall": [(100 * p["share"], p["recall"]) for p in said["curve"]],
        "precision": [(100 * p["share"], p["precision"]) for p in said["curve"]],
        "recall of a random drop": [(100 * p["share"], p["share"]) for p in said["curve"]],
    }
    kinds = {
        kind: [(100 * p["share"], *[p["recall"]] * 3) for p in found["curve"]]
        for kind, found in said["by_kind"].items()
        if found["auroc"] is not None
    }
    x = "share of the rows in %:"
    pictures = [
        svg.image(svg.lines(drawn, "Worst rows dropped", x), "precision and recall"),
        svg.image(svg.bands(kinds, "Recall of each kind of noise", x[:-1]), "recall of each kind of noise"),
    ]
    return "\n".join([*out, *pictures, ""])


def terminal(said: dict[str, Any]) -> str:
    console = Console(width=110, file=io.StringIO())
    for (heading, *names), rows in _tables(said):
        table = Table(*names, box=None, title=heading, title_justify="left")
        for cells in rows:
            table.add_row(*cells)
        console.print(table, "")
    console.print(about(said), sentence(said), sep="\n", soft_wrap=True, highlight=False)
    return console.file.getvalue().rstrip()


def _tables(said: dict[str, Any]) -> Iterable[tuple[list[str], Cells]]:
    return [
        (["Columns", "column", "good is", "AUROC", "95 % interval", "no score"], _columns(said)),
        (
            ["Kinds of noise, each against all right rows", "kind", "rows", "AUROC", "95 % interval", *_CAUGHT],
            _kinds(said),
        ),
        (["Dropping the worst rows", "dropped", "rows", *_CAUGHT], _curve(said)),
    ]


def _columns(said: dict[str, Any]) -> Cells:
    for name, c in said["columns"].items():
        good = c["direction"] + ("" if c["declared"] else " (direction taken from the flags)")
        yield name, good, _number(c["auroc"]), _interval(c), f"{c['unjudged']:,}"


def _kinds(said: dict[str, Any]) -> Cells:
    for kind, found in said["by_kind"].items():
        yield kind, f"{found['rows']:,}", _number(found["auroc"]), _interval(found), *_caught(found)


def _curve(said: dict[str, Any]) -> Cells:
    own = {k: said[k] for k in ("precision", "recall", "lift")} | {"rows": said["dropped"]}
    for label, p in [
        (said["threshold"] or "as many as were spoilt", own),
        *((f"worst {p['share']:.0%}", p) for p in said["curve"]),
    ]:
        yield label, f"{p['rows']:,.0f}", *_caught(p)


def _caught(found: dict[str, Any]) -> tuple[str, ...]:
    return _share(found["precision"]), _share(found["recall"]), _lift(found["lift"])


def _interval(found: dict[str, Any]) -> str:
    return "none" if found["low"] is None else f"{found['low']:.3f} to {found['high']:.3f}"


def _or_none(form: str) -> Callable[[float | None], str]:
    return lambda value: "none" if value is None else format(value, form)


_number, _share, _lift = _or_none(".3f"), _or_none(".1%"), _or_none(".2f")
