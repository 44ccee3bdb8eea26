"""Steps that say after `evaluate` which answers are right, with the real model."""

from flows import loop
from flows.config import LoopConfig, Use
from storage.store import Store
from tests.flows.test_kept_clusters import without_server
from tests.flows.test_report import sealed
from tests.rows import rows


def test_a_check_has_the_last_word_on_what_is_right(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "run_one_step", without_server)
    store = Store(tmp_path)
    pool = sealed(store, "pool", rows(("What is red?", "a car that no model names"), ("What is blue?", "zebras")))

    def right(*check):
        config = LoopConfig(name="n", pool="p", heldout="h", evaluate={"max_tokens": 4}, check=list(check))
        tested = loop.Turn(config, tmp_path, 0, 1).evaluate("evaluate", pool, None)
        return store.read(tested)["student_correct"].to_list()

    assert right() == [False, False]
    assert right(Use(step="judge-answers", **{"with": {"threshold": 1e-9}})) == [True, True]
