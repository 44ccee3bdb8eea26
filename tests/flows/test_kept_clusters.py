"""Clusters stay what they were while the pool of a loop grows and loses rows."""

import numpy as np
import polars as pl

from curation.step import STEPS
from flows import loop
from flows.config import LoopConfig, Use
from flows.models import lend
from flows.run import run_step
from storage.store import Store
from tests.curation.test_diversity import embedded
from tests.flows.test_report import sealed


def without_server(label, root, step, settings, rows, tables, models, name, ray):
    """What the task does, but for the card, for which a Prefect server would be started."""
    store = Store(root)
    config, lease = lend(STEPS[step], settings, models, store)
    store.name(name, run_step(store, STEPS[step], config, rows, tables, lease))
    return store.resolve(name)


def test_the_loop_fits_clusters_in_its_first_round_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "run_one_step", without_server)
    store, vectors = Store(tmp_path), np.random.default_rng(6).normal(size=(60, 4))
    base = embedded(vectors)
    dropped = pl.when(pl.int_range(pl.len()) % 3 == 0).then(pl.lit("duplicates: exact copy of r9"))
    config = LoopConfig(
        name="n", pool="p", heldout="h", score=[Use(step="kmeans-cluster", **{"with": {"clusters": 6}})]
    )

    def scored(number, frame, kept):
        turn = loop.Turn(config, tmp_path, 0, number, fitted=kept)
        return store.read(turn.score(sealed(store, f"pool{number}", frame), "heldout"))

    kept: dict[int, str] = {}
    first, second = scored(1, base, kept), scored(2, base.with_columns(drop_reason=dropped), kept)
    made = store.resolve("n.seed0.round2.kmeans-cluster")
    assert store.manifest(kept[0]).kind == "table" and store.names()["n.seed0.round1.kmeans-centroids"] == kept[0]
    both = first.join(second, on="id", suffix="_now").filter(pl.col("drop_reason_now").is_null())
    assert both.height == 40 and both["diversity_cluster"].equals(
        both["diversity_cluster_now"].alias("diversity_cluster")
    )
    assert both["diversity_share"].equals(both["diversity_share_now"].alias("diversity_share"))
    anew = loop.Turn(config, tmp_path, 0, 2).score("pool2", "heldout")  # other centroids make another dataset
    assert anew != made and not store.read(anew)["diversity_share"].equals(second["diversity_share"])
