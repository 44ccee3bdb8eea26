"""A budget in tokens: told to a step that counts them; others are asked for the most rows whose tokens fit."""

from collections.abc import Mapping

import polars as pl

from curation.choice import most_within
from curation.step import find_step
from flows.config import Use
from storage.store import Store, StoreError


def within(
    store: Store, use: Use, counted: str, tokens: int, tables: Mapping[str, str | None], **drawn: int
) -> dict[str, int]:
    """The setting by which the step keeps to so many tokens; `counted` are the rows with the column `tokens`."""
    if "tokens" in find_step(use.step).config.model_fields:
        return {"tokens": tokens}
    return {"rows": rows_within(store, use, counted, tokens, tables, **drawn)}


def rows_within(
    store: Store, use: Use, counted: str, tokens: int, tables: Mapping[str, str | None], **drawn: int
) -> int:
    """The most rows that the step can take within so many tokens; `counted` are the rows with the column `tokens`."""
    step = find_step(use.step)
    rows = store.read(counted)
    live = rows.filter(pl.col("drop_reason").is_null())
    given = {name: store.read(dataset) for name, dataset in tables.items() if dataset and name in step.tables}

    def held(n: int) -> int:
        choice = step(rows, use.config(rows=n, **drawn), {}, given).filter("taken")
        return int(live.join(choice, on="id", how="semi")["tokens"].sum())

    most = most_within(tokens, held, live.height)
    if not most:
        raise StoreError(f"{use.step}: no row fits a budget of {tokens:,} tokens; give more")
    return most
