"""Models of a few hundred parameters, of the shapes that NLI, reward models and UniEval have."""

import weakref

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from curation.step import Failed
from synthesis.classifier import TextClassifier
from synthesis.fingerprint import EngineError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "Yes", "No", "question", ":", *"abcdefgh"]
PAIRS = [("a b", "c"), ("a b c d e f g h", "h g"), ("", "a"), ("d", "e f")]


def tokenizer(folder, pair=True):
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    template = "[CLS] $A [SEP]" if pair else "$A [SEP]"
    made.post_processor = processors.TemplateProcessing(
        single=template, pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]", model_max_length=64
    )
    fast.save_pretrained(folder)
    return fast


def bert(folder, labels):
    tokenizer(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **shape, initializer_range=0.5)
    config.id2label = dict(enumerate(labels))
    config.num_labels = len(labels)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def nli(tmp_path_factory):
    return bert(tmp_path_factory.mktemp("nli"), ["CONTRADICTION", "NEUTRAL", "ENTAILMENT"])


def test_classes_have_probabilities_that_do_not_depend_on_the_batch(nli):
    model = TextClassifier(nli)
    assert model.labels == ("contradiction", "neutral", "entailment")
    found = model.classify(PAIRS)
    for pair, probabilities in zip(PAIRS, found, strict=True):
        assert sum(probabilities) == pytest.approx(1)
        assert model.classify([pair])[0] == pytest.approx(probabilities, abs=1e-5)
    assert len({round(p[0], 4) for p in found}) == len(PAIRS)
    assert model.classify([]) == []


def test_probabilities_are_those_of_a_plain_forward(nli):
    plain, words = BertForSequenceClassification.from_pretrained(nli).eval(), tokenizer(nli)
    for pair, found in zip(PAIRS, TextClassifier(nli).classify(PAIRS), strict=True):
        with torch.inference_mode():
            odds = plain(**words(*pair, return_tensors="pt")).logits[0].softmax(-1)
        assert found == pytest.approx(odds.tolist(), abs=1e-5)


def test_a_classifier_that_is_closed_holds_no_model(nli):
    classifier = TextClassifier(nli)
    model = weakref.ref(classifier._model)
    classifier.close()
    assert model() is None
    with pytest.raises(EngineError, match="was closed"):
        classifier.classify(PAIRS)


def test_a_reward_model_gives_its_number(tmp_path):
    model = TextClassifier(bert(tmp_path, ["LABEL_0"]))
    assert model.labels == ("score",)
    found = model.classify(PAIRS)
    assert all(len(f) == 1 for f in found)
    plain, words = BertForSequenceClassification.from_pretrained(tmp_path).eval(), tokenizer(tmp_path)
    with torch.inference_mode():
        assert found[0][0] == pytest.approx(float(plain(**words(*PAIRS[0], return_tensors="pt")).logits), abs=1e-5)


def test_a_model_that_writes_is_asked_for_yes_against_no(tmp_path):
    words = tokenizer(tmp_path, pair=False)
    torch.manual_seed(0)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=len(WORDS), **shape, decoder_start_token_id=0, pad_token_id=0, eos_token_id=3)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    model = TextClassifier(tmp_path)
    assert model.labels == ("yes", "no")
    plain = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    for (a, b), found in zip(PAIRS, model.classify(PAIRS), strict=True):
        ids = words(f"question: {a} [SEP] {b}", return_tensors="pt")
        with torch.inference_mode():
            logits = plain(**ids, decoder_input_ids=torch.tensor([[0]])).logits[0, 0]
        odds = logits[[WORDS.index("Yes"), WORDS.index("No")]].softmax(-1)
        assert found == pytest.approx(odds.tolist(), abs=1e-5)


def test_a_pair_that_cannot_be_read_fails_alone(nli):
    found = TextClassifier(nli).classify([PAIRS[0], ("a " * 40, "b"), ("\ud800", "b"), PAIRS[1]])
    assert [isinstance(f, Failed) for f in found] == [False, True, True, False]
    assert "do not fit the model's 32" in found[1].error and "surrogate" in found[2].error
