import polars as pl
import pytest

from curation.duplicates import Duplicates, drop_duplicates
from curation.shingles import common_sentences, distinctive, normalised
from curation.step import StepError
from tests.rows import rows

LONG = "Please play the second movement of the last symphony that was recorded in the old opera house of Vienna"
WORDS = ["apple", "river", "stone", "cloud", "bread", "horse", "green", "paper", "music", "light"]


def reasons(*pairs: tuple[str, str], cfg: Duplicates = Duplicates(), **columns: list) -> dict[str, str]:  # noqa: B008  frozen
    out = drop_duplicates(rows(*pairs, **columns), cfg)
    return {id: why for id, why in out.select("id", "drop_reason").iter_rows() if why}


def test_an_exact_copy_names_the_row_that_was_kept():
    out = drop_duplicates(rows(("2+2?", "4"), ("Capital of Peru?", "Lima"), ("2+2?", "4")), Duplicates())
    assert out["drop_reason"].to_list() == [None, None, "duplicates: exact copy of r0"]
    assert out["duplicates_group"].to_list() == ["r0", None, "r0"]


def test_case_spacing_and_punctuation_make_no_other_row():
    assert reasons(("Capital of Peru?", "Lima"), ("capital  of “Peru”", "lima.")) == {
        "r1": "duplicates: exact copy of r0"
    }


@pytest.mark.parametrize("other", ["2-2", "2*2", "2.2", "22", "x==y", "x=y"])
def test_signs_that_mean_something_make_another_row(other):
    assert reasons(("2+2", "yes"), (other, "yes")) == {}


def test_a_near_copy_says_how_near():
    # 103 characters have 99 shingles of 5; " now" adds 4: 99 / 103 = 0.96
    assert reasons((LONG, "yes"), (LONG + " now", "yes")) == {"r1": "duplicates: near copy of r0 (Jaccard 0.96)"}
    assert reasons((LONG, "yes"), (LONG + " now", "yes"), cfg=Duplicates(jaccard=0.97)) == {}


def test_the_same_question_with_another_answer_is_no_copy():
    assert reasons((LONG, "yes"), (LONG, "no"), (LONG + " now", "perhaps")) == {}


def test_calling_a_tool_is_another_answer():
    frame = rows((LONG, ""), (LONG, ""))
    calls = [[{"role": "user", "content": LONG}, {"role": "assistant", "content": "", "tool_calls": c}] for c in "ab"]
    frame = frame.with_columns(pl.Series("messages", calls, dtype=frame.schema["messages"]))
    assert drop_duplicates(frame, Duplicates())["drop_reason"].null_count() == 2


def test_the_lowest_round_is_kept_and_then_the_lowest_id():
    pairs = [(LONG, "yes"), (LONG + " now", "yes"), (LONG, "yes")]
    rounds = pl.Series([1, 0, 1], dtype=pl.Int32)
    near = "duplicates: near copy of r1 (Jaccard 0.96)"
    assert reasons(*pairs, round=rounds) == {"r0": near, "r2": near}
    assert reasons(*pairs[::2], id=["b", "a"]) == {"b": "duplicates: exact copy of a"}


def test_every_copy_is_near_the_very_row_that_it_names():
    words = LONG.split()
    chain = [" ".join(words[n:]) for n in range(8)]  # each near the next, the last far from the first
    found = reasons(*[(text, "yes") for text in chain])
    sets = [set(text.lower()[i : i + 5] for i in range(len(text) - 4)) for text in chain]
    assert 0 < len(found) < 7
    for id, why in found.items():
        kept = why.split(" of ")[1].split()[0]
        a, b = sets[int(id[1:])], sets[int(kept[1:])]
        assert kept not in found
        assert f"(Jaccard {len(a & b) / len(a | b):.2f})" in why
        assert len(a & b) / len(a | b) >= 0.8


def test_the_order_of_the_rows_changes_nothing():
    frame = rows(*[(f"{LONG} {n // 3}" + " now" * (n % 3), "yes") for n in range(30)])
    one = drop_duplicates(frame, Duplicates())
    other = drop_duplicates(frame.reverse(), Duplicates()).reverse()
    assert one["drop_reason"].drop_nulls().len() > 5
    assert one.equals(other)


def test_an_instruction_that_all_rows_share_does_not_make_them_alike():
    requests = [f"{word} {n}" for n, word in enumerate(WORDS)]
    one_line = [(f"{LONG}: {request}", "yes") for request in requests]
    two_lines = [(f"{LONG}\n{request}", "yes") for request in requests]
    assert reasons(*one_line) == reasons(*two_lines) == {}
    copy = (f"{LONG}\nApple 0!", "yes")
    assert reasons(*two_lines, copy) == {"r10": "duplicates: exact copy of r0"}


def test_the_same_question_about_another_passage_is_no_copy():
    questions = [f"Who first wrote about the {topic}?" for topic in WORDS]
    pairs = [(f"{passage}\n{question}", "Homer") for passage in ("Text one.", "Text two.") for question in questions]
    assert reasons(*pairs) == {}


def test_a_pool_without_rows_stays_so():
    out = drop_duplicates(rows(), Duplicates())
    assert out.height == 0
    assert out.schema["duplicates_group"] == out.schema["drop_reason"] == pl.String


def test_a_text_of_punctuation_alone_is_compared_as_it_is():
    assert pl.select(normalised(pl.lit("?!"))).item() == "?!"


def test_what_stands_in_ten_prompts_is_left_out_and_told_apart():
    prompts = [f"Answer: {'Passage one.' if n < 10 else 'Passage two.'} {t}" for n, t in enumerate(WORDS * 2)]
    out = distinctive(pl.Series(prompts), common_sentences(pl.Series(prompts)))
    assert out["text"].to_list() == WORDS * 2
    assert out["template"].unique().sort().to_list() == ["answer\npassage one", "answer\npassage two"]


def test_the_best_row_of_a_group_is_kept_by_quality():
    pairs = [(LONG, "yes"), (LONG + " now", "yes"), (LONG, "yes"), (LONG + " now now", "yes")]
    found = reasons(*pairs, cfg=Duplicates(quality="good"), good=[0.1, 0.9, None, float("nan")])
    assert found == {
        "r0": "duplicates: near copy of r1 (Jaccard 0.96)",
        "r2": "duplicates: near copy of r1 (Jaccard 0.96)",
        "r3": "duplicates: near copy of r1 (Jaccard 0.96)",
    }
    with pytest.raises(StepError, match="'good', which the dataset lacks"):
        reasons(*pairs, cfg=Duplicates(quality="good"))
