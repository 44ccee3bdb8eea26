"""Classes of pairs of texts by a cross-encoder from transformers, such as whether one contradicts the other (NLI)."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from synthesis.decode import batches
from synthesis.fingerprint import EngineError, fingerprint
from synthesis.local_engine import quiet

_BATCH_TOKENS = 4_096
_LONGEST = 512  # tokens of a pair, where the model names no limit of its own


class CrossEncoder:
    """Satisfies `curation.step.Classifier`. Both texts go in as the tokenizer's pair; the longer one is cut to fit."""

    def __init__(self, model: str | Path, *, identity: str | None = None, device: str = "cpu") -> None:
        quiet()
        self.name, self.device = str(model), device
        self._tokenizer = AutoTokenizer.from_pretrained(self.name, trust_remote_code=False)
        found = AutoModelForSequenceClassification.from_pretrained(
            self.name, dtype=torch.float32, trust_remote_code=False
        )
        self._model = found.to(device).eval().requires_grad_(False)
        named = found.config.id2label
        if len(named) < 2:
            raise EngineError(f"{self.name} gives one number, not classes; an NLI model has three")
        self.labels = tuple(named[i] for i in range(len(named)))
        limits = (getattr(found.config, "max_position_embeddings", 0), self._tokenizer.model_max_length)
        self._longest = min([n for n in limits if n and 0 < n < 100_000], default=_LONGEST)
        self.identity = identity or fingerprint("cross-encoder", self.name, "float32")

    def classify(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """Pairs of about one length share a batch; each comes back in its place."""
        out = np.zeros((len(pairs), len(self.labels)), np.float32)
        if not pairs:
            return out
        left, right = zip(*pairs, strict=True)
        encoded = self._tokenizer(list(left), list(right), truncation="longest_first", max_length=self._longest)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        with torch.inference_mode():
            for group in batches(lengths, _BATCH_TOKENS):
                some = {name: [values[i] for i in group] for name, values in encoded.items()}
                padded = self._tokenizer.pad(some, return_tensors="pt").to(self.device)
                out[group] = self._model(**padded).logits.float().softmax(-1).cpu().numpy()
        return out

    def close(self) -> None:
        self._model = None
