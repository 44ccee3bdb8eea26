import io
import json
import shutil
import sys

import pytest
from rich.text import Text

from flows.engines import EngineSpec
from flows.train_commands import prefer, show_preview
from flows.training import train_adapter
from storage.schema import ROW
from storage.store import Manifest, Store, StoreError
from tests.rows import rows
from training.settings import TrainConfig

SHORT = {"optimizer_steps": 2, "batch_size": 2, "rank": 2, "learning_rate": 1e-3}


@pytest.fixture
def store(tmp_path):
    """Two wrong rows and their corrections."""
    store = Store(tmp_path)
    pool = rows(
        *[("Is 1 odd?", "no"), ("Is 2 odd?", "yes"), ("Is 1 odd?", "yes"), ("Is 2 odd?", "no")],
        parent_id=[None, None, "r0", "r1"],
        drop_reason=["t: wrong", "t: wrong", None, None],
    )
    part = store.put_part("pool", pool, ROW)
    store.seal(Manifest("pool", "rows", "test", 1, {}, {}, {}, ((part,),)))
    store.name("mine", "pool")
    return store


@pytest.mark.parametrize("method", ["lora", "full"])
def test_preferring_starts_from_what_a_training_made_and_from_no_other_base(store, tiny_model, other_model, method):
    config = TrainConfig(**SHORT, method=method)
    store.name("student", train_adapter(store, "pool", EngineSpec(model=str(tiny_model)), config))
    how = {"store": store.root, "adapter": "student", **SHORT}
    with pytest.raises(StoreError, match="was trained on another model than"):
        prefer("mine", model=str(other_model), **how)
    prefer("mine", model=str(tiny_model), **how)
    made = store.manifest(store.resolve("mine.preferred"))
    assert made.kind == "adapter" and made.counts == {"pairs": 2, "steps": 2}
    called = json.loads((store.files(made.id) / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert called == (store.resolve("student") if method == "full" else tiny_model.name)
    with pytest.raises(StoreError, match="name what `thresher train` made"):
        prefer("mine", model=str(tiny_model), **how | {"adapter": "mine"})


def test_an_adapter_in_a_folder_is_held_to_the_base_that_it_names(store, tiny_model, other_model, tmp_path):
    made = train_adapter(store, "pool", EngineSpec(model=str(tiny_model)), TrainConfig(**SHORT))
    folder = tmp_path / "mine"
    shutil.copytree(store.files(made), folder)
    how = {"store": store.root, "adapter": str(folder), **SHORT}
    with pytest.raises(StoreError, match="as it says, not on"):
        prefer("mine", model=str(other_model), **how)
    prefer("mine", model=str(tiny_model), **how)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        prefer("mine", model=str(tiny_model), **how)


def test_a_preview_on_a_terminal_has_the_learnt_tokens_in_colour(store, tiny_model, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown = Terminal()
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "200")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", shown)
    show_preview(store, "pool", str(tiny_model), TrainConfig())
    monkeypatch.undo()
    [text] = [t for t in map(Text.from_ansi, shown.getvalue().splitlines()) if "Is 1 odd?" in t.plain]
    coloured = "".join(text.plain[s.start : s.end] for s in text.spans if s.style.bgcolor)
    assert coloured == "yes<|end|>"
    assert {s.style.bgcolor.number for s in text.spans if s.style.bgcolor} == {2, 10}  # green, and bright green
    assert all(s.style.dim for s in text.spans if not s.style.bgcolor)


def test_a_preview_counts_how_the_rows_were_told(store, tiny_model, capsys):
    show_preview(store, "pool", str(tiny_model), TrainConfig())
    said = capsys.readouterr().out
    assert "2 rows told by the template's own marks" in said and "⟦yes" in said
