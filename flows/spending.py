"""What models were asked for a dataset, and for all of a run: requests, tokens and seconds, as the store noted them."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from storage.store import Shard, Store

FACTS = (
    "requests",
    "from_store",
    "failures",
    "prompt_tokens",
    "cached_tokens",
    "generated_tokens",
    "classified_pairs",
    "pairs_from_store",
    "engine_seconds",
    "cost",
)


def cut_short(store: Store, part: str, facts: Mapping[str, float]) -> None:
    """What a step had spent on a part that it did not finish."""
    store.answers.add(f"part {part}", {what: amount for what, amount in facts.items() if amount})


def with_cut_short(store: Store, part: str, facts: Mapping[str, float]) -> dict[str, float]:
    """What a part took, with what it took before where it was not finished at once."""
    total = Counter(store.answers.sums(f"part {part}"))
    total.update(facts)
    return {what: round(amount, 3) for what, amount in total.items()}


def of_shards(store: Store, shards: list[Shard]) -> dict[str, float]:
    """The sum over the parts that a step made."""
    total: Counter[str] = Counter()
    for shard in shards:
        total.update({k: v for k, v in store.part_facts(shard[-1]).items() if k in FACTS})
    return {k: round(total[k], 3) for k in FACTS if total[k]}


def of_dataset(store: Store, dataset: str, name: str) -> dict[str, Any]:
    """What a step made, and what it took, for --json."""
    facts = store.run_facts(dataset)
    spent = {k: facts[k] for k in FACTS if k in facts}
    return {"name": name, "dataset": dataset, "counts": store.manifest(dataset).counts, "spent": spent}


def of_run(store: Store, run: str) -> dict[str, Any]:
    """By step, and in total, of all datasets that bear the run's name; each is counted once, when it was made."""
    datasets = {d for name, d in store.names().items() if name == run or name.startswith(f"{run}.")}
    steps: dict[str, Counter[str]] = {}
    for dataset in datasets:
        asked = {k: v for k, v in store.run_facts(dataset).items() if k in FACTS}
        if asked:
            steps.setdefault(store.manifest(dataset).step, Counter()).update(asked)
    total = sum(steps.values(), Counter())
    return {"steps": {s: _rounded(c) for s, c in sorted(steps.items())}, "total": _rounded(total)}


def in_words(facts: Mapping[str, Any]) -> str:
    """One line; empty where no model was asked."""
    said = {k: facts.get(k, 0) for k in FACTS}
    if not said["requests"] and not said["classified_pairs"]:
        return ""
    asked = [
        f"{said['requests']:,} requests" + _beside(said["from_store"], "from the store"),
        f"{said['prompt_tokens']:,} tokens read" + _beside(said["cached_tokens"], "of them cached"),
        f"{said['generated_tokens']:,} written",
    ]
    judged = f"{said['classified_pairs']:,} pairs judged" + _beside(said["pairs_from_store"], "from the store")
    return ", ".join(
        [
            *(asked if said["requests"] else []),
            *([judged] if said["classified_pairs"] else []),
            *([f"{said['failures']:,} failed"] if said["failures"] else []),
            f"{said['engine_seconds']:,.1f} s of the engine",
            *([f"cost {said['cost']:.4g}"] if said["cost"] else []),
        ]
    )


def _beside(amount: float, what: str) -> str:
    return f" ({amount:,} {what})" if amount else ""


def _rounded(facts: Mapping[str, float]) -> dict[str, float]:
    return {k: round(facts[k], 3) for k in FACTS if facts.get(k)}
