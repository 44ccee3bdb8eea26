"""What a model was trained on, as the file that may lie beside its weights: hashed runs of words, never the text.

`training_text.parquet` has one column, `run` (uint32, rising, each once), written as differences, so that a run takes
about a byte and a half. synthesis/recital.py says what a run is.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

NAME = "training_text.parquet"


def write(path: Path, runs: np.ndarray) -> None:
    table = pa.table({"run": pa.array(np.unique(runs).astype(np.int64))})
    pq.write_table(table, path, use_dictionary=False, column_encoding={"run": "DELTA_BINARY_PACKED"}, compression=None)


def read(path: Path) -> pl.DataFrame:
    return pl.from_arrow(pq.read_table(path)).select(pl.col("run").cast(pl.UInt32))
