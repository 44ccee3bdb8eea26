import pytest

from synthesis.fingerprint import EngineError, fingerprint, folder_digest

WEIGHTS = ("model.safetensors", "pytorch_model-00001-of-2.bin", "adapter_model.bin", "adapter_model.safetensors")
DECIDES = (*WEIGHTS, "config.json", "tokenizer.json", "chat_template.jinja", "config_sentence_transformers.json")


@pytest.fixture
def folder(tmp_path):
    for name in (*DECIDES, "adapter_config.json", "README.md"):
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize("name", DECIDES)
def test_whatever_decides_what_a_model_says_is_in_its_digest(folder, name):
    before = folder_digest(folder)
    (folder / name).write_text("changed")
    assert folder_digest(folder) != before


def test_its_card_and_an_adapter_beside_it_are_not(folder):
    before = folder_digest(folder)
    (folder / "README.md").write_text("changed")
    (folder / "instruct").mkdir()
    (folder / "instruct/adapter_config.json").write_text("{}")
    (folder / "instruct/adapter_model.safetensors").write_text("weights")
    assert folder_digest(folder) == before


def test_an_adapter_tells_a_model_from_itself_and_an_empty_folder_is_refused(folder, tmp_path):
    assert fingerprint("local", folder, "float32") != fingerprint("local", folder, "float32", folder)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(EngineError, match="holds no model"):
        folder_digest(tmp_path / "nothing")
