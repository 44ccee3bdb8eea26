"""What was dropped and why, so that a person can judge the rule that did it."""

from typing import Any

import polars as pl

from storage.schema import instruction, response
from storage.store import Store, StoreError

_NUMBERS = r"\b[0-9a-f]{20}\b|[0-9]+(\.[0-9]+)?"
_ROW = dict.fromkeys(("id", "step", "why", "prompt", "response", "now"), pl.String)


def reviewed(store: Store, dataset: str, step: str | None = None) -> pl.DataFrame:
    """The dropped rows of a dataset: id, step, why, prompt, response, and `now`: what the row in its place says."""
    made = store.manifest(dataset)
    if made.kind != "rows":
        raise StoreError(f"{dataset} is of kind {made.kind}; name a dataset of rows, in which something was dropped")
    rows = store.read(dataset, ["id", "messages", "parent_id", "drop_reason"])
    dropped = rows.filter(pl.col("drop_reason").is_not_null())
    told = pl.col("drop_reason").str.splitn(": ", 2).struct
    dropped = dropped.with_columns(step=told[0], why=pl.coalesce(told[1], "drop_reason"))
    if step:
        dropped = dropped.filter(pl.col("step") == step)
    heirs = rows.join(dropped.select(parent_id="id"), on="parent_id", how="semi")
    now = dict(zip(heirs["parent_id"], heirs["messages"].to_list(), strict=True))
    said = zip(dropped["id"], dropped["step"], dropped["why"], dropped["messages"].to_list(), strict=True)
    lines = [(i, s, why, instruction(m), response(m), _now(m, now.get(i))) for i, s, why, m in said]
    return pl.DataFrame(lines, schema=_ROW, orient="row")


def reasons(found: pl.DataFrame) -> list[dict[str, Any]]:
    """The reasons, the commonest first, those alike that differ in numbers or ids alone; with their rows."""
    alike = pl.format("{}: {}", "step", pl.col("why").str.replace_all(_NUMBERS, "#"))
    groups = found.with_columns(reason=alike).partition_by("reason", maintain_order=True)
    told = [
        {
            "why": group["reason"][0],
            "count": group.height,
            "share": group.height / found.height,
            "rows": group.drop("reason").to_dicts(),
        }
        for group in groups
    ]
    return sorted(told, key=lambda reason: -reason["count"])


def _now(before: list[dict], after: list[dict] | None) -> str | None:
    """What is new in the row that took the place: its response, or its prompt where the response is the same."""
    if after is None:
        return None
    return response(after) if response(after) != response(before) else instruction(after)
