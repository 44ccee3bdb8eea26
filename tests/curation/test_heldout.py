from curation.heldout import HeldoutOverlap, drop_heldout
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
    assert reasons(["Capital of Peru", "Capital of Chile?"], ["2+2?", "capital of peru?"]) == ["heldout: h1", None]


def test_a_row_that_asks_nearly_the_same_is_named_too():
    assert reasons([LONG + " now", "2+2?"], ["2+2", LONG]) == ["heldout: h1", "heldout: h0"]
    assert reasons([LONG + " now"], [LONG], jaccard=0.97) == [None]


def test_the_nearest_held_out_row_is_named():
    assert reasons([LONG + " now please"], [LONG, LONG + " now"]) == ["heldout: h1"]


def test_an_instruction_in_common_is_no_overlap():
    pool = [f"{LONG}:\n{word} in the pool" for word in WORDS]
    held = [f"{LONG}:\nheld-out {word}" for word in WORDS]
    assert reasons(pool, held) == [None] * 10


def test_what_becomes_of_a_row_does_not_depend_on_the_others():
    held = [f"{LONG}: {word}" for word in WORDS[:3]]
    pool = [f"{LONG}: {word} {word}. Thank you." for word in WORDS] + [f"{LONG}: {word}!" for word in WORDS]
    together = reasons(pool, held)
    assert together == [None] * 10 + ["heldout: h0", "heldout: h1", "heldout: h2"] + [None] * 7
    assert together == [reasons([text], held)[0] for text in pool]
    pool = [f"{LONG} {word}. Now!" for word in WORDS]
    assert reasons(pool, [LONG]) == [reasons([text], [LONG])[0] for text in pool] == ["heldout: h0"] * 10


def test_nothing_to_compare_with_drops_nothing():
    assert reasons(["2+2?"], []) == [None]
    assert reasons([], ["2+2?"]) == []


def test_an_equal_prompt_is_found_even_where_its_sentences_end_elsewhere():
    assert reasons([f"{LONG} apple"], [f"{LONG}. {word}" for word in WORDS]) == ["heldout: h0"]
