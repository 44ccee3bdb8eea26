"""Small drawings for cards and reports, as SVG text. Mid-tone colours, no background: for white pages and dark."""

import base64
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence

TEXT = "#7b7f87"  # contrast of 4 to 1 on white and on black
FAINT = "#9aa0ab"
FILL = "#5b8def"
FILL_SOFT = "#4a6fb3"
MARK = "#d9534f"
LINES = ("#5b8def", "#d9534f", "#2f9e6e", "#b07cc6", "#d58a1f", "#3aa5b8", "#9a7b4f", "#7b7f87")
_MARKS = 12  # thresholds that are drawn one by one; of more, the first and the last
_FONT = "font-family='system-ui,sans-serif' font-size='12'"
_UNDRAWABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # one of these and no browser draws


def image(svg: str, alt: str = "") -> str:
    """The drawing as an HTML image that carries its data, which Markdown pages show."""
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}">'


def histogram(values: Iterable[float | None], thresholds: Sequence[float] = (), title: str = "") -> str:
    """How often each value comes; thresholds as dashed lines, and what lies under them all in grey."""
    thresholds = sorted({t for t in thresholds if _drawable(t)})
    lowest, marks = thresholds[:1], thresholds if len(thresholds) <= _MARKS else [thresholds[0], thresholds[-1]]
    found = sorted(v for v in values if _drawable(v))
    width, left, top, inner = 350, 10, 30, 118
    if not found:
        return _svg(width, 60, _text(left, 18, title, bold=True) + _text(left, 42, "no values"))
    low, high = _range([*found, *marks])
    bins, start, end = _bins(found, low, high)
    tallest, step, height = max(bins), (width - 2 * left) / len(bins), top + inner + (38 if marks else 22)
    body = [_text(left, 18, title, bold=True), _text(width - left, 18, f"highest bar {tallest:,}", "end", FAINT)]
    for i, n in enumerate(bins):
        tall = max(inner * n / tallest, 1.5 if n else 0)
        gap = min(2.0, step / 5)
        under = any(start + (i + 0.5) * (end - start) / len(bins) <= t for t in lowest)
        body.append(_rect(left + i * step + gap / 2, top + inner - tall, step - gap, tall, FAINT if under else FILL))
    body.append(_line(left, top + inner + 0.5, width - left, top + inner + 0.5, FAINT))
    body += [_text(left, top + inner + 16, short(low)), _text(width - left, top + inner + 16, short(high), "end")]
    places = [left + (width - 2 * left) * (t - start) / (end - start) for t in marks]
    body += [_line(x, top - 4, x, top + inner, MARK, dash=True) for x in places]
    if marks:
        named = f"thresholds {short(marks[0])} to {short(marks[-1])}" if marks[1:] else f"threshold {short(marks[0])}"
        half = 3.5 * len(named)  # about as wide as it is drawn
        middle = min(max((places[0] + places[-1]) / 2, left + half), width - left - half)
        body.append(
            _text(middle, height - 6, named, "middle", MARK)
        )  # below the ends of the axis, which it would cross
    return _svg(width, height, "".join(body))


def curve(points: Sequence[tuple[float, float]], title: str = "", x_name: str = "step") -> str:
    """A line through (x, y) points, such as a loss over steps."""
    return lines({"": points}, title, x_name)


