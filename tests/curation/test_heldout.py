import tracemalloc

import numpy as np
import polars as pl

from curation.contamination import Contamination, _alike, review
from curation.heldout import HeldoutOverlap, drop_heldout
from curation.ngrams import covered
from tests.fakes import FakeEmbedder
from tests.rows import rows

LONG = "Please play the second movement of the last symphony that was recorded in the old opera house of Vienna"
WORDS = ["apple", "river", "stone", "cloud", "bread", "horse", "green", "paper", "music", "light"]


def reasons(pool: list[str], held: list[str], **options: float) -> list[str | None]:
    out = drop_heldout(
        rows(*[(text, "no") for text in pool]),
        HeldoutOverlap(**options),
        tables={"heldout": rows(*[(text, "yes") for text in held], id=[f"h{n}" for n in range(len(held))])},
    )
    return out["drop_reason"].to_list()


def test_a_row_that_asks_what_a_held_out_row_asks_is_named_whatever_its_answer():
    assert reasons(["Capital of Peru", "Capital of Chile?"], ["2+2?", "capital of peru?"]) == [
        "heldout-overlap: h1",
        None,
    ]


def test_a_row_that_asks_nearly_the_same_is_named_too():
    assert reasons([LONG + " now", "2+2?"], ["2+2", LONG]) == ["heldout-overlap: h1", "heldout-overlap: h0"]
    assert reasons([LONG + " now"], [LONG], jaccard=0.97, ngram=0) == [None]


def test_the_nearest_held_out_row_is_named():
    assert reasons([LONG + " now please"], [LONG, LONG + " now"]) == ["heldout-overlap: h1"]


def test_an_instruction_in_common_is_no_overlap():
    pool = [f"{LONG}:\n{word} in the pool" for word in WORDS]
    held = [f"{LONG}:\nheld-out {word}" for word in WORDS]
    assert reasons(pool, held) == [None] * 10


def test_a_held_out_question_is_found_without_the_instruction_of_its_set_and_a_long_one_under_another():
    held = [f"{LONG}:\nwho wrote the {word} song" for word in WORDS]
    assert reasons(["Who wrote the stone song?"], held) == ["heldout-overlap: h2"]
    assert reasons([f"{LONG}:\nWho wrote the stone song?"], [*held, "who wrote the stone song"]) == [
        "heldout-overlap: h2"
    ]
    assert reasons([LONG], [f"Answer in one word.\n{LONG} {word}" for word in WORDS]) == ["heldout-overlap: h0"]
    own = [f"{' '.join(WORDS[k:] + WORDS[:k])} and so on to the {k}th and last" for k in range(10)]
    long = [f"Answer in one word.\n{text}" for text in own]
    other = f"Now tell me, my dear friend, whatever it is that comes to your mind first: {own[3]}"
    assert reasons([other], long) == ["heldout-overlap: h3; 100 % of its prompt in runs of 8 words"]


def test_a_short_question_about_another_passage_that_is_held_out_too_is_no_overlap():
    passages = [f"This is all there is to say about {word} on this page." for word in WORDS[:2]]
    held = [f"{passages[0]}\nwho wrote the {word} song" for word in WORDS]
    held += [f"{passages[1]}\nwho painted the {word} house" for word in WORDS]
    assert reasons([f"{passages[1]}\nWho wrote the stone song?"], held) == [None]
    assert reasons([f"{passages[0]}\nWho wrote the stone song?"], held) == ["heldout-overlap: h2"]


def test_what_becomes_of_a_row_does_not_depend_on_the_others():
    held = [f"{LONG}: {word}" for word in WORDS[:3]]
    pool = [f"{LONG}: {word} {word}. Thank you." for word in WORDS] + [f"{LONG}: {word}!" for word in WORDS]
    together = reasons(pool, held)
    assert together == [None] * 10 + ["heldout-overlap: h0", "heldout-overlap: h1", "heldout-overlap: h2"] + [None] * 7
    assert together == [reasons([text], held)[0] for text in pool]
    pool = [f"{LONG} {word}. Now!" for word in WORDS]
    assert reasons(pool, [LONG]) == [reasons([text], [LONG])[0] for text in pool] == ["heldout-overlap: h0"] * 10


def test_nothing_to_compare_with_drops_nothing():
    assert reasons(["2+2?"], []) == [None]
    assert reasons([], ["2+2?"]) == []


def test_an_equal_prompt_is_found_even_where_its_sentences_end_elsewhere():
    assert reasons([f"{LONG} apple"], [f"{LONG}. {word}" for word in WORDS]) == ["heldout-overlap: h0"]


