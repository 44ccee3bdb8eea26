"""Spoilt rows are as many as asked for, really wrong, and look like any other row."""

import difflib
from collections import Counter

import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from pydantic import ValidationError

from curation.noise import KINDS, Noise, near_copy, number, span, spoil, truncation
from curation.step import StepError
from storage.schema import ROW, instruction, message, response, row_id
from tests.rows import rows

UNIT = st.floats(0.001, 0.999)


def with_ids(frame: pl.DataFrame) -> pl.DataFrame:
    ids = [row_id(m, s) for m, s in zip(frame["messages"], frame["source"], strict=True)]
    return frame.with_columns(id=pl.Series(ids))


def clean(n: int) -> pl.DataFrame:
    """Every kind of noise is possible for each of these rows."""
    return with_ids(rows(*[(f"How much is seven times {i}? Say why.", f"It is {7 * i}, of course.") for i in range(n)]))


def joined(frame: pl.DataFrame, spoilt) -> list[dict]:
    """Each spoilt row with its kind and the clean row it was made of, as `was_…`."""
    was = frame.rename({c: f"was_{c}" for c in frame.columns})
    found = spoilt.flags.filter("spoilt").join(spoilt.rows, on="id").join(was, left_on="made_of", right_on="was_id")
    return found.to_dicts()


@limits(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    n=st.integers(20, 70),
    rate=st.floats(0.05, 0.9),
    kinds=st.sets(st.sampled_from(KINDS), min_size=1),
    seed=st.integers(0, 5),
)
def test_as_many_rows_as_asked_for_are_wrong_and_no_other_changes(n, rate, kinds, seed):
    frame, noise = clean(n), Noise(rate=rate, kinds=tuple(kinds), seed=seed)
    spoilt = spoil(frame, noise)
    made = joined(frame, spoilt)
    assert len(made) == round(rate * n)
    copies = sum(r["kind"] == "near-duplicate" for r in made)
    assert spoilt.rows.height == n + copies and spoilt.flags["id"].equals(spoilt.rows["id"])
    truth = {instruction(m): response(m) for m in frame["messages"]}
    for row in made:
        assert row["kind"] in kinds
        assert (
            response(row["messages"]).casefold().strip(" .") != truth[instruction(row["was_messages"])].casefold()[:-1]
        )
    right = spoilt.flags.filter(~pl.col("spoilt"))
    assert right["kind"].null_count() == right.height and right["made_of"].equals(right["id"])
    assert spoilt.rows.join(right, on="id", how="semi").equals(frame.join(right, on="id", how="semi").sort("id"))
    # In other order, the same.
    again = spoil(frame.sample(fraction=1.0, shuffle=True, seed=seed), noise)
    assert again.rows.equals(spoilt.rows) and again.flags.equals(spoilt.flags)


def test_a_spoilt_row_has_no_mark_that_a_step_could_see():
    frame = clean(60).with_columns(
        method=pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("llm2llm")),
        parent_id=pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("p")),
        round=(pl.int_range(pl.len()) % 3).cast(pl.Int32),
        clear_confidence=0.5,
    )
    spoilt = spoil(frame, Noise(rate=0.5))
    assert spoilt.rows.columns == ROW.names  # scores of the clean rows stay behind
    assert spoilt.rows["id"].is_sorted() and spoilt.rows["id"].n_unique() == spoilt.rows.height
    for row in joined(frame, spoilt):
        assert {c: row[c] for c in ("source", "method", "parent_id", "round", "drop_reason")} == {
            c: row[f"was_{c}"] for c in ("source", "method", "parent_id", "round", "drop_reason")
        }
        assert row["id"] == row_id(row["messages"], row["source"], row["parent_id"])
    last = spoilt.flags["spoilt"].to_list()[-30:]
    assert any(last) and not all(last)