def lines(named: Mapping[str, Sequence[tuple[float, float]]], title: str = "", x_name: str = "step") -> str:
    """Lines through (x, y) points on the same axes, each named in its colour above them; three at the most."""
    named = {n: sorted((x, y) for x, y in points if _drawable(x) and _drawable(y)) for n, points in named.items()}
    width, height, left, right, top, bottom = 520, 200, 64, 12, 30, 24
    found = [p for points in named.values() for p in points]
    if not found:
        return _svg(width, 60, _text(10, 18, title, bold=True) + _text(10, 42, "no values"))
    x0, x1 = _range([x for x, _ in found])
    y0, y1 = _range([y for _, y in found])
    wide, tall = width - left - right, height - top - bottom
    body = [
        _text(10, 18, title, bold=True),
        _line(left, top + tall + 0.5, width - right, top + tall + 0.5, FAINT),
        _line(left - 0.5, top, left - 0.5, top + tall, FAINT),
        _text(left - 6, top + 10, short(y1), "end"),
        _text(left - 6, top + tall, short(y0), "end"),
        _text(left, height - 6, f"{x_name} {short(x0)}"),
        _text(width - right, height - 6, short(x1), "end"),
    ]
    end = width - right
    for (name, points), colour in zip(reversed(named.items()), (FAINT, MARK, FILL)[-len(named) :], strict=True):
        at = [(left + wide * (x - x0) / (x1 - x0), top + tall * (y1 - y) / (y1 - y0)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        body.append(
            f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2' stroke-linejoin='round'/>"
        )
        if name:
            body.append(_text(end, 18, name, "end", colour))
            end -= 7 * len(name) + 16
    return _svg(width, height, "".join(body))


def intervals(
    items: Sequence[tuple[str, float, float, float]], title: str = "", form: str = "", mark: float | None = None
) -> str:
    """One line per (label, mean, low, high): a bar up to the mean, a whisker over the interval; a line at `mark`."""
    width, left, right, row, top = 640, 200, 76, 28, 34
    finite = [v for _, *numbers in items for v in numbers if _drawable(v)]
    if not finite:
        return _svg(width, 60, _text(10, 18, title, bold=True) + _text(10, 42, "no values"))
    low, high = _range([0.0, *finite])

    def place(value: float) -> float:
        return left + (width - left - right) * (value - low) / (high - low)

    body = [_text(10, 18, title, bold=True)]
    for i, (label, mean, least, most) in enumerate(items):
        y = top + i * row
        body.append(_text(left - 8, y + 15, cut(label, 28), "end"))
        if not all(_drawable(v) for v in (mean, least, most)):
            body.append(_text(left + 4, y + 15, "no value"))
            continue
        x, x0, x1 = place(mean), place(least), place(most)
        body.append(_rect(min(x, place(0.0)), y + 2, abs(x - place(0.0)), row - 10, FILL))
        body += [_line(x0, y + 11, x1, y + 11, TEXT, 2), *[_line(e, y + 6, e, y + 16, TEXT, 2) for e in (x0, x1)]]
        body.append(_text(width - right + 8, y + 15, form.format(mean) if form else short(mean)))
    if mark is not None:
        body.append(_line(place(mark), top - 4, place(mark), top + len(items) * row, MARK))
    body.append(_line(place(0.0), top - 4, place(0.0), top + len(items) * row, FAINT))
    return _svg(width, top + len(items) * row + 6, "".join(body))


def bands(lines: Mapping[str, Sequence[tuple[float, float, float, float]]], title: str = "", x_name: str = "") -> str:
    """A line with its interval as a band for each name: points of (x, mean, low, high), x in powers of two."""
    width, height, left, right, top, bottom = 640, 300, 52, 150, 34, 34
    points = [p for line in lines.values() for p in line if all(_drawable(v) for v in p) and p[0] > 0]
    if not points:
        return _svg(width, 60, _text(10, 18, title, bold=True) + _text(10, 42, "no values"))
    x0, x1 = _range([math.log2(x) for x, *_ in points])
    y0, y1 = _range([v for _, *values in points for v in values])
    wide, tall = width - left - right, height - top - bottom

    def at(x: float, y: float) -> str:
        return f"{left + wide * (math.log2(x) - x0) / (x1 - x0):.1f},{top + tall * (y1 - y) / (y1 - y0):.1f}"

    body = [_text(10, 18, title, bold=True), _line(left, top + tall, width - right, top + tall, FAINT)]
    for y in (y0, y1):
        body.append(_text(left - 6, top + tall * (y1 - y) / (y1 - y0) + 4, short(y), "end"))
    for x in sorted({x for x, *_ in points}):
        body.append(_text(float(at(x, y0).split(",")[0]), height - 16, short(x), "middle"))
    body.append(_text(left + wide / 2, height - 2, x_name, "middle"))
    for i, (name, line) in enumerate(lines.items()):
        colour, line = LINES[i % len(LINES)], sorted(line)
        outline = [at(x, high) for x, _, _, high in line] + [at(x, low) for x, _, low, _ in reversed(line)]
        body.append(f"<polygon points='{' '.join(outline)}' fill='{colour}' fill-opacity='0.12'/>")
        path = " ".join(at(x, mean) for x, mean, *_ in line)
        body.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        body += [_dot(at(x, mean), colour) for x, mean, *_ in line]
        body += [_rect(width - right + 14, top + 18 * i, 10, 10, colour)]
        body.append(_text(width - right + 30, top + 18 * i + 10, cut(name, 18)))
    return _svg(width, max(height, top + 18 * len(lines) + 6), "".join(body))


def bubbles(points: Sequence[tuple[float, float, float, float, str]], title: str = "") -> str:
    """Circles of (x, y, size, how many times as heavy as even, label): grey where light, blue even, red heavy."""
    width, height, edge, top = 640, 400, 40, 34
    points = [p for p in points if all(_drawable(v) for v in p[:4])]
    if not points:
        return _svg(width, 60, _text(10, 18, title, bold=True) + _text(10, 42, "no values"))
    (x0, x1), (y0, y1) = _range([p[0] for p in points]), _range([p[1] for p in points])
    largest = max(p[2] for p in points) or 1.0
    body = [_text(10, 18, title, bold=True)]
    keys = ((FAINT, "under half of even"), (FILL, "about even"), (MARK, "over twice even"))
    for i, (colour, said) in enumerate(keys):
        body += [_rect(190 + 150 * i, 9, 10, 10, colour), _text(205 + 150 * i, 18, said)]
    for x, y, size, times, label in sorted(points, key=lambda p: -p[2]):
        at_x = edge + (width - 2 * edge) * (x - x0) / (x1 - x0)
        at_y = top + edge + (height - top - 2 * edge) * (y1 - y) / (y1 - y0)
        colour = FAINT if times < 0.5 else MARK if times > 2 else FILL
        radius = 6 + 24 * math.sqrt(size / largest)
        body.append(f"<circle cx='{at_x:.1f}' cy='{at_y:.1f}' r='{radius:.1f}' fill='{colour}' fill-opacity='0.45'/>")
        body.append(_text(at_x, at_y + 4, label, "middle"))
    return _svg(width, height, "".join(body))


def lineage(nodes: Mapping[str, Sequence[str]], edges: Iterable[tuple[str, str]], current: str | None = None) -> str:
    """Boxes from left to right, each `id: lines of text`, with an arrow for every (from, to)."""
    edges = [(a, b) for a, b in dict.fromkeys(edges) if a in nodes and b in nodes and a != b]
    layer = _layers(list(nodes), edges)
    columns: dict[int, list[str]] = {}
    for node in nodes:
        columns.setdefault(layer[node], []).append(node)
    wide, gap, row = 172, 34, 22 + 16 * max((len(lines) for lines in nodes.values()), default=1)
    tallest = max((len(c) for c in columns.values()), default=1)
    height = tallest * row + 4
    at = {
        node: (x * (wide + gap) + 2, (height - len(column) * row) / 2 + i * row)
        for x, column in columns.items()
        for i, node in enumerate(column)
    }
    box = row - 12
    body = [_arrow(at[a][0] + wide, at[a][1] + box / 2, at[b][0], at[b][1] + box / 2) for a, b in edges]
    for node, lines in nodes.items():
        x, y = at[node]
        body.append(_rect(x, y, wide, box, FILL_SOFT if node != current else "#2f7d5b", 6))
        for i, line in enumerate(lines):
            text = _text(x + wide / 2, y + 18 + 16 * i, cut(str(line), 25), "middle", "#ffffff", bold=not i)
            body.append(text)
    return _svg(len(columns) * (wide + gap) - gap + 4 if columns else 10, height, "".join(body))


def short(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e7 else f"{value:.4g}"


def cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _layers(nodes: list[str], edges: list[tuple[str, str]]) -> dict[str, int]:
    """How far each node is from where the data came in, along the longest way."""
    layer = dict.fromkeys(nodes, 0)
    for _ in nodes:  # a graph without rings settles in as many turns as it has nodes
        moved = False
        for a, b in edges:
            if layer[b] < layer[a] + 1:
                layer[b], moved = layer[a] + 1, True
        if not moved:
            break
    return layer


def _bins(found: Sequence[float], low: float, high: float) -> tuple[list[int], float, float]:
    """Counts, and where the first bar begins and the last one ends. Few whole numbers get a bar each."""
    if high - low <= 40 and all(float(v).is_integer() for v in (*found, low, high)):
        low, high, n = low - 0.5, high + 0.5, int(high - low) + 1
    else:
        n = 30
    bins = [0] * n
    for v in found:
        bins[min(int((v - low) / (high - low) * n), n - 1)] += 1
    return bins, low, high


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        spread = abs(low) / 10 or 0.5
        return low - spread, high + spread
    return low, high


def _drawable(value: float | None) -> bool:
    return value is not None and abs(value) < 1e300  # false for NaN too; the span of any two stays finite


def _svg(width: float, height: float, body: str) -> str:
    size = f"width='{width:.0f}' height='{height:.0f}' viewBox='0 0 {width:.0f} {height:.0f}'"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size} {_FONT}>{body}</svg>"


def _text(x: float, y: float, text: str, anchor: str = "start", fill: str = TEXT, bold: bool = False) -> str:
    weight = " font-weight='600'" if bold else ""
    said = html.escape(_UNDRAWABLE.sub("\ufffd", text))
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{fill}'{weight}>{said}</text>"


def _rect(x: float, y: float, width: float, height: float, fill: str, round_: int = 1) -> str:
    return f"<rect x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}' rx='{round_}' fill='{fill}'/>"


def _dot(at: str, fill: str) -> str:
    x, y = at.split(",")
    return f"<circle cx='{x}' cy='{y}' r='3' fill='{fill}'/>"


def _line(x0: float, y0: float, x1: float, y1: float, stroke: str, width: int = 1, dash: bool = False) -> str:
    dashes = " stroke-dasharray='5 3' stroke-width='2'" if dash else f" stroke-width='{width}'"
    return f"<line x1='{x0:.1f}' y1='{y0:.1f}' x2='{x1:.1f}' y2='{y1:.1f}' stroke='{stroke}'{dashes}/>"


def _arrow(x0: float, y0: float, x1: float, y1: float) -> str:
    bend = (x1 - x0) / 2
    path = f"M{x0:.1f},{y0:.1f} C{x0 + bend:.1f},{y0:.1f} {x1 - bend:.1f},{y1:.1f} {x1 - 7:.1f},{y1:.1f}"
    head = f"M{x1 - 9:.1f},{y1 - 5:.1f} L{x1 - 1:.1f},{y1:.1f} L{x1 - 9:.1f},{y1 + 5:.1f} Z"
    return f"<path d='{path}' fill='none' stroke='{TEXT}' stroke-width='1.5'/><path d='{head}' fill='{TEXT}'/>"
