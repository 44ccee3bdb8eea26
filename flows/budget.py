"""A budget in tokens, for steps that choose a number of rows: the most rows whose tokens fit."""

from collections.abc import Mapping

import polars as pl

from curation.step import find_step
from flows.config import Use
from storage.store import Store, StoreError


def rows_within(
    store: Store, use: Use, counted: str, tokens: int, tables: Mapping[str, str | None], **drawn: int
) -> int:
    """The most rows that the step can take within so many tokens; `counted` are the rows with the column `tokens`.

    Found by halving: a choice of more rows is taken to hold more tokens.
    """
    step = find_step(use.step)
    rows = store.read(counted)
    live = rows.filter(pl.col("drop_reason").is_null())
    given = {name: store.read(dataset) for name, dataset in tables.items() if dataset and name in step.tables}

    def held(n: int) -> int:
        choice = step(rows, use.config(rows=n, **drawn), {}, given).filter("taken")
        return int(live.join(choice, on="id", how="semi")["tokens"].sum())

    low, high = 0, live.height
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if held(middle) <= tokens else (low, middle - 1)
    if not low:
        raise StoreError(f"{use.step}: no row fits a budget of {tokens:,} tokens; give more")
    return low
