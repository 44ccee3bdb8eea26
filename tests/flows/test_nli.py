import json

import pytest

from curation.clear import ClearScore
from curation.step import find_step
from flows import steps  # noqa: F401  registers every step
from flows.engines import EngineError, EngineSpec, release
from flows.models import lend, typed_models
from flows.run import run_step
from storage.schema import ROW
from storage.store import Manifest, Store
from synthesis.classifier import TextClassifier
from tests.rows import rows

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "is", "it", "a", "red", "green", "blue", "thing"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A two-layer random BERT with three classes and a vocabulary of words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    made = tmp_path_factory.mktemp("nli")
    words = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair=pair, special_tokens=ends)
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(made)
    torch.manual_seed(0)
    config = BertConfig(
        **{"vocab_size": len(words), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"intermediate_size": 64, "max_position_embeddings": 24, "initializer_range": 0.5},
        id2label={0: "NEUTRAL", 1: "CONTRADICTION", 2: "ENTAILMENT"},
    )
    BertForSequenceClassification(config).save_pretrained(made)
    return made


def test_confidence_asks_the_nli_model_once_for_each_pair_and_the_manifest_says_so(folder, tmp_path, monkeypatch):
    store = Store(tmp_path)
    pool = rows(("what is it", "red thing"), ("what is it", "a green thing"))
    part = store.put_part("p", pool, ROW)
    store.seal(Manifest("import-1", "rows", "import", 1, {}, {}, {}, ((part,),), counts={"rows": 2, "live": 2}))
    step = find_step("clear-score")
    models = typed_models(store, step.roles, {"nli": str(folder)})
    config, lease = lend(step, ClearScore(samples=2, max_tokens=3, seed=1), models, store)
    made = run_step(store, step, config, "import-1", {}, lease)
    manifest, said = store.manifest(made), store.read(made)
    assert manifest.config["similarity"] == "nli" and manifest.engines["nli"].startswith("classifier-1:")
    assert "embedder" not in manifest.engines
    assert said["clear_compared_by"].unique().to_list() == ["nli"] and said["clear_similarity"].null_count() == 0
    assert store.run_facts(made)["classified_pairs"] > 0
    config, lease = lend(step, ClearScore(samples=2, max_tokens=3, seed=1, alpha=0.5), models, store)
    monkeypatch.setattr(TextClassifier, "classify", None)  # another weight asks nobody again
    other = store.read(run_step(store, step, config, "import-1", {}, lease))
    assert other["clear_similarity"].equals(said["clear_similarity"])
    assert not other["clear_consistency"].equals(said["clear_consistency"])
    release()


def test_an_nli_model_that_is_missing_or_is_none_is_one_line_before_any_work(folder, tmp_path):
    store, step = Store(tmp_path), find_step("clear-score")

    def lent(model, similarity="nli"):
        return lend(step, ClearScore(similarity=similarity), typed_models(store, step.roles, {"nli": model}), store)

    for similarity in ("nli", "auto"):
        with pytest.raises(EngineError, match="there is no model folder /no/such"):
            lent("/no/such", similarity)
    other = tmp_path / "other"
    other.mkdir()
    said = json.loads((folder / "config.json").read_text()) | {"id2label": {"0": "SPAM", "1": "HAM"}}
    (other / "config.json").write_text(json.dumps(said))
    with pytest.raises(EngineError, match=r"no NLI model: none of its classes \['SPAM', 'HAM'\]"):
        lent(str(other))
    config, lease = lent("/no/such", "embedding")  # not asked, so not missed
    assert config.similarity == "embedding" and "nli" not in lease.identities


def test_auto_is_settled_before_anything_is_hashed(tmp_path, folder):
    store, step = Store(tmp_path), find_step("clear-score")
    models = typed_models(store, step.roles, {})
    without = {role: spec for role, spec in models.items() if role != "nli"}  # even where the default one is here
    assert lend(step, ClearScore(), without, store)[0].similarity == "embedding"
    spec = EngineSpec(kind="classifier", model=str(folder))
    assert lend(step, ClearScore(), without | {"nli": spec}, store)[0].similarity == "nli"
