import polars as pl
import pytest

from curation.language import Language, LanguageFilter
from curation.step import StepError, find_step
from tests.rows import rows

SAID = [
    ("What did they say about it?", "They said that it would rain all day long."),
    ("Was haben sie gesagt?", "Sie sagten, dass es den ganzen Tag regnen werde."),
    ("Qu'est-ce qu'ils ont dit ?", "Ils ont dit qu'il pleuvrait toute la journée."),
    ("2 + 2?", "4"),
    ("What is “rain” in German?", "Der Regen, und zwar der, der vom Himmel fällt."),
]


def told(**settings):
    return find_step("language")(rows(*SAID), Language(**settings))


def test_the_language_of_a_row_is_told_and_what_is_too_short_is_not_judged():
    out = told()
    assert out["language_code"].to_list()[:4] == ["en", "de", "fr", None]
    assert out["language_probability"].to_list()[3] is None
    assert out["language_probability"].drop_nulls().is_between(0.9, 1).sum() >= 3


def test_the_response_alone_can_be_asked_about():
    assert told(of="response")["language_code"][4] == "de"


def test_what_is_surely_in_another_language_goes_and_says_so():
    out = find_step("language-filter")(told(), LanguageFilter())["drop_reason"]
    assert out[0] is None and out[3] is None
    assert out[1] == "language-filter: de (1.0) is none of en" and out[2].startswith("language-filter: fr (")
    out = find_step("language-filter")(told(), LanguageFilter(keep="en de fr"))
    assert out["drop_reason"].null_count() == 5
    doubtful = told().with_columns(language_probability=pl.lit(0.4))
    assert find_step("language-filter")(doubtful, LanguageFilter())["drop_reason"].null_count() == 5


def test_languages_that_it_can_be():
    assert set(told(among="de nl")["language_code"].drop_nulls()) <= {"de", "nl"}
    with pytest.raises(StepError, match="there is no language 'klingon'"):
        told(among="en klingon")
