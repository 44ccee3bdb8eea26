"""k-center: every row as near as can be to one that is taken (Gonzalez, 1985; Sener and Savarese, 2018).

It reaches for outliers, and on noisy pools it did worse than a random choice (Diversify and Conquer, table 2): it is
here to be compared with. The work is rows x budget distances, so it is for pools of tens of thousands.
"""

import numpy as np
import polars as pl
from pydantic import Field

from curation.choice import ChoiceConfig, for_training, take_first
from curation.draw import uniform
from curation.kmeans import directions
from curation.step import step


class KCenter(ChoiceConfig):
    seed: int = Field(0, ge=0)
    """Another seed, another first row."""


@step("k-center", kind="select", scope="dataset", reads="embedding", without="messages", version=2)
def take_farthest(rows: pl.DataFrame, cfg: KCenter) -> pl.DataFrame:
    """Take the row that is farthest from all that are taken, again and again; a row without a vector is left out."""
    pool = for_training(rows)
    vectors = pool["embedding"].to_numpy() if pool.height else np.zeros((0, 1), np.float32)
    usable = directions(vectors)
    ids, vectors = pool["id"].filter(pl.Series(usable, dtype=pl.Boolean)), vectors[usable].astype(np.float32)
    if not len(ids):
        return take_first(pl.DataFrame(schema={"id": pl.String, "why": pl.String, "weight": pl.Float64}), cfg)
    squares = (vectors**2).sum(axis=1)
    nearest = np.full(len(ids), np.inf, np.float32)  # squared distance to the rows that are taken
    order, gap = [int(uniform(ids, cfg.seed, "k-center").argmin())], [0.0]
    while len(order) < min(cfg.rows, len(ids)):
        last = order[-1]
        nearest = np.minimum(nearest, np.maximum(squares + squares[last] - 2 * (vectors @ vectors[last]), 0))
        nearest[last] = -1  # never again, also where all rows are equal
        order.append(int(nearest.argmax()))
        gap.append(float(np.sqrt(nearest[order[-1]])))
    taken = pl.DataFrame({"id": ids[order], "gap": gap})
    why = pl.format("{} from the rows taken before it", pl.col("gap").round(3))
    first = taken.select(
        "id", why=pl.when(pl.int_range(pl.len()) == 0).then(pl.lit("drawn as the first")).otherwise(why)
    )
    left = pl.DataFrame({"id": ids}).join(first, on="id", how="anti", maintain_order="left")
    left = left.with_columns(why=pl.lit("nearer to the rows taken than those were to each other"))
    return take_first(pl.concat([first, left]).with_columns(weight=pl.lit(None, dtype=pl.Float64)), cfg)
