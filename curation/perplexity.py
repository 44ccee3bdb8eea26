"""How unlikely the base model finds each row's response, before anything was tuned; its exponent is the perplexity."""

import polars as pl

from curation.evaluate import nll
from curation.step import Engine, StepConfig, step


class Perplexity(StepConfig):
    pass


@step("perplexity", kind="score", writes="base_nll", good="-base_nll")
def perplexity(rows: pl.DataFrame, cfg: Perplexity, base: Engine) -> pl.DataFrame:
    """Mean negative log-likelihood of a token of the response under the base model; null where it cannot be had."""
    found = base.logprobs(rows["messages"].to_list())
    return rows.with_columns(base_nll=pl.Series([nll(f) for f in found], dtype=pl.Float64))
