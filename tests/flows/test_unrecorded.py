"""What is recorded nowhere is made all the same."""

import json

from flows import rule_page
from storage.store import Store


def test_a_page_that_nobody_records_is_a_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("THRESHER_UNRECORDED", "1")
    rule_page.publish(Store(tmp_path), "rule-mine", {"name": "mine"}, "# Mine\n")
    assert json.loads((tmp_path / "reports/rule-mine.json").read_text()) == {"name": "mine"}
    assert (tmp_path / "reports/rule-mine.md").read_text() == "# Mine\n"
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("page: ") and said.endswith("rule-mine.md")
