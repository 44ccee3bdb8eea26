import numpy as np
import polars as pl
import pytest

from curation import clusters as cl
from curation import diversity as dv
from curation.step import STEPS, StepError
from tests.curation.test_diversity import embedded
from tests.rows import rows


def test_clusters_of_grown_rows_do_not_move_those_of_imported_ones():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 4)).tolist()
    base = rows(*[("q", "a")] * 60, embedding=vectors).with_columns(pl.col("embedding").list.to_array(4))
    grown = base.head(10).with_columns(id=pl.format("g{}", "id"), round=pl.lit(1, pl.Int32))
    alone = cl.cluster(base, cl.Cluster(clusters=5))["diversity_cluster"]
    both = cl.cluster(pl.concat([base, grown]), cl.Cluster(clusters=5))["diversity_cluster"]
    assert both.head(60).equals(alone)
    assert both.tail(10).to_list() == alone.head(10).to_list()


def test_shares_are_of_the_imported_rows_that_were_clustered():
    vectors = [[0.0, 1.0]] * 3 + [[1.0, 0.0]]
    base = rows(*[("q", "a")] * 4, embedding=vectors).with_columns(pl.col("embedding").list.to_array(2))
    grown = base.tail(1).with_columns(id=pl.lit("grown"), round=pl.lit(1, pl.Int32))
    out = cl.cluster(pl.concat([base, grown]), cl.Cluster(clusters=2))
    assert out["diversity_share"].to_list() == [0.75, 0.75, 0.75, 0.25, 0.25]


