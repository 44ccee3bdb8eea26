"""What is recorded nowhere is made all the same."""

import json
import os
import re

import pytest

from flows import rule_page
from storage.store import Store
from tests.flows.test_loop import ROOT, thresher


def test_a_page_that_nobody_records_is_a_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("THRESHER_UNRECORDED", "1")
    rule_page.publish(Store(tmp_path), "rule-mine", {"name": "mine"}, "# Mine\n")
    assert json.loads((tmp_path / "reports/rule-mine.json").read_text()) == {"name": "mine"}
    assert (tmp_path / "reports/rule-mine.md").read_text() == "# Mine\n"
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("page: ") and said.endswith("rule-mine.md")


@pytest.mark.real
@pytest.mark.parametrize(
    "command, example",
    [
        ("choose-size", "snips/loop.yaml"),
        ("fit-rule", "snips/fit.yaml"),
        ("self-guide", "self_guide/self-guide.yaml"),
    ],
)
def test_a_command_comes_as_far_as_its_data_where_the_configured_server_is_silent(command, example, tmp_path):
    """Here that is broken, so that nothing is computed."""
    config = tmp_path / "here" / "config.yaml"
    config.parent.mkdir()
    config.write_text((ROOT / "examples" / example).read_text())
    for file in re.findall(r"[\w./-]+\.jsonl", config.read_text()):
        (config.parent / file).parent.mkdir(exist_ok=True)
        (config.parent / file).write_text("broken\n")
    silent = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    ran = thresher(command, config, store=tmp_path / "store", env=silent)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert "http://127.0.0.1:9/api does not answer, so nothing is recorded there" in ran.stderr
    assert "jsonl has no usable row" in ran.stderr, ran.stderr
