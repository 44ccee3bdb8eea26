"""Sentence embeddings as a column: unit vectors, written once per row.

They are kept in half precision, which halves the disk and moves a cosine by under 0.001. A step that computes with them
takes them to single precision, some rows at a time where there are many.
"""

from typing import Literal

import numpy as np
import polars as pl

from curation.kmeans import directions
from curation.step import Embedder, StepConfig, step
from storage.schema import Messages, instruction, response


class Embed(StepConfig):
    of: Literal["conversation", "prompt", "input"] = "conversation"
    """What is embedded: prompt and response, the prompt, or the prompt below its first line (a shared instruction)."""


@step("embed", kind="score", writes="embedding", version=2)
def embed(rows: pl.DataFrame, cfg: Embed, embedder: Embedder) -> pl.DataFrame:
    """Unit vectors of the rows, for neighbours and clusters; float16, null where the model gave no direction."""
    vectors = embedder.embed([text_of(m, cfg.of) for m in rows["messages"].to_list()])
    column = pl.Series("embedding", vectors.astype(np.float16), dtype=pl.Array(pl.Float16, vectors.shape[1]))
    return rows.with_columns(pl.when(pl.Series(directions(vectors), dtype=pl.Boolean)).then(column).alias("embedding"))


def text_of(messages: Messages, of: str) -> str:
    if of == "conversation":
        return f"{instruction(messages)}\n{response(messages)}"
    text = instruction(messages)
    return text.partition("\n")[2] or text if of == "input" else text
