"""What a server may do to a client, done by a small real one; vLLM's own server is in the conformance suite."""

import json
import logging
import sqlite3
import time

import pytest

from curation.step import Failed
from storage.schema import message
from synthesis.http import Limit
from synthesis.openai_engine import EngineError
from tests.synthesis.small_server import answer, ask, engine


def test_each_row_says_what_a_server_did_to_it(serving):
    said = {
        "html": (200, b"<html>a proxy's page</html>", "text/html"),
        "half": (200, answer("half")[:40], "application/json"),
        "short": (200, answer("short"), "application/json", "short"),
        "empty": (200, b"{}", "application/json"),
        "busy": (503, b"overloaded", "text/plain"),
        "refused": (400, b'{"error": {"message": "the prompt is too long"}}', "application/json"),
    }

    def manner(text, times):
        if text == "hangs":
            time.sleep(3)
        return said.get(text)

    texts = ["fine", *said, "hangs", "half \ud800", "fine too"]
    found = engine(serving(manner), timeout=1).generate(ask(*texts), max_tokens=5)
    told = {t: c for t, [c] in zip(texts, found, strict=True)}
    assert told["fine"].text == "FINE" and told["fine too"].text == "FINE TOO"
    assert "no JSON" in told["html"].error and "proxy's page" in told["html"].error
    assert "no JSON" in told["half"].error and "3 times" in told["half"].error
    assert "connection broke" in told["short"].error
    assert "cannot be read" in told["empty"].error
    assert "not ready (503): overloaded, 3 times" in told["busy"].error
    assert told["refused"].error == "the server refuses (400): the prompt is too long"
    assert "no answer within 1 s" in told["hangs"].error
    assert "surrogate" in told["half \ud800"].error


def test_what_goes_wrong_where_an_answer_is_kept_comes_out_as_itself(serving):
    def keep(i, answers):
        raise sqlite3.OperationalError("database or disk is full")

    server = serving()
    with pytest.raises(sqlite3.OperationalError, match="disk is full"):
        engine(server).generate(ask(*"abcdefgh"), max_tokens=5, done=keep)
    assert [c.text for [c] in engine(server).generate(ask("a"), max_tokens=5)] == ["A"]


def test_what_is_refused_for_now_is_asked_again(serving):
    server = serving(lambda text, times: (429, b"slow down", "text/plain") if times < 3 else None)
    [[found]] = engine(server).generate(ask("a"), max_tokens=5)
    assert found.text == "A" and server.seen == {"a": 3}


def test_many_are_in_flight_and_fewer_where_the_server_says_429(serving):
    patient = serving(lambda text, times: time.sleep(0.3))
    engine(patient, at_once=24).generate(ask(*map(str, range(60))), max_tokens=5)
    assert 6 <= patient.most <= 24

    strict = serving(lambda text, times: None)

    def manner(text, times):
        time.sleep(0.02)
        return (429, b"", "text/plain") if strict.flying > 3 else None

    strict.manner = manner
    found = engine(strict, at_once=24, attempts=30).generate(ask(*map(str, range(60))), max_tokens=5)
    assert [c.text for [c] in found] == [str(i) for i in range(60)]
    assert strict.most <= 12


def test_fewer_are_asked_where_answers_take_twice_as_long_as_they_did():
    limit = Limit(64)
    for _ in range(200):
        limit.answered(0.1, flying=8)
    assert limit.size == 64
    for _ in range(5):
        limit.shrunk = 1.0  # long ago
        limit.answered(1.0, flying=8)
    assert limit.size < 64 / 2
    slower = limit.size
    for _ in range(100):
        limit.answered(0.1, flying=8)
    assert slower < limit.size < slower + 10  # by one a round trip, once it has said no


def test_a_server_that_takes_longer_for_more_at_once_is_only_busy():
    limit, grown = Limit(64), []
    while limit.size < 64 and len(grown) < 100:
        limit.answered(0.1 * limit.size, flying=int(limit.size))
        grown.append(limit.size)
    assert limit.size == 64 and len(grown) < 64  # doubled each round trip: one by one it takes 2,000


