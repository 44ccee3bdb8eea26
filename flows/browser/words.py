"""How a page shows what lies in a table: as the text that it is, whatever it is."""

import json
import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from flows.sampling import INVISIBLE, code_point

CELL = 160  # characters of a text in a table
WHOLE = 1_000_000  # of one on the page of its row
_NUMBERS = 6  # of a vector


def pages() -> Environment:
    """The templates; what they print is escaped, and a name that they lack is an error."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"shown": shown, "cell": cell, "ends": ends, "whole": whole, "count": lambda n: f"{n:,}"}
    return found


def shown(text: str) -> str:
    """Text with what cannot be seen, or would turn the text around it, as its number."""
    return INVISIBLE.sub(code_point, text.replace("\r\n", "\n"))


def cell(value: Any, longest: int = CELL) -> str:
    """A value as one line of a table."""
    if isinstance(value, str):
        return _cut(shown(" ".join(value[: longest * 8].split())), longest)
    return _cut(whole(value), longest)


def ends(text: str | None) -> str:
    """A text as one line that keeps its end too: many prompts begin alike."""
    said = " ".join((text or "").split()) if len(text or "") < WHOLE else cell(text or "", 2 * CELL)
    return shown(said if len(said) <= 2 * CELL else f"{said[:CELL]} … {said[-CELL:]}")


def whole(value: Any, longest: int = WHOLE) -> str:
    """A value in full."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value + 0.0:.6g}" if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list) and len(value) > _NUMBERS and isinstance(value[0], float):
        return f"{len(value)} numbers: {', '.join(f'{v:.3g}' for v in value[:_NUMBERS])} …"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str, indent=1)
    left = len(text) - longest
    return shown(text[:longest]) + (f"\n… {left:,} more characters" if left > 0 else "")


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
