import polars as pl

from curation.split import Split, split
from tests.rows import rows


def sides(*prompts: str, **options: float | str) -> list[str]:
    return split(rows(*[(prompt, "yes") for prompt in prompts]), Split(**options))["split"].to_list()


def test_the_share_is_that_of_the_config():
    many = [f"question {n}" for n in range(4000)]
    # 200 are expected, with a standard deviation of 13.8
    assert 150 < sides(*many).count("validation") < 250
    assert sides(*many, share=0).count("validation") == 0
    assert sides(*many, share=1).count("train") == 0


def test_rows_that_ask_the_same_are_on_the_same_side():
    asked = [f"Question {n}?" for n in range(200)]
    again = [text.lower().rstrip("?") for text in asked]
    both = sides(*asked, *again, share=0.5)
    assert both[:200] == both[200:]
    assert len(set(both)) == 2


def test_a_pool_that_grows_moves_no_row():
    asked = [f"question {n}" for n in range(200)]
    assert sides(*asked, share=0.5) == sides(*asked, *["more"] * 50, share=0.5)[:200]


def test_another_salt_is_another_split():
    asked = [f"question {n}" for n in range(200)]
    assert sides(*asked, share=0.5) != sides(*asked, share=0.5, salt="1")


def test_the_split_is_by_the_first_64_bits_of_sha256():
    peru = 0xC323B5343FE10DDE / 2**64  # of the output of: printf '0\ncapital of peru' | sha256sum
    assert sides("Capital of Peru?", share=peru + 1e-6) == ["validation"]
    assert sides("Capital of Peru?", share=peru - 1e-6) == ["train"]


def test_made_rows_are_never_for_validation_and_stand_aside_where_they_ask_what_falls_to_it():
    asked = rows(*[(f"question {i}", "a") for i in range(200)])
    made = asked.with_columns(parent_id=pl.lit("r0"), round=pl.lit(1, dtype=pl.Int32))
    sides = split(asked, Split(share=0.3))["split"]
    told = split(made, Split(share=0.3))["split"]
    assert told.to_list() == ["aside" if s == "validation" else "train" for s in sides]
    assert "aside" in told