def test_fewer_in_flight_are_not_taken_for_a_slower_server():
    limit = Limit(64)
    for _ in range(300):
        limit.answered(10.0, flying=64)
    for _ in range(6):  # a burst of refusals
        limit.shrunk = 1.0
        limit.refused()
    least = limit.size
    for _ in range(300):  # as quick as ever
        limit.shrunk = 1.0
        limit.answered(10.0, flying=int(limit.size))
        assert limit.size >= least
    assert limit.size > 2 * least


def test_a_run_stops_at_its_budget_with_what_it_has(serving):
    server, heard = serving(), {}
    asked = engine(server, at_once=1, price_in=100_000, price_out=1_000_000, budget=9.0)  # 3 a request
    with pytest.raises(EngineError, match=r"budget of 9 is spent .* raise `budget`"):
        asked.generate(ask(*"abcdef"), max_tokens=5, done=lambda i, answers: heard.update({i: answers[0].text}))
    assert heard == {0: "A", 1: "B", 2: "C"}
    assert asked.used["cost"] == pytest.approx(9.0)


def test_a_server_that_nobody_can_use_stops_the_run_by_name(serving, monkeypatch):
    monkeypatch.setenv("A_KEY", "sk-very-secret")
    for status, match in ((401, "refuses the key"), (404, r"not there \(404\): no model … here")):
        server = serving(lambda text, times, s=status: (s, b"no model sk-very-secret here", "text/plain"))
        with pytest.raises(EngineError, match=match):
            engine(server, key="A_KEY").generate(ask(*map(str, range(50))), max_tokens=5)
        assert sum(server.seen.values()) < 50
    gone = serving()
    gone.http.shutdown()
    gone.http.server_close()
    with pytest.raises(EngineError, match="there is no server at"):
        engine(gone).generate(ask("a"), max_tokens=5)


def test_the_key_comes_from_the_environment_and_is_told_nobody(serving, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("A_KEY", "sk-very-secret")
    server = serving(lambda text, times: (400, b'{"error": "key sk-very-secret is bad"}', "application/json"))
    asking = engine(server, key="A_KEY")
    [[found]] = asking.generate(ask("a"), max_tokens=5)
    assert server.bodies[0][1] == "Bearer sk-very-secret"
    assert "very-secret" not in found.error + repr(vars(asking)) + repr(asking.server) + asking.identity + caplog.text


def test_what_is_sampled_and_what_it_took_is_told(serving):
    server = serving(lambda text, times: (200, answer(text, "length"), "application/json"))
    asking = engine(server)
    [[one]] = asking.generate(ask("a"), max_tokens=7, temperature=0.5, top_p=0.9, seed=[11], stop=["."])
    body = server.bodies[0][0]
    assert {k: body[k] for k in ("max_tokens", "temperature", "top_p", "n", "seed", "stop")} == {
        "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "n": 1, "seed": 11, "stop": ["."],
    }  # fmt: skip
    assert one.truncated and one.tokens == 2
    assert {k: asking.used[k] for k in ("prompt_tokens", "generated_tokens", "cached_tokens", "requests")} == {
        "prompt_tokens": 10, "generated_tokens": 2, "cached_tokens": 4, "requests": 1,
    }  # fmt: skip


def test_letters_are_read_from_the_likeliest_tokens(serving):
    tops = [{"token": t, "logprob": p} for t, p in (("A", -0.5), (" A", -2.0), ("B", -3.0))]
    choice = {"index": 0, "message": {"content": "A"}, "finish_reason": "length"}
    told = choice | {"logprobs": {"content": [{"top_logprobs": tops}]}}

    def manner(text, times):
        said = choice if text == "mute" else told
        return 200, json.dumps({"choices": [said]}).encode(), "application/json"

    [found, mute] = engine(serving(manner)).choose(ask("a", "mute"), ["A", "B", "C"])
    assert found == pytest.approx([0.6065 + 0.1353, 0.0498, 0.0], abs=1e-3)
    assert isinstance(mute, Failed) and "no log-probabilities" in mute.error


def test_what_a_server_cannot_do_is_said_with_the_remedy(serving):
    asking = engine(serving())
    with pytest.raises(EngineError, match="tokenizer"):
        asking.logprobs([[*ask("a")[0], message("assistant", "b")]])
    with pytest.raises(EngineError, match="tokenizer"):
        asking.count_tokens(["a"])
