import numpy as np
import polars as pl

from curation import minhash
from curation.minhash import copies, nearest
from curation.shingles import shingled

LONG = "Please play the second movement of the last symphony that was recorded in the old opera house of Vienna"


def shingle_set(text: str) -> set[str]:
    return {text[i : i + 5] for i in range(max(len(text) - 4, 1))}


def alike(a: str, b: str) -> float:
    a, b = shingle_set(a), shingle_set(b)
    return len(a & b) / len(a | b)


def mixture() -> list[str]:
    """Texts of several families: rows of one differ in a few words, some by more than the threshold."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 6)) for _ in range(400)]
    out = []
    for _ in range(40):
        base = list(rng.choice(words, 30))
        for edits in rng.integers(0, 5, 6):
            text = list(base)
            for place in rng.choice(30, edits, replace=False):
                text[place] = str(rng.choice(words))
            out.append(" ".join(text))
    return [out[i] for i in rng.permutation(len(out))]


def test_copies_are_those_of_a_comparison_of_all_with_all():
    texts = mixture()
    found = {
        c: (k, j) for c, k, j in copies(pl.Series(texts), same(texts), 0.8, 5).select("copy", "kept", "jaccard").rows()
    }
    kept: list[int] = []
    for n, text in enumerate(texts):
        near = [k for k in kept if alike(text, texts[k]) >= 0.8]
        assert (n in found) == bool(near)
        if near:
            assert found[n][0] in near
            assert abs(found[n][1] - alike(text, texts[found[n][0]])) < 1e-9
        else:
            kept.append(n)
    assert 30 < len(found) < 200


def same(texts: list[str]) -> pl.Series:
    return pl.Series(["g"] * len(texts), dtype=pl.String)


def test_texts_of_different_groups_are_never_near():
    texts = pl.Series([LONG, LONG + " now", LONG])
    assert copies(texts, pl.Series(["a", "b", "a"]), 0.8, 5)["copy"].to_list() == [2]
    assert nearest(texts, pl.Series(["a", "b", "c"]), texts[:1], pl.Series(["b"]), 0.8, 5)["text"].to_list() == [1]


def test_the_nearest_held_text_is_found_for_each():
    texts = mixture()
    mine, held = texts[:120], texts[120:]
    found = {t: (h, j) for t, h, j in nearest(pl.Series(mine), same(mine), pl.Series(held), same(held), 0.8, 5).rows()}
    for n, text in enumerate(mine):
        best = max(alike(text, h) for h in held)
        assert (n in found) == (best >= 0.8)
        if best >= 0.8:
            assert abs(found[n][1] - best) < 1e-9
    assert len(found) > 20


def test_short_texts_of_any_letters_are_shingled_by_characters():
    texts = ["ab", "ab", "é漢😀xyz", "é漢😀xyz", "", ""]
    assert copies(pl.Series(texts), same(texts), 0.8, 5).select("kept", "copy").rows() == [(0, 1), (2, 3), (4, 5)]
    [chunk] = shingled(pl.Series(["abcdef", "x", "abcdeab"]), 5)
    assert [len(s) for s in chunk.sets()] == [2, 1, 3]
    assert chunk.sets()[0][0] in chunk.sets()[2].to_list() or chunk.sets()[0][1] in chunk.sets()[2].to_list()


def test_nothing_is_near_nothing():
    nothing = pl.Series([], dtype=pl.String)
    assert copies(nothing, nothing, 0.8, 5).is_empty()
    assert nearest(nothing, nothing, pl.Series(["a"]), pl.Series(["g"]), 0.8, 5).is_empty()
    assert nearest(pl.Series(["a"]), pl.Series(["g"]), nothing, nothing, 0.8, 5).is_empty()


def test_families_of_thousands_are_told_apart_in_a_few_looks_at_them(monkeypatch):
    rng, looks = np.random.default_rng(1), []
    verified = minhash._verified
    monkeypatch.setattr(minhash, "_verified", lambda *given: looks.append(1) or verified(*given))
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 6)) for _ in range(4000)]
    link, chain = list(rng.choice(words, 30)), []
    for n in range(1500):  # each near the next alone
        link[2 * n % 30], link[(2 * n + 1) % 30] = rng.choice(words, 2)
        chain.append(" ".join(link))
    clique = [" ".join([*base, str(other)]) for base in [list(rng.choice(words, 30))] for other in words[:2500]]
    texts = chain + clique
    found = copies(pl.Series(texts), same(texts), 0.8, 5)
    assert len(looks) < 40
    of_chain = found.filter(pl.col("copy") < 1500)
    assert 600 < of_chain.height < 800 and found.height - of_chain.height == 2499
    kept = set(range(len(texts))) - set(found["copy"])
    assert set(found["kept"]) <= kept
    for copy, first, jaccard in of_chain.select("copy", "kept", "jaccard").iter_rows():
        assert first < copy and jaccard >= 0.8 and abs(jaccard - alike(texts[copy], texts[first])) < 1e-9
    for n in sorted(k for k in kept if k < 1500):
        assert not any(alike(texts[n], texts[k]) >= 0.8 for k in range(max(n - 5, 0), n) if k in kept)
