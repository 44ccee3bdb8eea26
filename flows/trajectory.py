"""How the weights of the clusters moved from round to round: for the report, of its first seed."""

from typing import Any

from storage.store import Store

SHOWN = 10  # clusters at either end


def trajectory(store: Store, scored: str, weights: list[str]) -> list[dict[str, Any]]:
    """For each cluster: its share of the pool, its weight after each round, and its gain in that round; none without.

    `scored` are the clustered rows of the first round, `weights` the tables in order. What fell most comes first.
    """
    if not weights:
        return []
    tables = [store.read(dataset) for dataset in weights]
    columns = ["diversity_cluster", "diversity_share"]
    began = store.read(scored, columns).drop_nulls("diversity_cluster")
    share = dict(began.unique("diversity_cluster").select(columns).iter_rows())
    after = [dict(t.select("cluster", "weight").iter_rows()) for t in tables]
    gains = [dict(t.select("cluster", "gain").iter_rows()) for t in tables]
    out = [
        {
            "cluster": cluster,
            "share": share.get(cluster, 0.0),
            "weights": [w.get(cluster, 0.0) for w in after],
            "gains": [g.get(cluster) for g in gains],
        }
        for cluster in sorted(after[-1])
    ]
    return sorted(out, key=lambda c: (c["weights"][-1] / (c["share"] or 1e-9), c["cluster"]))


def trajectory_table(found: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: the clusters that lost and won most."""
    rounds = range(1, len(found[0]["weights"]) + 1)
    out = [
        "## Cluster weights",
        "",
        "Weight after each round, with the mean gain over the base model in nats per token.",
        "",
    ]
    out += ["| cluster | share of the pool | " + " | ".join(f"round {n}" for n in rounds) + " |"]
    out += ["|---" * (2 + len(rounds)) + "|"]
    for c in found if len(found) <= 2 * SHOWN else [*found[:SHOWN], *found[-SHOWN:]]:
        cells = [
            f"{weight:.4f}" + ("" if gain is None else f" ({gain:+.2f})")
            for weight, gain in zip(c["weights"], c["gains"], strict=True)
        ]
        out.append(f"| {c['cluster']} | {c['share']:.4f} | " + " | ".join(cells) + " |")
    return [*out, ""]
