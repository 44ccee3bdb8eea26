"""How many tokens a row has, so that a budget may be given in tokens."""

import polars as pl

from curation.step import Engine, StepConfig, step
from storage.schema import Messages

_WRITTEN = ("reasoning_content", "content", "tool_calls")


class Tokens(StepConfig):
    pass


@step("tokens", kind="score", writes="tokens")
def count(rows: pl.DataFrame, cfg: Tokens, base: Engine) -> pl.DataFrame:
    """Tokens of all a row's messages, by the base model's tokenizer, without what the chat template adds."""
    counts = base.count_tokens([_text(m) for m in rows["messages"].to_list()])
    return rows.with_columns(tokens=pl.Series(counts, dtype=pl.Int64))


def _text(messages: Messages) -> str:
    return "\n".join("".join(m.get(name) or "" for name in _WRITTEN) for m in messages)
