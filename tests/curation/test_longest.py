import polars as pl
import pytest

from curation.longest import Longest, take_longest
from curation.random_choice import Random, take_at_random
from curation.step import STEPS
from storage.schema import CHOICE, conform, message
from tests.rows import rows


def answering(*answers: str, **columns: list) -> pl.DataFrame:
    return rows(*[("q", answer) for answer in answers], **columns)


def taken(choice: pl.DataFrame) -> set[str]:
    return set(choice.filter("taken")["id"])


def test_the_longest_responses_are_taken_and_their_length_is_the_reason():
    choice = take_longest(answering("four", "a", "three", "", "to"), Longest(rows=2, round=3))
    assert taken(choice) == {"r0", "r2"}
    assert choice.select("id", "why").rows() == [
        ("r2", "response of 5 characters"),
        ("r0", "response of 4 characters"),
        ("r4", "response of 2 characters"),
        ("r1", "response of 1 characters"),
        ("r3", "response of 0 characters"),
    ]
    assert choice["round"].unique().to_list() == [3]
    assert choice["weight"].null_count() == 5  # nothing was drawn


def test_a_prompt_does_not_count_and_a_letter_of_two_bytes_is_one_character():
    frame = rows(("a very long question", "ab"), ("q", "éé"), ("q", "abc"))
    assert taken(take_longest(frame, Longest(rows=1))) == {"r2"}
    assert take_longest(frame, Longest())["why"].to_list()[1:] == ["response of 2 characters"] * 2


def test_a_call_of_a_tool_is_part_of_the_response():
    frame = answering("ab", "")
    said = [[message("user", "q"), message("assistant", "ab")], [message("assistant", None, "[{}]")]]
    frame = frame.with_columns(messages=pl.Series(said, dtype=frame.schema["messages"]))
    assert taken(take_longest(frame, Longest(rows=1))) == {"r1"}


def test_another_seed_changes_ties_alone():
    frame = answering("longest of all", *["same"] * 30, *["x"] * 30)
    found = [taken(take_longest(frame, Longest(rows=11, seed=seed))) for seed in range(3)]
    same = {f"r{i}" for i in range(1, 31)}
    assert all("r0" in ids and ids - {"r0"} < same for ids in found)
    assert found[0] != found[1] != found[2]
    assert found[0] == taken(take_longest(frame.reverse(), Longest(rows=11, seed=0)))


@pytest.mark.parametrize(("take", "config"), [(take_longest, Longest), (take_at_random, Random)])
def test_validation_and_dropped_rows_are_never_taken(take, config):
    frame = answering(
        "the longest", "longer", "long", "s", split=["validation", "train", "aside", "train"]
    ).with_columns(drop_reason=pl.Series([None, None, None, "somebody: said so"], dtype=pl.String))
    choice = STEPS[take.name](frame, config(rows=10))
    assert taken(choice) == {"r1"} and choice.height == 1


@pytest.mark.parametrize("name", ["longest", "random"])
def test_a_choice_has_the_table_of_choices_even_from_nothing(name):
    step = STEPS[name]
    for frame in (answering(), answering("a", "b")):
        assert conform(step(frame, step.config()), CHOICE).schema.equals(CHOICE)


def test_a_random_choice_is_by_the_draw_of_its_seed():
    frame = answering(*["a"] * 50)
    found = [taken(take_at_random(frame, Random(rows=10, seed=seed))) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert [len(ids) for ids in found] == [10, 10, 10]
    assert set(take_at_random(frame, Random())["weight"]) == {1 / 50}


def test_the_paper_took_a_thousand():
    assert Longest().rows == 1000
