import weakref

import numpy as np
import pytest

from synthesis.embedder import SentenceEmbedder
from synthesis.fingerprint import EngineError


@pytest.fixture(scope="module")
def embedder():
    return SentenceEmbedder()


def test_vectors_are_unit_float32_in_the_order_of_the_texts(embedder):
    texts = ["play some jazz", "a much longer sentence about the weather in the north of the country", ""]
    vectors = embedder.embed(texts)
    assert (vectors.dtype, vectors.shape) == (np.float32, (3, 384))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert vectors[1] == pytest.approx(embedder.embed([texts[1]])[0], abs=1e-4)


def test_texts_of_one_meaning_lie_closer_than_others(embedder):
    jazz, music, weather = embedder.embed(["play some jazz", "put on a jazz song", "will it rain tomorrow"])
    assert jazz @ music > jazz @ weather + 0.2


def test_an_embedder_that_is_closed_holds_no_model():
    embedder = SentenceEmbedder()
    model = weakref.ref(embedder._model)
    embedder.close()
    assert model() is None
    with pytest.raises(EngineError, match="was closed"):
        embedder.embed(["a"])


def test_no_texts_give_no_vectors(embedder):
    assert embedder.embed([]).shape == (0, 384)
