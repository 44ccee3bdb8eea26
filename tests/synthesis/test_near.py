import random

import pytest

from synthesis.near import Near, rouge_l


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.7, 0.9, 0.95, 1.0])
def test_it_finds_what_comparing_with_all_would_find(limit):
    rng = random.Random(3)
    texts = [" ".join(rng.choices("abcdefgh", k=rng.randint(1, 14))) for _ in range(150)]
    asked = [" ".join(rng.choices("abcdefgh", k=rng.randint(1, 14))) for _ in range(60)] + texts[:5]
    near = Near(limit, texts)
    found = [t in near for t in asked]
    assert found == [any(rouge_l(known, t) > limit for known in texts) for t in asked]
    assert limit == 1.0 or any(found)


def test_words_of_any_script_count():
    assert rouge_l("кошка на окне", "Кошка на окне!") == 1.0 and rouge_l("кошка на окне", "") == 0.0