def test_a_row_that_quotes_a_held_out_prompt_or_answer_at_length_is_named():
    intro = (
        "Before you answer, consider this old question, which nobody has answered since it was first asked in public: "
    )
    assert reasons([intro + LONG], [LONG]) == ["heldout-overlap: h0; 100 % of its prompt in runs of 8 words"]
    assert reasons([intro + LONG], [LONG], ngram=0) == [None]
    words = LONG.split()
    assert len(words) == 19
    assert reasons([intro + " ".join(words[:10])], [LONG]) == [
        "heldout-overlap: h0; 53 % of its prompt in runs of 8 words"
    ]
    assert reasons([intro + " ".join(words[:9])], [LONG]) == [None]  # 9 of 19 are under a half
    pool, held = rows(("Tell me", f"Well: {LONG}")), rows(("Speak", LONG), id=["h0"])
    assert drop_heldout(pool, HeldoutOverlap(), tables={"heldout": held})["drop_reason"].to_list() == [
        "heldout-overlap: h0; 100 % of its answer in runs of 8 words"
    ]


def test_short_requests_that_are_alike_are_no_overlap():
    alike = "can i increase the credit limit on my {}"
    assert reasons([alike.format("walmart card")], [alike.format("mastercard")], jaccard=0.95) == [None]


def test_words_covered_are_counted_once():
    held, text = "a b c d e f g h i j", "x a b c d e f y e f g h i z"
    found = covered(pl.Series([text]), pl.Series([held]), 3, 0.5)
    assert found.rows() == [(0, 0, 0.9)]  # a to f and e to i: nine of ten words


def test_the_review_shows_both_sides_of_each_rule():
    pool = rows(("Capital of Peru", "Lima"), (LONG + " now", "x"), ("hello there", "x"), ("zzz", "x"))
    held = rows(("capital of Peru?", "Lima"), (LONG, "y"), ("there, hello!", "y"), id=["h0", "h1", "h2"])
    table = review(pool, Contamination(cosine=0.99), {"embedder": FakeEmbedder()}, {"heldout": held})
    assert set(table.select("id", "heldout", "rule").rows()) == {
        ("r0", "h0", "same"),
        ("r0", "h0", "near"),
        ("r0", "h0", "meaning"),
        ("r1", "h1", "near"),
        ("r1", "h1", "prompt"),
        ("r1", "h1", "meaning"),
        ("r2", "h2", "meaning"),
    }
    assert table.filter(pl.col("rule") == "same").select("said", "heldout_said").row(0) == (
        "Capital of Peru",
        "capital of Peru?",
    )
    assert (
        review(pool, Contamination(cosine=0), tables={"heldout": held}).filter(pl.col("rule") == "meaning").is_empty()
    )
    assert review(pool, Contamination(), {"embedder": FakeEmbedder()}, {"heldout": rows()}).is_empty()


def test_a_held_out_text_without_a_direction_hides_no_other():
    class Half(FakeEmbedder):
        def embed(self, texts):
            vectors = super().embed(texts)
            vectors[[i for i, text in enumerate(texts) if "..." in text]] = float("nan")
            return vectors

    pool, held = rows(("hello there", "x")), rows(("there, hello!", "y"), ("...", "y"), id=["h0", "h1"])
    table = review(pool, Contamination(cosine=0.99), {"embedder": Half()}, {"heldout": held})
    assert table.filter(pl.col("rule") == "meaning").select("id", "heldout").rows() == [("r0", "h0")]


def test_cosines_are_held_a_block_at_a_time_on_both_sides():
    rng = np.random.default_rng(0)
    mine, theirs = (rng.normal(size=(n, 8)).astype(np.float32) for n in (9000, 10_000))
    mine, theirs = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (mine, theirs))
    theirs[[5, 9990]] = np.nan
    tracemalloc.start()
    found = _alike(mine, theirs, 0.9)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 250e6  # all 90 million at once would be 360 MB, and as much again without the NaNs
    exact = np.nan_to_num(mine[:300] @ theirs.T, nan=-1.0)
    near = np.flatnonzero(exact.max(axis=1) >= 0.9)
    mine_found = found.filter(pl.col("row") < 300)
    assert mine_found["row"].to_list() == near.tolist()
    assert mine_found["heldout"].to_list() == exact[near].argmax(axis=1).tolist()
    assert (found["heldout"] > 4096).sum() > 1000
