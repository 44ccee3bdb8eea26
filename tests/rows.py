import polars as pl

from storage.schema import SPOKEN, message


def rows(*pairs: tuple[str, str], **columns: list) -> pl.DataFrame:
    """A dataset of (instruction, response) pairs with every column of a row filled."""
    n = len(pairs)
    return pl.DataFrame(
        {
            "id": [f"r{i}" for i in range(n)],
            "messages": [[message("user", q), message("assistant", a)] for q, a in pairs],
            "source": ["test"] * n,
            "method": pl.Series([None] * n, dtype=pl.String),
            "parent_id": pl.Series([None] * n, dtype=pl.String),
            "round": pl.Series([0] * n, dtype=pl.Int32),
            "drop_reason": pl.Series([None] * n, dtype=pl.String),
            **columns,
        },
        schema_overrides={
            "id": pl.String,
            "source": pl.String,
            "messages": pl.List(pl.Struct(dict.fromkeys(("role", "content", *SPOKEN), pl.String))),
        },
    )