@pytest.mark.parametrize("backend", ["faiss", "scikit-learn"])
def test_well_separated_blobs_are_found_and_counted_by_silhouette(backend):
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(4, 8)) * 10
    base = embedded(np.concatenate([c + rng.normal(size=(30, 8)) * 0.1 for c in centres]))
    out = cl.cluster(base, cl.Cluster(clusters=16, silhouette=True, backend=backend))
    assert out["diversity_cluster"].n_unique() == 4
    assert (
        out.group_by(pl.int_range(pl.len()) // 30)
        .agg(pl.col("diversity_cluster").n_unique())["diversity_cluster"]
        .to_list()
        == [1] * 4
    )
    assert out["diversity_share"].unique().to_list() == [0.25]


def test_the_same_pool_and_seed_give_the_same_clusters():
    base = embedded(np.random.default_rng(2).normal(size=(300, 8)))
    one, two = (cl.cluster(base, cl.Cluster(clusters=9)) for _ in range(2))
    assert one.equals(two)
    distance = one.select("diversity_cluster", "diversity_distance").group_by("diversity_cluster").agg(pl.all().max())
    assert distance["diversity_distance"].min() > 0


@pytest.mark.parametrize("backend", ["faiss", "scikit-learn"])
def test_rows_without_a_direction_have_no_cluster_and_are_never_drawn(backend):
    vectors = np.random.default_rng(3).normal(size=(12, 4))
    vectors[[1, 5]] = [[np.nan, 1, 1, 1], [0, 0, 0, 0]]
    vectors[7, 2] = np.inf
    base = embedded(vectors).with_columns(clear_confidence=pl.lit(1.0))
    base = base.with_columns(embedding=pl.when(pl.col("id") != "r9").then("embedding"))
    out = cl.cluster(base, cl.Cluster(clusters=3, backend=backend))
    lost = out.filter(pl.col("diversity_cluster").is_null())["id"].to_list()
    assert lost == ["r1", "r5", "r7", "r9"]
    kept = out.drop_nulls("diversity_cluster")
    assert kept.group_by("diversity_cluster").agg(pl.col("diversity_share").first())["diversity_share"].sum() == 1
    taken = dv.draw(out, dv.QualityDraw(rows=12)).filter("taken")["id"]
    assert sorted(taken) == sorted(set(out["id"]) - set(lost))


@pytest.mark.parametrize("backend", ["faiss", "scikit-learn"])
@pytest.mark.parametrize(
    ("vectors", "clusters"),
    [
        pytest.param([[1.0, 0.0]] * 6, 1, id="all-rows-equal"),
        pytest.param([[1.0, 0.0], [0.0, 1.0]], 2, id="more-clusters-than-rows"),
        pytest.param([[1.0, 0.0]], 1, id="one-row"),
        pytest.param([[0.0, 0.0]] * 3, 0, id="no-direction-at-all"),
        pytest.param(np.zeros((0, 2)), 0, id="an-empty-pool"),
    ],
)
def test_pools_with_little_in_them_have_few_clusters(vectors, clusters, backend):
    base = embedded(np.reshape(vectors, (-1, 2))).with_columns(clear_confidence=pl.lit(0.5))
    out = cl.cluster(base, cl.Cluster(clusters=5, backend=backend))
    assert out["diversity_cluster"].drop_nulls().unique().sort().to_list() == list(range(clusters))
    assert dv.draw(out, dv.QualityDraw(rows=100)).filter("taken").height == len(vectors) * (clusters > 0)
    assert cl.cluster(base, cl.Cluster(clusters=5, silhouette=True, backend=backend)).height == len(vectors)


def test_one_cluster_that_holds_everything_is_no_trouble():
    base = embedded(np.random.default_rng(8).normal(size=(50, 4))).with_columns(clear_confidence=pl.lit(0.5))
    out = cl.cluster(base, cl.Cluster(clusters=1))
    assert out.select("diversity_cluster", "diversity_share").unique().rows() == [(0, 1.0)]
    assert dv.draw(out, dv.QualityDraw(rows=20)).filter("taken").height == 20
    seen = out.select("id", student_nll=pl.lit(1.0), student_correct=pl.lit(True))
    weights = STEPS["reweight-clusters"](
        out.with_columns(base_nll=pl.lit(0.5)), dv.Reweight(), tables={"results": seen}
    )
    assert weights["weight"].to_list() == [1.0]


def test_a_backend_is_decided_before_anything_is_run():
    assert cl.Cluster().settled(()).backend in ("faiss", "faiss-gpu", "scikit-learn")
    assert cl.Cluster(backend="scikit-learn").settled(()).backend == "scikit-learn"


def fitted(base, **options):
    return STEPS["kmeans-centroids"](base, cl.Cluster(**options))


def clustered(base, table):
    return STEPS["kmeans-cluster"](base, cl.Cluster(clusters=99, seed=7), tables={"centroids": table})


def test_rows_keep_their_clusters_by_the_kept_centroids_whatever_comes_and_goes():
    base = embedded(np.random.default_rng(4).normal(size=(80, 4)))
    table = fitted(base, clusters=6)
    before = clustered(base, table)
    assert before.equals(cl.cluster(base, cl.Cluster(clusters=6)))  # fitted at once, it is the same
    left = before.filter(pl.int_range(pl.len()) >= 30)
    grown = embedded(np.random.default_rng(5).normal(size=(9, 4)))
    grown = grown.with_columns(id=pl.format("g{}", "id"), round=pl.lit(1, pl.Int32))
    after = clustered(pl.concat([grown, base.filter(pl.int_range(pl.len()) >= 30)]), table)
    assert after.tail(50).select(left.columns).equals(left)
    centres = table["centroid"].to_numpy()
    nearest = ((grown["embedding"].to_numpy()[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert after["diversity_cluster"].head(9).to_list() == nearest.tolist()


def test_a_table_says_of_each_cluster_its_share_and_none_is_empty():
    vectors = [[0.0, 1.0]] * 3 + [[1.0, 0.0], [0.0, 0.0], [np.nan, 1.0]]
    table = fitted(embedded(vectors), clusters=5)
    assert table.sort("share").select("cluster", "share").rows() in ([(0, 0.25), (1, 0.75)], [(1, 0.25), (0, 0.75)])
    assert table.schema["centroid"] == pl.Array(pl.Float32, 2)
    nothing = fitted(embedded(vectors[4:]), clusters=5)
    assert nothing.is_empty() and clustered(embedded(vectors), nothing)["diversity_cluster"].null_count() == 6


def test_centroids_of_other_embeddings_or_another_table_are_refused():
    table = fitted(embedded(np.eye(3)))
    with pytest.raises(StepError, match="3 dimensions and the embeddings 2; make the centroids"):
        clustered(embedded(np.eye(2)), table)
    with pytest.raises(StepError, match=r"lacks \['centroid', 'share'\]; make it with kmeans-centroids"):
        clustered(embedded(np.eye(3)), pl.DataFrame({"cluster": [0], "weight": [1.0]}))