def test_equal_rows_spoilt_alike_get_the_ids_of_copies():
    said = [message("user", "ask"), message("assistant", "one two")]
    copies = rows(*[("ask", "one two")] * 10).with_columns(
        id=pl.Series([row_id(said, "test", None, i) for i in range(10)])
    )
    frame = pl.concat([copies, clean(10)])
    made = spoil(frame, Noise(rate=0.9, kinds=("truncation",)))
    assert made.rows["id"].n_unique() == made.rows.height == 20
    cut = [message("user", "ask"), message("assistant", "one")]
    assert {row_id(cut, "test", None, i) for i in range(8)} <= set(made.rows["id"])
    again = spoil(frame.reverse(), Noise(rate=0.9, kinds=("truncation",)))
    assert again.rows.equals(made.rows) and again.flags.equals(made.flags)


def test_more_noise_spoils_the_same_rows_and_others():
    few, many = (spoil(clean(80), Noise(rate=r)).flags.filter("spoilt") for r in (0.2, 0.4))
    assert set(few.select("id", "kind").iter_rows()) < set(many.select("id", "kind").iter_rows())
    other = spoil(clean(80), Noise(rate=0.2, seed=1)).flags.filter("spoilt")
    assert set(other["made_of"]) != set(few["made_of"])


def test_every_kind_comes_about_as_often():
    kinds = Counter(spoil(clean(500), Noise(rate=0.8)).flags["kind"].drop_nulls())
    assert set(kinds) == set(KINDS) and min(kinds.values()) > 50


def test_a_swap_takes_an_answer_of_the_same_source_as_often_as_it_stands_there():
    pairs = [(f"ask {i}", ["one", "two", "three", "three"][i % 4]) for i in range(400)]
    frame = rows(*pairs).with_columns(
        source=pl.when(pl.int_range(pl.len()) < 200).then(pl.lit("a")).otherwise("source")
    )
    frame = with_ids(
        frame.with_columns(
            messages=pl.Series(
                [
                    [message("user", q), message("assistant", a if i < 200 else f"{a}!!")]
                    for i, (q, a) in enumerate(pairs)
                ],
                dtype=frame.schema["messages"],
            )
        )
    )
    given = Counter()
    for row in joined(frame, spoil(frame, Noise(rate=0.9, kinds=("swap",)))):
        assert response(row["messages"]).endswith("!!") == response(row["was_messages"]).endswith("!!")
        if response(row["was_messages"]).startswith("one"):
            given[response(row["messages"]).strip("!")] += 1
    assert set(given) == {"two", "three"} and 1.3 < given["three"] / given["two"] < 3.2


def test_a_swap_gives_no_answer_that_the_data_gives_to_the_same_prompt():
    pairs = [("Tell a joke.", f"Joke {i}.") for i in range(20)] + [(f"Name {i}.", f"This is {i}.") for i in range(20)]
    frame = with_ids(rows(*pairs))
    for row in joined(frame, spoil(frame, Noise(rate=0.9, kinds=("swap", "near-duplicate")))):
        if "joke" in instruction(row["messages"]).lower():
            assert response(row["messages"]).startswith("This")


def test_a_row_that_calls_a_tool_is_swapped_whole():
    frame = clean(40)
    calls = [
        [message("user", f"q{i}"), message("assistant", "I call 5." if i % 2 else "", f'[{{"n": {i}}}]')]
        for i in range(20)
    ]
    told = calls + frame["messages"].to_list()[20:]
    frame = with_ids(frame.with_columns(messages=pl.Series(told, dtype=frame.schema["messages"])))
    made = joined(frame, spoil(frame, Noise(rate=0.8)))
    called = [r for r in made if r["was_messages"][-1]["tool_calls"]]
    assert called and {r["kind"] for r in called} <= {"swap", "near-duplicate"}
    answers = {(m[-1]["content"], m[-1]["tool_calls"]) for m in told}
    assert all((r["messages"][-1]["content"], r["messages"][-1]["tool_calls"]) in answers for r in called)


def test_near_duplicates_come_beside_the_rows_that_they_copy():
    frame = clean(50)
    spoilt = spoil(frame, Noise(rate=0.4, kinds=("near-duplicate",)))
    assert spoilt.rows.height == 70 and set(frame["id"]) < set(spoilt.rows["id"])
    for row in joined(frame, spoilt):
        asked, was = instruction(row["messages"]), instruction(row["was_messages"])
        assert asked != was and difflib.SequenceMatcher(None, asked, was).ratio() > 0.9


