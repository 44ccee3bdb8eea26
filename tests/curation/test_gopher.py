import polars as pl
import pytest

from curation.gopher import MOST_REPEATED, GopherQuality, GopherRepetition, repetition
from curation.step import find_step
from tests.rows import rows

FIFTY = " ".join(f"word{i}" for i in range(50))


def shares(*texts):
    return repetition(pl.DataFrame({"text": list(texts)}, schema={"text": pl.String}))


def test_lines_and_paragraphs_that_come_again():
    """Of the lines x, y, x, long, x two come again, 2 of 5, with 2 of 8 characters; the paragraphs are the lines."""
    (said,) = shares("x\n\ny\n\nx\n \n long\n\nx").to_dicts()
    assert said["gopher_repeated_lines"] == said["gopher_repeated_paragraphs"] == 2 / 5
    assert said["gopher_repeated_line_characters"] == said["gopher_repeated_paragraph_characters"] == 2 / 8


def test_a_paragraph_of_lines_is_one_paragraph():
    (said,) = shares("a\nb\n\na\nb\n\na\nc").to_dicts()
    assert said["gopher_repeated_paragraphs"] == 1 / 3 and said["gopher_repeated_lines"] == 3 / 6


def test_the_run_that_comes_most_often_counts_with_all_its_words_once():
    """ab cd comes three times: 12 of 15 characters, though the runs overlap with those of cd ab."""
    (said,) = shares("ab cd ab cd ab cd xyz").to_dicts()
    assert said["gopher_top_2_gram"] == 12 / 15
    assert said["gopher_top_3_gram"] == 10 / 15, "ab cd ab comes twice, over five words"
    (said,) = shares("a b c d").to_dicts()
    assert said["gopher_top_2_gram"] == 0, "what comes once is no repetition"


def test_of_runs_of_five_words_and_more_each_that_comes_again_counts():
    """one two three four five comes again: 19 of its 19 characters, in 41 + 19."""
    text = "one two three four five six seven eight one two three four five"
    (said,) = shares(text).to_dicts()
    size = len(text.replace(" ", ""))
    assert said["gopher_repeated_5_grams"] == 19 / size and said["gopher_repeated_6_grams"] == 0


def test_runs_do_not_reach_from_one_text_into_another():
    five = "one two three four five"
    alone = shares(five).row(0)
    assert shares(five, five, "", five).rows() == [alone, alone, shares("").row(0), alone]
    assert alone[:-1] == (0.0,) * len(MOST_REPEATED)
    apart = shares("a b c d e a", "b c d e z")
    assert apart.select(pl.exclude("words")).sum().row(0) == (0.0,) * len(MOST_REPEATED)


def test_many_texts_are_judged_as_each_alone(monkeypatch):
    monkeypatch.setattr("curation.gopher._AT_ONCE", 3)
    texts = [" ".join(f"w{i % k}" for i in range(60)) for k in range(1, 12)]
    step, config = find_step("gopher-repetition"), GopherRepetition()
    whole = step(rows(*[("q", t) for t in texts]), config)
    for n, text in enumerate(texts):
        assert step(rows(("q", text)), config)["drop_reason"][0] == whole["drop_reason"][n]
    assert whole["drop_reason"].null_count() == 0, "sixty words of eleven kinds repeat themselves"


def test_every_number_of_the_table_drops_what_is_over_it():
    assert list(MOST_REPEATED.values()) == [0.3, 0.3, 0.2, 0.2, 0.2, 0.18, 0.16, 0.15, 0.14, 0.13, 0.12, 0.11, 0.1]
    step = find_step("gopher-repetition")
    said = {"lines": f"{FIFTY}\nx\nx\nx", "10 grams": f"{FIFTY} {' '.join(FIFTY.split()[:10])}", "nothing": FIFTY}
    out = step(rows(*[("q", t) for t in said.values()]), GopherRepetition())["drop_reason"].to_list()
    assert out[0] == "gopher-repetition: repeated lines: 0.5 of it, over 0.3"
    assert out[1] == "gopher-repetition: repeated 6 grams: 0.15 of it, over 0.14" and out[2] is None


def test_a_short_text_is_not_judged_for_repetition():
    step, frame = find_step("gopher-repetition"), rows(("q", "no no no no no"))
    assert step(frame, GopherRepetition())["drop_reason"][0] is None
    assert step(frame, GopherRepetition(least_words=1))["drop_reason"][0] is not None


GOOD = "the cat that sat on a mat " + FIFTY


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param(GOOD, None, id="good"),
        pytest.param("the cat that sat", "4 words are under 50", id="short"),
        pytest.param("the that " + "ab " * 60, "words of 2.05 letters, not 3 to 10", id="short-words"),
        pytest.param("the that " + "abcdefghijklm " * 60, "words of 12.69 letters", id="long-words"),
        pytest.param(GOOD + " #" * 7, "0.11 # a word are over 0.1", id="hashes"),
        pytest.param(GOOD + " ... …" * 3 + " …", "0.11 ellipses a word are over 0.1", id="ellipses"),
        pytest.param(GOOD + " # # # # ... … #", None, id="each-symbol-alone"),
        pytest.param(
            "\n".join(f"- the that {w}" for w in FIFTY.split()), "1.0 of lines begin with a bullet", id="bullets"
        ),
        pytest.param(
            "\n".join(["the cat that sat there for long..."] * 4 + ["because others wanted that " * 3] * 3),
            "0.57 of lines end",
            id="dots",
        ),
        pytest.param(GOOD + " 1234" * 30, "0.66 of words have a letter", id="numbers"),
        pytest.param(FIFTY, "0 kinds of stop words are under 2", id="stop-words"),
        pytest.param("", "0 words are under 50", id="empty"),
    ],
)
def test_each_rule_of_quality_names_what_it_saw(text, why):
    (said,) = find_step("gopher-quality")(rows(("q", text)), GopherQuality())["drop_reason"]
    assert (said is None) if why is None else said.startswith(f"gopher-quality: {why}"), said


def test_other_bounds_and_the_whole_conversation():
    step, frame = find_step("gopher-quality"), rows((GOOD, "the cat that sat"))
    assert step(frame, GopherQuality())["drop_reason"][0] is not None
    assert step(frame, GopherQuality(of="conversation"))["drop_reason"][0] is None
    assert step(frame, GopherQuality(least_words=4))["drop_reason"][0] is None
    assert step(frame, GopherQuality(least_words=1, most_words=3))["drop_reason"][0].endswith("4 words are over 3")
