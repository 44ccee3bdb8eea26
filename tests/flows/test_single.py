"""Curation, synthesis and training as flows of their own, on a real server, parameters as a schedule sends them."""

import pytest

from flows.server import serving
from storage.importing import import_files
from storage.store import Store

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
PICK = '{{"instruction": "Which: sun, rain?", "input": "{}", "output": "{}"}}\n'


def test_each_flow_works_alone_with_plain_parameters(tmp_path):
    raw = tmp_path / "raw.jsonl"
    raw.write_text(
        "".join(PICK.format(f"day {i} is {'hot' if i % 2 else 'wet'}", "sun" if i % 2 else "rain") for i in range(12))
    )
    store = Store(tmp_path / "store")
    import_files(store, [raw], "days")
    raw.write_text(PICK.format("a morning of fog", "rain"))
    import_files(store, [raw], "held")
    with serving(store.root):
        from flows import cards, single

        root = str(store.root)
        chosen = single.curate("days", [{"step": "random", "with": {"rows": 6}}], root)
        assert store.manifest(chosen).counts["taken"] == 6
        adapter = single.train("days.random", "held", root, {"optimizer_steps": 2, "batch_size": 2})
        assert store.manifest(adapter).counts == {"rows": 6, "steps": 2}
        single.curate("days", [{"step": "evaluate"}], root)
        grown = single.synthesise("days", "days.evaluate", {"step": "llm2llm", "with": {"rows": 2}}, root)
        assert store.manifest(grown).kind == "rows"
        assert {chosen, adapter, grown} <= set(cards.addresses())
