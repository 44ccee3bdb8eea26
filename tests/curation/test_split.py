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
