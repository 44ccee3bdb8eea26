import json
import socket
import sys

import polars as pl
import pytest

from curation import private
from curation.privacy import PrivacyDrop, PrivacyFind, PrivacyMask
from curation.step import StepError, find_step
from storage.schema import message
from tests.rows import rows

KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nAAAA\n-----END RSA PRIVATE KEY-----"
GITHUB = "ghp_" + "aB3" * 12
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
AWS = "AKIA" + "IOSFODNN7EXAMPLE"


def found(*texts, **settings):
    out = find_step("privacy-find")(rows(*[("q", t) for t in texts]), PrivacyFind(**settings))
    return [[(f["kind"], f["text"]) for f in fs] for fs in out["privacy_found"].to_list()]


@pytest.mark.parametrize(
    ("text", "kind", "what"),
    [
        ("Write to jane.doe@example.com, please.", "EMAIL_ADDRESS", "jane.doe@example.com"),
        ("Ring +1 415-555-0132 at noon", "PHONE_NUMBER", "+1 415-555-0132"),
        ("Pay with 4111 1111 1111 1111.", "CREDIT_CARD", "4111 1111 1111 1111"),
        ("To DE89 3704 0044 0532 0130 00, soon", "IBAN_CODE", "DE89 3704 0044 0532 0130 00"),
        ("The server 192.168.1.14 is down", "IP_ADDRESS", "192.168.1.14"),
        ("Its card has 00:1B:44:11:3A:B7 on it", "MAC_ADDRESS", "00:1B:44:11:3A:B7"),
        ("Send it to 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa now", "CRYPTO", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"),
        (f"here:\n{KEY}\nkeep it", "PRIVATE_KEY", KEY),
        (f"use {GITHUB}, it works", "GITHUB_TOKEN", GITHUB),
        (f"Authorization: Bearer {JWT}", "JSON_WEB_TOKEN", JWT),
        (f"key {AWS}", "AWS_ACCESS_KEY", AWS),
        ("https://jane:swordfish99@example.com/x", "BASIC_AUTH_CREDENTIALS", "swordfish99"),
    ],
)
def test_it_is_found_whole(text, kind, what):
    assert (kind, what) in found(text)[0]


def test_what_is_not_private_is_not_found():
    said = [
        "What is 4111 1111 1111 1112?",
        "In 2024 I ate 12 eggs at 7:30.",
        "std::vector<int> x; a::b()",
        "",
        "@here v1.2.3",
    ]
    said += ["def f(x):\n    return x[1:2]", "The password is a secret", "password = 'hunter2isbad'"]
    assert found(*said) == [[]] * len(said)


def test_guesses_are_asked_for():
    text = "password = 'hunter2isbad'"
    assert ("SECRET_KEYWORD", "hunter2isbad") in found(text, guesses=True)[0]


def test_one_sort_and_some_kinds_can_be_asked_for():
    text = f"jane@example.com {AWS} 192.168.1.14"
    assert {k for k, _ in found(text, look_for="keys")[0]} == {"AWS_ACCESS_KEY"}
    assert {k for k, _ in found(text, look_for="people", kinds="IP_ADDRESS")[0]} == {"IP_ADDRESS"}
    with pytest.raises(StepError, match="there is no kind 'NAME'"):
        found(text, kinds="NAME")


def test_nothing_is_fetched_for_it(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("it went to the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert found("jane@example.co.uk")[0] == [("EMAIL_ADDRESS", "jane@example.co.uk")]


@pytest.mark.parametrize(
    ("library", "of"), [("presidio_analyzer", "people"), ("detect_secrets.core.plugins.util", "keys")]
)
def test_a_library_that_is_not_there_is_named_with_the_remedy(monkeypatch, library, of):
    for known in (private._recogniser, private._detectors):
        known.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(StepError, match=r"is not installed; `pip install 'thresher\[privacy\]'`"):
        found("jane@example.com", look_for=of)


def scored(frame):
    return find_step("privacy-find")(frame, PrivacyFind())


def test_rows_with_something_private_go_and_say_what():
    frame = scored(rows(("q", "jane@example.com"), ("q", "nothing"), ("192.168.1.14", f"{AWS} jane@example.com")))
    drop = find_step("privacy-drop")
    assert drop(frame, PrivacyDrop())["drop_reason"].to_list() == [
        "privacy-drop: EMAIL_ADDRESS", None, "privacy-drop: AWS_ACCESS_KEY, EMAIL_ADDRESS, IP_ADDRESS"
    ]  # fmt: skip
    assert drop(frame, PrivacyDrop(kinds="IP_ADDRESS"))["drop_reason"].to_list() == [
        None,
        None,
        "privacy-drop: IP_ADDRESS",
    ]


def test_a_kind_that_nothing_finds_is_refused_with_those_that_there_are():
    frame = scored(rows(("q", f"{AWS} jane@example.com")))
    with pytest.raises(StepError, match=r"privacy-drop: there is no kind 'EMAIL'; there are .*AWS_ACCESS_KEY.* US_SSN"):
        find_step("privacy-drop")(frame, PrivacyDrop(kinds="AWS_ACCESS_KEY EMAIL"))
    known = "AWS_ACCESS_KEY SECRET_KEYWORD PRIVATE_KEY"
    (why,) = find_step("privacy-drop")(frame, PrivacyDrop(kinds=known))["drop_reason"]
    assert why == "privacy-drop: AWS_ACCESS_KEY"


def test_a_masked_row_is_a_new_row_with_a_parent_and_nothing_is_written_over():
    frame = scored(rows(("Who is jane@example.com?", f"jane@example.com has {AWS}"), ("q", "a"), split=["train"] * 2))
    out = find_step("privacy-mask")(frame, PrivacyMask())
    assert out.height == 3 and out.head(2).drop("drop_reason").equals(frame.drop("drop_reason"), null_equal=True)
    new = out.row(2, named=True)
    assert [m["content"] for m in new["messages"]] == [
        "Who is <EMAIL_ADDRESS>?",
        "<EMAIL_ADDRESS> has <AWS_ACCESS_KEY>",
    ]
    assert (new["parent_id"], new["method"], new["split"], new["drop_reason"]) == ("r0", "privacy-mask", "train", None)
    assert out["drop_reason"].to_list()[:2] == [f"privacy-mask: replaced by {new['id']}", None]
    again = find_step("privacy-mask")(out, PrivacyMask())
    assert again.height == 3, "there is nothing left to mask"
    assert scored(out.slice(2))["privacy_kinds"].to_list() == [None], "and nothing left to find"


def test_a_call_of_tools_stays_json():
    calls = json.dumps([{"function": {"name": "ring", "arguments": {"to": 14155550132, "cc": ["jane@example.com"]}}}])
    frame = rows(("q", "a")).with_columns(
        messages=pl.Series(
            [[message("user", "Ring +14155550132"), message("assistant", None, calls)]], dtype=rows().schema["messages"]
        )
    )
    frame = frame.with_columns(
        privacy_found=pl.Series(
            [[{"kind": "PHONE_NUMBER", "text": "14155550132"}, {"kind": "EMAIL_ADDRESS", "text": "jane@example.com"}]]
        )
    )
    (new,) = find_step("privacy-mask")(frame, PrivacyMask())["messages"].to_list()[1:]
    said = json.loads(new[1]["tool_calls"])[0]["function"]["arguments"]
    assert said == {"to": "<PHONE_NUMBER>", "cc": ["<EMAIL_ADDRESS>"]} and new[1]["content"] is None
    assert new[0]["content"] == "Ring +<PHONE_NUMBER>"


def test_what_is_part_of_a_longer_word_stays_unless_it_stands_nowhere_else():
    def masked(text, what):
        frame = rows(("q", text)).with_columns(privacy_found=pl.Series([[{"kind": "IP_ADDRESS", "text": what}]]))
        return find_step("privacy-mask")(frame, PrivacyMask())["messages"].to_list()[1][1]["content"]

    assert masked("1.1.1.1 and 11.1.1.12", "1.1.1.1") == "<IP_ADDRESS> and 11.1.1.12"
    assert masked("x1.1.1.1x", "1.1.1.1") == "x<IP_ADDRESS>x"
    assert masked("1.1.1.1 又写信给1.1.1.1吧", "1.1.1.1") == "<IP_ADDRESS> 又写信给<IP_ADDRESS>吧"


def test_what_is_said_beside_the_content_is_looked_at_and_masked_too():
    thought = message("assistant", "Done.", reasoning_content="jane@example.com asked")
    frame = rows(("q", "a")).with_columns(
        messages=pl.Series([[message("user", "q"), thought]], dtype=rows().schema["messages"])
    )
    found = scored(frame)
    assert found["privacy_kinds"].to_list() == ["EMAIL_ADDRESS"]
    new = find_step("privacy-mask")(found, PrivacyMask())["messages"].to_list()[1][1]
    assert new["reasoning_content"] == "<EMAIL_ADDRESS> asked" and new["content"] == "Done."
