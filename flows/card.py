"""The card of a dataset: a page of Markdown that says what it is, where it came from, and shows some of its rows.

Text out of the data never reaches the page as markup. Punctuation that means anything to Markdown or HTML is written as
numeric entities, which neither reads as structure, so a row shows as what it says and can do nothing.
"""

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

import polars as pl

from flows import cluster_card, svg
from flows.cost import cost
from flows.nearest import before_and_after
from flows.reasons import alike, tally
from flows.sampling import INVISIBLE, code_point, numbers_and_words, sample_rows
from flows.spending import in_words
from storage.scan import Scan
from storage.schema import ROW
from storage.store import Manifest, Store

SAMPLES = 10
LONGEST = 8000  # characters of one text; a card is loaded with the list of all cards, so it stays small
_STRUCTURE = re.compile(r"[^\w\s,;'()?!/-]|_", re.ASCII)
_TITLE = re.compile(r"(?!www)[\w-]+(\.[\w-]+)*", re.ASCII)  # a heading shows entities as written, so only plain names
_HISTOGRAMS = 12
_GAP = "&nbsp;" * 4  # Prefect's style sheet leaves no room between cells
_LAYERS, _BOXES = 5, 24
_REASONS = 12
_PAIRS, _TURNS, _SIDE = 5, 4, 1000  # rows beside those they came from, their last messages, characters of each

Names = Mapping[str, list[str]]  # by dataset


def card(
    store: Store, dataset: str, links: Mapping[str, str] = MappingProxyType({}), names: Names | None = None
) -> str:
    """The page; `links` says where the cards of other datasets are, under `table` the table of sample rows, and under
    `browser` the browser of datasets, if there is one.

    `names` are those of all datasets, where whoever asks has read them already.
    """
    made, names = store.manifest(dataset), store.called() if names is None else names
    numbers = numbers_and_words(store, made)
    title = names.get(dataset, [made.step])[0]
    blocks = [
        f"# {title}" if _TITLE.fullmatch(title) else "",
        _facts(store, made, links, names),
        _counts(store, made, numbers, links),
        _drawings(made, numbers),
        _clusters(store, made),
        _lineage(store, made, names),
        _files(store, made),
        _before_and_after(store, made),
        _samples(sample_rows(store, dataset, SAMPLES)) if made.kind != "adapter" else "",
        f'<p><a href="{links["table"]}">More rows, as a table that can be searched</a></p>' if "table" in links else "",
        f"<p>{_browse('All rows: page, sort, filter, search', links, made)}</p>" if "browser" in links else "",
        f"<p>In a terminal: {_code(f'thresher show {names.get(dataset, [dataset])[0]}')}</p>",
    ]
    return "\n\n".join(b for b in blocks if b) + "\n"


