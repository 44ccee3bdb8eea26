import random

import polars as pl
import pytest

from curation import lexical_diversity
from curation.lexical_diversity import mtld

LONG = "the cat sat on the mat and the dog lay by the door while the cat slept on the mat by the dog " * 20


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("a " * 60, 2.0, id="one-word-again-and-again"),
        pytest.param("a b " * 30, 3.0, id="two-words-in-turn"),
        pytest.param(" ".join(chr(0x4E00 + i) for i in range(60)), 60.0, id="all-differ-gives-their-number"),
        pytest.param("", 0.0, id="nothing"),
        pytest.param(" .,!? 12 -- ", 0.0, id="no-word"),
        pytest.param("play", 1.0, id="one-word"),
        pytest.param("😀 😀 🎉", 3.0, id="emoji-are-words"),
        pytest.param("Well-known wellknown WELL\u2013KNOWN", 3.0, id="case-and-dashes-do-not-count"),
    ],
)
def test_worked_values(text, expected):
    assert mtld(pl.Series([text])).to_list() == [pytest.approx(expected, abs=1e-9)]


def test_values_are_those_of_lexicalrichness():
    """Texts of awkward characters as well, such as spaces that only Python's split knows."""
    from lexicalrichness import LexicalRichness

    draw = random.Random(0)
    awkward = "ab c-\u2013\u20141.,\u00a0\u2003\x1c\x85é İΣ😀\u3000'\n\t_"
    texts = ["".join(draw.choices(awkward, k=draw.randint(0, 60))) for _ in range(2000)]
    texts += [" ".join(draw.choices(LONG.split(), k=draw.randint(1, 300))) for _ in range(50)] + [LONG * 100]
    for text, found in zip(texts, mtld(pl.Series(texts)), strict=True):
        counted = LexicalRichness(text)
        assert found == pytest.approx(counted.mtld(0.72) if counted.words else 0.0, abs=1e-9), text


def test_what_is_held_in_memory_together_changes_nothing(monkeypatch):
    texts = pl.Series([LONG[: 40 * i] for i in range(30)] + [None, ""])
    whole = mtld(texts)
    monkeypatch.setattr(lexical_diversity, "_AT_ONCE", 1000)
    assert mtld(texts).equals(whole) and whole.null_count() == 0
    assert mtld(texts.clear()).to_list() == []