def test_worked_examples():
    assert span("The sky is blue", "Because light", 0.5) == ["sky is", "The sky", "is blue"]
    assert truncation("", "Because light", 0.5) == ["Because", "Becaus"]
    assert truncation("", "a b c d e f g h i j", 0.5)[0] == "a b c d e"
    assert number("", "In 1805.", 0.001) == ["In 2805."] and number("", "In 1805.", 0.999) == ["In 1809."]
    assert near_copy("Pick one.\nPlay some jazz", 0.1) == "Pick one.\nPaly some jazz"
    assert near_copy("Pick one.\nPlay some jazz", 0.5) == "Pick one.\nplay some jazz"
    assert near_copy("Pick one.\nPlay some jazz", 0.9) == "Pick one.\nPlay some jazz."


def test_a_number_changes_in_one_digit_and_an_items_number_is_none():
    assert number("", "no digits", 0.5) == []
    assert number("", "1. first\n2) second", 0.5) == []
    (found,) = number("", "1. It costs 30.", 0.001)
    assert found != "1. It costs 30." and found.startswith("1. It costs ") and found.endswith("0.")


@given(answer=st.text(), u=UNIT)
def test_a_truncated_answer_is_a_beginning_of_it(answer, u):
    for found in truncation("", answer, u):
        assert found and len(found) < len(answer) and (answer.startswith(found) or answer.strip().startswith(found))


@given(prompt=st.text(), answer=st.text(), u=UNIT)
def test_a_span_is_words_of_the_prompt(prompt, answer, u):
    for found in span(prompt, answer, u):
        assert f" {found} " in f" {' '.join(prompt.split())} "
        assert len(found.split()) <= max(len(answer.split()), 1)


@given(answer=st.text("0123456789., abc\n-)"), u=UNIT)
def test_a_changed_number_differs_in_one_character(answer, u):
    for found in number("", answer, u):
        assert len(found) == len(answer)
        assert sum(a != b for a, b in zip(answer, found, strict=True)) == 1


@given(text=st.text(min_size=1), u=UNIT)
def test_a_near_copy_differs_in_its_last_line_alone(text, u):
    assume(text.strip())
    found = near_copy(text, u)
    assert found != text.rstrip()
    assert found.rpartition("\n")[0] == text.rstrip().rpartition("\n")[0]


@limits(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=10, max_size=30), st.integers(0, 9))
def test_any_text_can_be_spoilt_or_is_refused_in_one_line(pairs, seed):
    frame = rows(*pairs).with_columns(id=pl.Series([row_id([message("user", str(i))], "s") for i in range(len(pairs))]))
    try:
        spoilt = spoil(frame, Noise(rate=0.3, seed=seed))
    except StepError as refused:
        assert "\n" not in str(refused) and "lower --rate" in str(refused)
        return
    assert spoilt.flags["spoilt"].sum() == round(0.3 * len(pairs))


def test_what_cannot_be_spoilt_is_named_with_the_remedy():
    labels = with_ids(rows(*[(f"ask {i}", "abc"[i % 3]) for i in range(30)]))
    with pytest.raises(StepError, match=r"^0 of 30 rows can be spoilt by number, .*lower --rate or name more --kinds"):
        spoil(labels, Noise(kinds=("number",)))
    same = with_ids(rows(*[(f"ask {i}", "Yes" if i % 2 else "yes.") for i in range(30)]))
    with pytest.raises(StepError, match=r"^0 of 30 rows can be spoilt by swap, near-duplicate, .*name more --kinds"):
        spoil(same, Noise(kinds=("swap", "near-duplicate")))
    assert set(spoil(same, Noise()).flags["kind"].drop_nulls()) == {"span", "truncation"}
    with pytest.raises(StepError, match="spoils 0"):
        spoil(labels, Noise(rate=0.001))
    for wrong in ({"rate": 0.0}, {"rate": 1.0}, {"kinds": ("typo",)}, {"kinds": ()}):
        with pytest.raises(ValidationError):
            Noise(**wrong)


def test_kinds_in_another_order_are_the_same_setting():
    assert Noise(kinds=("number", "swap")) == Noise(kinds=("swap", "number"))
