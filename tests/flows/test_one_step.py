"""A single step is checked and warned about in one place, whoever asks for it: its command, its form, a schedule."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curation.rule import Rule, Term
from curation.step import find_step
from flows import single, step_flows
from flows.config import ConfigError
from flows.engines import NANO, EngineSpec, trained_on
from flows.rules import install
from flows.step_commands import step_app
from storage.importing import import_files
from storage.store import Store

ROOT = Path(__file__).parents[2]
STEP = find_step("instructmining-score")


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    """Two rows, and a rule that was fitted with the embedded model."""
    monkeypatch.setenv("THRESHER_UNRECORDED", "1")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    (tmp_path / "raw.jsonl").write_text('{"instruction": "Say 1.", "output": "1"}\n' * 2)
    store = Store(tmp_path / "store")
    import_files(store, [tmp_path / "raw.jsonl"], "rows")
    terms = {"mtld": Term(coefficient=2.0)}
    install(store, Rule(name="mine", version="1", source="s", intercept=0, terms=terms, model=trained_on(EngineSpec())))
    return store


@pytest.fixture
def other(tmp_path) -> str:
    """A model like the embedded one, and not the same."""
    made = tmp_path / "other"
    shutil.copytree(NANO, made, ignore=shutil.ignore_patterns("instruct"))
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 2e-6}))
    return str(made)


def command(store: Store, **typed: str) -> None:
    words = [word for option, value in typed.items() for word in (f"--{option}", value)]
    ran = CliRunner().invoke(step_app(), [STEP.name, "rows", "--rule", "mine", *words, "--store", str(store.root)])
    sys.stderr.write(ran.stderr)
    if ran.exception:
        raise ran.exception


def form(store: Store, **typed: str) -> None:
    settings = STEP.config(rule="mine")
    step_flows.flow_of(STEP).fn(dataset="rows", settings=settings, name=None, root=store.root, **typed)


def chain(store: Store, base: str) -> None:
    single.curate.fn("rows", [single.Use(step=STEP.name, **{"with": {"rule": "mine"}})], store.root, base)


@pytest.mark.parametrize("way", [command, form, chain])
def test_a_rule_of_another_model_is_told_whoever_asks_for_the_step(way, store, other, capfd):
    way(store, base="nano")
    assert "was fitted with another model" not in capfd.readouterr().err
    way(store, base=other)
    assert capfd.readouterr().err.count("was fitted with another model") == 1
    assert store.manifest(store.resolve(f"rows.{STEP.name}")).step == STEP.name


@pytest.mark.parametrize("way", [command, form])
def test_an_address_of_no_cluster_is_refused_before_anything_is_made(way, store):
    with pytest.raises(ConfigError, match="'nowhere' is no address"):
        way(store, ray="nowhere")
    assert list(store.names()) == ["rows"]


def test_a_scheduled_loop_with_an_address_of_no_cluster_is_refused_before_it_begins(store, tmp_path):
    config = tmp_path / "loop.yaml"
    config.write_text("{name: loop, pool: raw.jsonl, heldout: raw.jsonl, ray: nowhere}")
    with pytest.raises(ConfigError, match="'nowhere' is no address"):
        single.loop.fn(config, root=store.root)
    assert list(store.names()) == ["rows"]


def test_the_command_loads_no_prefect_which_takes_longer_than_most_steps(store):
    words = ["thresher", "step", "random", "rows", "--rows", "1", "--store", str(store.root)]
    ran = f"import sys; sys.argv = {words}\nfrom flows.cli import main\n"
    ran += "try: main()\nfinally: print('prefect' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", ran], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert said.returncode == 0 and said.stdout == "False\n", said.stderr
    assert store.manifest(store.resolve("rows.random")).counts["taken"] == 1