def text(said: object, longest: int = LONGEST) -> str:
    """Text as Markdown and HTML that show exactly it. Line ends become <br>, so the result is one line."""
    whole = said if isinstance(said, str) else str(said)
    shown = whole[:longest]
    shown = INVISIBLE.sub(code_point, shown.replace("\r\n", "\n"))
    shown = _STRUCTURE.sub(lambda m: f"&#{ord(m[0])};" if ord(m[0]) < 128 else m[0], shown)
    shown = re.sub(r"(?m)^ +|\t", lambda m: "&nbsp;" * (4 if m[0] == "\t" else len(m[0])), shown)
    if len(shown.encode()) > 3 * longest > 300:
        return text(whole, longest // 2)
    left = len(whole) - longest
    more = f" <em>… {left:,} more characters</em>" if left > 0 else ""
    return shown.replace("\n", "<br>") + more


def _code(said: object) -> str:
    return f"<code>{text(said, 300)}</code>"


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """As HTML: Prefect's Markdown tables show entities as they are written and drop code and links."""
    titles = "".join(f'<th align="left">{h}{_GAP}</th>' for h in head)
    rows = ["<tr>" + "".join(f"<td>{cell}{_GAP}</td>" for cell in line) + "</tr>" for line in lines]
    top = f"<thead><tr>{titles}</tr></thead>" if any(head) else ""
    return f'<table cellpadding="4">{top}<tbody>{"".join(rows)}</tbody></table>' if rows else ""


def _facts(store: Store, made: Manifest, links: Mapping[str, str], names: Names) -> str:
    lines = [
        ("names", ", ".join(_code(n) for n in names.get(made.id, [])) or "none"),
        ("dataset", _code(made.id)),
        ("kind", made.kind),
        ("made by", f"{_code(made.step)} version {made.version}"),
        *([("its file", f"sha256 begins with {_code(made.code[:16])}")] if made.code else []),
        *[(f"model: {text(role)}", _code(identity)) for role, identity in made.engines.items()],
        *[(f"input: {text(role)}", _dataset(d, names, links)) for role, d in made.inputs.items()],
        *[(f"setting: {text(key)}", _code(_json(value))) for key, value in made.config.items()],
    ]
    facts = store.run_facts(made.id)
    if (seconds := facts.get("seconds")) is not None:
        lines.append(("took", f"{text(seconds)} s"))
    if asked := in_words(facts):
        lines.append(("asked of models", text(asked)))
    if asked := cost(store, made.id):
        lines.append(("that is", text(asked)))
    return _table(["", ""], lines)


def _dataset(dataset: str, names: Names, links: Mapping[str, str]) -> str:
    shown = f"{_code(names[dataset][0])} {_code(dataset)}" if dataset in names else _code(dataset)
    return f'{shown} <a href="{links[dataset]}">card</a>' if dataset in links else shown


def _browse(shown: str, links: Mapping[str, str], made: Manifest, **asked: str) -> str:
    """A link to the rows that are asked for, where there is a browser of datasets."""
    if "browser" not in links:
        return shown
    where = f"{links['browser']}/{made.id}" + (f"?{urlencode(asked)}" if asked else "")
    return f'<a href="{html.escape(where)}">{shown}</a>'


def _counted(what: str, links: Mapping[str, str], made: Manifest) -> str:
    """What was counted, as a link to the rows that were."""
    if what in ("live", "taken"):
        return _browse(text(what), links, made, state=what)
    if what.startswith("dropped by "):
        return _browse(text(what), links, made, why=what.removeprefix("dropped by "))
    return text(what)


def _counts(store: Store, made: Manifest, numbers: pl.DataFrame, links: Mapping[str, str]) -> str:
    total = made.counts.get("rows", 0)
    lines = [
        (
            _counted(what, links, made),
            f"{n:,}",
            f"{n / total:.1%}" if total and made.kind != "adapter" and isinstance(n, int) else "",
        )
        for what, n in sorted(
            made.counts.items(), key=lambda c: (c[0] not in ("rows", "live", "taken"), c[0] != "rows")
        )
    ]
    blocks = ["## Counts", _table(["", "count", "share"], lines) or "Nothing was counted."]
    if made.kind == "choice" and {"taken", "why"} <= set(numbers.columns):
        why = numbers.group_by("taken", "why").len().sort("taken", "len", "why", descending=[True, True, False])
        blocks.append(
            _table(
                ["taken", "why", "rows"],
                [
                    (str(t), _browse(text(w, 200), links, made, why=w, state="taken" if t else "left"), f"{n:,}")
                    for t, w, n in why.head(20).iter_rows()
                ],
            )
        )
    if "drop_reason" in numbers.columns and made.counts.get("live", 0) < total:
        kinds = {"drop_reason": pl.String()}
        why = tally(Scan.of(store.root, made), kinds, "drop_reason", alike(pl.col("drop_reason"))) or []
        said = [(_browse(text(w, 200), links, made, why=w), f"{n:,}") for w, n in why[:_REASONS]]
        blocks.append(_table(["dropped because", "rows"], said))
    return "\n\n".join(b for b in blocks if b)


def _drawings(made: Manifest, numbers: pl.DataFrame) -> str:
    if {"step", "loss"} <= set(numbers.columns):
        points = numbers.select(pl.col("step", "loss").cast(pl.Float64)).drop_nulls()
        return "## Training\n\n" + svg.image(svg.curve(list(points.iter_rows()), "training loss"), "loss over steps")
    own = [c for c in numbers.columns if c not in ROW.names and not c.endswith(("_threshold", "_seed"))]
    scores = [c for c in own if numbers[c].dtype.is_numeric() and numbers[c].dtype != pl.Boolean]
    if not scores:
        return ""
    scores.sort(key=lambda column: not _thresholds(made, numbers, column))  # first what decided
    lines, images = [], []
    for column in scores:
        values = numbers[column].cast(pl.Float64)
        finite = values.filter(values.is_finite().fill_null(False))
        middle = [finite.min(), finite.median(), finite.mean(), finite.max()] if finite.len() else [None] * 4
        missing = numbers.height - finite.len()
        lines.append((_code(column), *["" if v is None else svg.short(v) for v in middle], f"{missing:,}"))
        if len(images) < _HISTOGRAMS:
            drawn = svg.histogram(finite.to_list(), _thresholds(made, numbers, column), column)
            images.append(svg.image(drawn, f"histogram of {column}" if column.isidentifier() else "histogram"))
    seen = f" of {numbers.height:,} rows from both ends" if numbers.height < made.counts.get("rows", 0) else ""
    table = _table(["column", "least", "median", "mean", "most", "missing"], lines)
    return f"## Scores{seen}\n\n{table}\n\n{' '.join(images)}"


def _clusters(store: Store, made: Manifest) -> str:
    if not (found := cluster_card.clusters(store, made)):
        return ""
    listed = found if len(found) <= cluster_card.LISTED else [*found[: cluster_card.LISTED - 10], *found[-10:]]
    lines = [
        (str(c.number), f"{c.rows:,}", f"{c.weight:.4f}", f"{c.times:.2f}", "<br>".join(text(t, 90) for t in c.typical))
        for c in listed
    ]
    left = (
        f"\n\n{len(found) - len(listed)} between the heaviest and the lightest are not listed."
        if len(lines) < len(found)
        else ""
    )
    of = f"of {sum(c.rows for c in found):,} rows"  # of a large pool some are looked at
    table = _table(["cluster", of, "weight", "times even", "most typical rows"], lines)
    return f"## Clusters\n\n{svg.image(cluster_card.drawing(found), 'clusters')}\n\n{table}{left}"


def _thresholds(made: Manifest, numbers: pl.DataFrame, column: str) -> list[float]:
    """Where CLEAR's decisions fall: the filter's thresholds, one for each of its groups, and eta of a correction."""
    if column == "clear_confidence" and "clear_threshold" in numbers.columns:
        return numbers["clear_threshold"].drop_nulls().unique().sort().to_list()
    if column == "clear_preference" and made.step == "clear-correct":
        return [made.config["eta"]]
    return []


def _lineage(store: Store, made: Manifest, names: Names) -> str:
    """The datasets that this one was made of, drawn from their manifests; the nearest ones where there are many."""
    near, edges, layer, cut = {made.id: made}, [], [made.id], False
    for _ in range(_LAYERS):
        above: list[str] = []
        for child in layer:
            for parent in near[child].inputs.values():
                if not store.exists(parent) or (parent not in near and len(near) >= _BOXES):
                    cut = True
                    continue
                edges.append((parent, child))
                if parent not in near:
                    near[parent] = store.manifest(parent)
                    above.append(parent)
        layer = above
    cut = cut or any(near[d].inputs for d in layer)
    boxes = {
        d: [m.step, names.get(d, [d.removeprefix(m.step + "-")])[0], m.size]
        for d, m in sorted(near.items(), key=lambda x: x[0])
    }
    note = "\n\nOnly the nearest are drawn; each has a card of its own." if cut else ""
    return f"## Lineage\n\n{svg.image(svg.lineage(boxes, edges, made.id), 'lineage')}{note}"


def _files(store: Store, made: Manifest) -> str:
    folder = store.files(made.id)
    lines = [
        (_code(name), f"{(folder / name).stat().st_size:,}" if (folder / name).exists() else "gone", _code(digest[:16]))
        for name, digest in made.files.items()
    ]
    return "## Files\n\n" + _table(["file", "bytes", "sha256 begins with"], lines) if lines else ""


def _before_and_after(store: Store, made: Manifest) -> str:
    """Rows that the step changed or grew, each beside the one that it came from."""
    lines = [[_said(row) for row in pair] for pair in before_and_after(store, made, _PAIRS)]
    return "## Before and after\n\n" + _table(["before", "after"], lines) if lines else ""


def _said(row: Mapping[str, Any]) -> str:
    turns = row["messages"][-_TURNS:]
    said = [f"<strong>{text(m['role'], 40)}</strong><br>{text(m['content'] or '', _SIDE)}" for m in turns]
    dropped = [f"<em>{text(row['drop_reason'], 200)}</em>"] if row["drop_reason"] else []
    return "<br>".join([*said, *dropped])


def _samples(rows: pl.DataFrame) -> str:
    """Rows in full. One HTML block without blank lines, so that Markdown leaves it alone."""
    if rows.is_empty():
        return "## Sample rows\n\nThere are no rows."
    if "instruction" not in rows.columns:
        cells = [["" if v is None else text(_json(v), 200) for v in row] for row in rows.iter_rows()]
        return "## Sample rows\n\n" + _table([text(c) for c in rows.columns], cells)
    lines = []
    for row in rows.iter_rows(named=True):
        said = {name: row.pop(name) for name in ("instruction", "response") if name in row}
        reason, id_ = row.pop("drop_reason", None), row.pop("id", None)
        head = " ".join(filter(None, [_code(id_) if id_ else "", text(reason, 200) if reason else "", _taken(row)]))
        first = text(svg.cut(" ".join(str(said.get("instruction", "")).split()), 90))
        lines.append(f"<details><summary>{head} {first}</summary>")
        lines += [f"<p><strong>{name}</strong><br>{text(value)}</p>" for name, value in said.items()]
        rest = [f"{text(k)} {_code(_json(v))}" for k, v in row.items() if v is not None]
        lines.append(f"<p>{' &nbsp; '.join(rest)}</p>")
        lines.append("</details>")
    return "## Sample rows\n\n" + "\n".join(lines)


def _taken(row: dict[str, object]) -> str:
    return "" if "taken" not in row else "taken" if row["taken"] else "not taken"


def _json(value: object) -> str:
    value = float(f"{value:.6g}") if isinstance(value, float) else value
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
