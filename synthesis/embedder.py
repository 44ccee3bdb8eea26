"""Unit vectors of texts, from a sentence-transformers model; all-MiniLM-L6-v2 comes with the installation."""

from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from synthesis.chat import quiet
from synthesis.decode import free_memory
from synthesis.fingerprint import EngineError, fingerprint, packaged_folder

PACKAGED = "all-MiniLM-L6-v2"


class SentenceEmbedder:
    """Satisfies `curation.step.Embedder`. The packaged model is read from disk and asks no network."""

    def __init__(
        self, model: str | Path = PACKAGED, *, identity: str | None = None, device: str = "cpu", batch: int = 64
    ) -> None:
        quiet()
        name = packaged_folder() if str(model) == PACKAGED else model
        local = Path(name).is_dir()
        self._model = SentenceTransformer(str(name), device=device, local_files_only=local, trust_remote_code=False)
        self._batch, self._device = batch, device
        self.identity = identity or (fingerprint("sentence", name, "float32") if local else f"sentence:{model}:float32")

    def embed(self, texts: list[str]) -> np.ndarray:
        if self._model is None:
            raise EngineError("the embedder was closed")
        if not texts:
            return np.zeros((0, self._model.get_embedding_dimension()), np.float32)
        vectors = self._model.encode(
            texts, batch_size=self._batch, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
        )
        return vectors.astype(np.float32, copy=False)

    def close(self) -> None:
        """Free the memory; the embedder is unusable afterwards."""
        self._model = None
        free_memory(self._device)
