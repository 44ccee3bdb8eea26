"""Why rows were dropped or taken, counted over all of them, whatever they are: a shard in memory at a time."""

from collections.abc import Mapping

import polars as pl

from storage.scan import Scan


def alike(reason: pl.Expr) -> pl.Expr:
    """Reasons without the numbers and the ids of rows in them, so that those of one kind are equal."""
    return reason.str.replace_all(r"\b[0-9a-f]{20}\b|\b[0-9]+(\.[0-9]+)?", "#")


def tally(
    scan: Scan, kinds: Mapping[str, pl.DataType], column: str, value: pl.Expr, most: int | None = None
) -> list[tuple[str, int]] | None:
    """What `value` makes of a column, each with how many rows, the most first; None where there are over `most`."""
    tallied = pl.DataFrame(schema={"value": pl.String, "n": pl.UInt32})
    for rows in scan.each([column], lambda f: f.group_by(value=value).agg(n=pl.len()), kinds):
        tallied = pl.concat([tallied, rows.drop_nulls("value")]).group_by("value").agg(pl.col("n").sum())
        if most is not None and tallied.height > most:
            return None
    return list(tallied.sort("n", "value", descending=[True, False]).iter_rows())
