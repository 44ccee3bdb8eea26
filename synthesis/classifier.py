"""Models that judge a pair of texts: NLI, reward models, and UniEval, which answers yes or no."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

from curation.step import Failed
from synthesis.chat import no_text, quiet
from synthesis.decode import batches, free_memory
from synthesis.fingerprint import EngineError, fingerprint

_BATCH_TOKENS = {"cpu": 4_096, "cuda": 65_536}


class TextClassifier:
    """Satisfies `curation.step.Classifier`, with a model of transformers.

    A model with classes gives their probabilities, `labels` being their names; one with a single number (a reward
    model) gives that number, and its label is `score`. A model that writes (UniEval is a T5) gives the probability of
    "Yes" against "No" as its first word: P(Yes) / (P(Yes) + P(No)), as Zhong et al. (2022, arXiv 2210.07197) do; its
    pair is a question and what it is asked about, joined as in their code: `question: … </s> …`.
    """

    def __init__(self, model: str | Path, *, identity: str | None = None, device: str = "cpu") -> None:
        quiet()
        name = str(model)
        self.identity = identity or fingerprint("classifier", name, "float32")
        self._tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        self._writes = bool(config.is_encoder_decoder)
        kind = AutoModelForSeq2SeqLM if self._writes else AutoModelForSequenceClassification
        self._model: Any = kind.from_pretrained(name, dtype=torch.float32, trust_remote_code=False)
        self._model.to(device).eval().requires_grad_(False)
        self._device = device
        self._longest = _longest(self._tokenizer, config)
        if self._writes:
            self._words = [_first_token(self._tokenizer, word, name) for word in ("Yes", "No")]
            self.labels: tuple[str, ...] = ("yes", "no")
        elif config.num_labels == 1:
            self.labels = ("score",)
        else:
            self.labels = tuple(config.id2label[i].lower() for i in range(config.num_labels))

    def classify(self, pairs: list[tuple[str, str]]) -> list[list[float] | Failed]:
        """Pairs that are too long for the model, or no text, fail alone."""
        if self._model is None:
            raise EngineError("the classifier was closed")
        out: list[Any] = [no_text(*pair) for pair in pairs]
        fine = [i for i, failure in enumerate(out) if failure is None]
        encoded = dict(zip(fine, self._encode([pairs[i] for i in fine]), strict=True))
        for i, ids in encoded.items():
            if len(ids["input_ids"]) > self._longest:
                out[i] = Failed(f"{len(ids['input_ids'])} tokens do not fit the model's {self._longest}")
        fine = [i for i in fine if out[i] is None]
        for group in batches([len(encoded[i]["input_ids"]) for i in fine], _BATCH_TOKENS[self._device]):
            some = [fine[k] for k in group]
            padded = self._tokenizer.pad([encoded[i] for i in some], return_tensors="pt").to(self._device)
            with torch.inference_mode():
                for i, judged in zip(some, self._judge(padded).tolist(), strict=True):
                    out[i] = judged
        return out

    def close(self) -> None:
        """Free the memory; the classifier is unusable afterwards."""
        self._model = None
        free_memory(self._device)

    def _encode(self, pairs: list[tuple[str, str]]) -> list[dict[str, list[int]]]:
        if not pairs:
            return []
        if self._writes:
            end = self._tokenizer.eos_token
            encoded = self._tokenizer([f"question: {a} {end} {b}" for a, b in pairs])
        else:
            encoded = self._tokenizer([a for a, _ in pairs], [b for _, b in pairs])
        return [{key: values[i] for key, values in encoded.items()} for i in range(len(pairs))]

    def _judge(self, padded: Any) -> torch.Tensor:
        if self._writes:
            start = torch.full((len(padded["input_ids"]), 1), self._model.config.decoder_start_token_id)
            logits = self._model(**padded, decoder_input_ids=start.to(self._device)).logits[:, 0]
            return logits[:, self._words].float().softmax(-1)
        logits = self._model(**padded).logits.float()
        return logits if len(self.labels) == 1 else logits.softmax(-1)


def _longest(tokenizer: Any, config: Any) -> int:
    """T5 has no positions to run out of; its tokenizer says what it was trained on."""
    known = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    return min(int(n) for n in known if n and n > 0)


def _first_token(tokenizer: Any, word: str, name: str) -> int:
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if not ids:
        raise EngineError(f"{name} cannot say {word!r}; a model of UniEval's kind is needed")
    return ids[0]
