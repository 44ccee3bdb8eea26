"""The clusters of a pool on a card: where they lie, what weight they have, and what their most typical rows ask."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from curation.draw import uniform
from curation.kmeans import directions
from curation.shingles import common_sentences, distinctive, prompt_text
from flows import svg
from storage.store import Manifest, Store

READ = 20_000  # rows, or nearly so many, from which the card is drawn
LISTED = 60
_COLUMNS = ["id", "messages", "embedding", "diversity_cluster", "diversity_share", "diversity_distance"]


@dataclass(frozen=True, slots=True)
class Cluster:
    number: int
    rows: int
    weight: float
    times: float
    """Its weight, as a multiple of one that all clusters would have alike."""
    typical: list[str]
    x: float
    y: float


def clusters(store: Store, made: Manifest) -> list[Cluster]:
    """The clusters that a dataset made or gave other weights, heaviest first; none where it did neither.

    Typical are the two rows nearest to the centre, by what is their own in their prompts. The plane is that of the two
    directions in which the centres differ most.
    """
    weights = None
    if made.step == "reweight-clusters":
        source = made.inputs["rows"]
        if not store.exists(source):
            return []
        weights, made = store.read(made.id, ["cluster", "weight"]), store.manifest(source)
    elif made.step != "kmeans-cluster":
        return []
    rows = _some_rows(store, made)
    if not set(_COLUMNS) <= set(rows.columns) or rows["diversity_cluster"].null_count() == rows.height:
        return []
    rows = rows.drop_nulls("diversity_cluster")
    rows = rows.filter(pl.Series(directions(rows["embedding"].to_numpy())))
    prompts = rows.select(prompt_text()).to_series()
    rows = rows.with_columns(said=distinctive(prompts, common_sentences(prompts))["text"])
    found = (
        rows.sort("diversity_distance", "id")
        .group_by(cluster="diversity_cluster")
        .agg(rows=pl.len(), weight=pl.col("diversity_share").first(), typical=pl.col("said").head(2))
        .sort("cluster")
    )
    if weights is not None:
        found = found.drop("weight").join(weights, on="cluster", how="left", maintain_order="left")
    found = found.with_columns(pl.col("weight").fill_null(0.0))
    places = _plane(rows, found["cluster"])
    drawn = [
        Cluster(number, n, weight, weight * found.height, typical, *place)
        for (number, n, weight, typical), place in zip(
            found.select("cluster", "rows", "weight", "typical").iter_rows(), places, strict=True
        )
    ]
    return sorted(drawn, key=lambda c: (-c.weight, c.number))


def drawing(found: list[Cluster]) -> str:
    return svg.bubbles([(c.x, c.y, c.rows, c.times, str(c.number)) for c in found], "clusters by weight")


def _some_rows(store: Store, made: Manifest) -> pl.DataFrame:
    """Rows from everywhere, by their ids: of a pool that lies sorted, its head would show a few clusters alone."""
    share = READ / max(sum(shard[0].rows for shard in made.shards), 1)
    frames = []
    for shard in made.shards:
        picked = pl.Series(uniform(store.read_shard(shard, ["id"])["id"], 0, "cluster-card") < share)
        frames.append(store.read_shard(shard, _COLUMNS).filter(picked))
    return pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame()


def _plane(rows: pl.DataFrame, numbers: pl.Series) -> list[tuple[float, float]]:
    """The centre of each cluster, projected."""
    vectors, label = rows["embedding"].to_numpy().astype(np.float32), rows["diversity_cluster"].to_numpy()
    centres = np.stack([vectors[label == number].mean(axis=0) for number in numbers])
    centres -= centres.mean(axis=0)
    _, _, axes = np.linalg.svd(centres, full_matrices=False)
    axes = axes * np.where(axes[:, np.abs(axes).argmax(axis=1)].diagonal() < 0, -1, 1)[:, None]  # the same every time
    flat = centres @ axes[:2].T
    flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    return [(float(x), float(y)) for x, y in flat]
