"""Sentence embeddings as a column: unit vectors, written once per row."""

from typing import Literal

import polars as pl

from curation.step import Embedder, StepConfig, step
from storage.schema import Messages, instruction, response


class Embed(StepConfig):
    of: Literal["conversation", "prompt", "input"] = "conversation"
    """What is embedded: prompt and response, the prompt, or the prompt below its first line (a shared instruction)."""


@step("embed", kind="score", writes="embedding")
def embed(rows: pl.DataFrame, cfg: Embed, embedder: Embedder) -> pl.DataFrame:
    """Unit vectors of the rows, for neighbours and clusters."""
    vectors = embedder.embed([text_of(m, cfg.of) for m in rows["messages"].to_list()])
    column = pl.Series("embedding", vectors, dtype=pl.Array(pl.Float32, vectors.shape[1]))
    return rows.with_columns(column)


def text_of(messages: Messages, of: str) -> str:
    if of == "conversation":
        return f"{instruction(messages)}\n{response(messages)}"
    text = instruction(messages)
    return text.partition("\n")[2] or text if of == "input" else text
