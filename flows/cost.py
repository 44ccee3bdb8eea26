"""What a step asked of its models, told by itself: calls and tokens a row, rows a second."""

from storage.store import Store

COUNTED = {
    "requests": "model calls",
    "prompt_tokens": "prompt tokens",
    "generated_tokens": "generated tokens",
    "classified_pairs": "pairs classified",
}


def cost(store: Store, dataset: str) -> str:
    """As people read it: "3.0 model calls, 205 prompt tokens a row, 18.2 rows a second"; empty where none was asked.

    Answers that were in the store already count as calls, and cost no time: a second run is quicker, not cheaper.
    """
    facts = store.run_facts(dataset)
    rows, seconds = facts.get("rows", 0), facts.get("seconds", 0.0)
    asked = [f"{facts[what] / rows:,.1f} {said}" for what, said in COUNTED.items() if rows and facts.get(what)]
    if not asked:
        return ""
    return ", ".join(asked) + " a row" + (f", {rows / seconds:,.1f} rows a second" if seconds else "")
