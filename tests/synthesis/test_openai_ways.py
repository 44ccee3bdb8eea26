"""Servers that differ: by what they know, what they refuse, what they tell, and what they cost."""

import pytest

from curation.step import Completion
from storage.schema import message
from synthesis.openai_engine import EngineError
from tests.synthesis.small_server import ask, chat_answer, engine


def test_what_is_spent_is_kept_for_the_run_and_no_answer_without_its_tokens_goes_on(serving):
    server, sums = serving(), [4.0]  # a command before paid that much

    def ledger(cost):
        sums.append(sums[-1] + cost)
        return sums[-1]

    priced = {"at_once": 1, "price_in": 100_000, "price_out": 1_000_000, "budget": 9.0, "ledger": ledger}  # 3 a request
    with pytest.raises(EngineError, match="budget of 9 is spent"):
        engine(server, **priced).generate(ask(*"abcdef"), max_tokens=5)
    assert len(server.seen) == 2 and sums[-1] == pytest.approx(10.0)
    with pytest.raises(EngineError, match="budget of 9 is spent"):
        engine(server, **priced).generate(ask("g"), max_tokens=5)  # another engine, such as of the next command
    assert "g" not in server.seen

    mute, heard = serving(lambda text, times: chat_answer(text.upper())), []
    with pytest.raises(EngineError, match="does not say how many tokens"):
        engine(mute, **(priced | {"ledger": None})).generate(
            ask(*"ab"), max_tokens=5, done=lambda i, answers: heard.append(answers[0].text)
        )
    assert heard == ["A"] and len(mute.seen) == 1
    free = engine(mute, at_once=1).generate(ask(*"ab"), max_tokens=5)
    assert [c.text for [c] in free] == ["A", "B"]


def test_a_key_is_not_shown_however_it_is_spoilt_or_repeated(serving, monkeypatch):
    monkeypatch.setenv("A_KEY", " sk-very-secret\n")
    long = "x" * 190 + " sk-very-secret"
    said = {"cut": (400, long.encode(), "text/plain"), "odd": {"key": "sk-very-secret"}, "fine": None}
    server = serving(lambda text, times: said[text])
    found = engine(server, key="A_KEY").generate(ask(*said), max_tokens=5)
    assert server.bodies[0][1] == "Bearer sk-very-secret" and found[2][0].text == "FINE"
    assert "cannot be read" in found[1][0].error and not any("sk-" in (c.error or "") for [c] in found)
    for spoilt in ("sk-very\nsecret", "sk-very secret", "sk-véry"):
        monkeypatch.setenv("A_KEY", spoilt)
        with pytest.raises(EngineError, match="variable A_KEY holds no key") as told:
            engine(server, key="A_KEY")
        assert "sk-" not in str(told.value)


def test_a_server_that_knows_no_n_is_asked_for_each_sample_by_its_own_seed(serving):
    def manner(text, times):
        wanted = server.bodies[-1][0].get("n", 1)
        return chat_answer(
            *{"one": ["x"], "two": ["x", "y"][:wanted], "four": ["x"] * 4, "none": [], "odd": ["x", None, "z"]}[text]
        )

    server, heard = serving(manner), {}
    found = engine(server, at_once=1).generate(
        ask("one", "two", "four", "none", "odd"),
        max_tokens=5,
        n=3,
        temperature=1.0,
        seed=[10, 20, 30, 40, 50],
        done=lambda i, answers: heard.update({i: answers}),
    )
    asked = [(b["messages"][0]["content"], b["n"], b["seed"]) for b, _ in server.bodies]
    assert asked == [
        ("one", 3, 10), ("one", 1, 11), ("one", 1, 12), ("two", 3, 20), ("two", 1, 22), ("four", 3, 30),
        ("none", 3, 40), ("odd", 3, 50),
    ]  # fmt: skip
    assert [[c.text for c in row] for row in found] == [["x"] * 3, ["x", "y", "x"], ["x"] * 3, [""] * 3, ["x", "", "z"]]
    assert all(c.error == "the server gave no answer, and no error" for c in found[3])
    assert "gave no text" in found[4][1].error
    assert [heard[i] for i in range(5)] == found
    [greedy] = engine(server).generate(ask("four"), max_tokens=5, n=2)
    assert [c.text for c in greedy] == ["x", "x"] and "n" not in server.bodies[-1][0]


def test_calls_of_tools_are_sent_as_they_were_said_and_such_as_are_none_fail_alone(serving):
    def told(calls):
        return [message("user", "rain?"), message("assistant", "", calls), message("tool", "no", tool_call_id="1")]

    server = serving()
    fine, broken = engine(server).generate([told('{"name": "rain"}'), told("{")], max_tokens=5)
    assert fine[0].text == "NO" and "no JSON" in broken[0].error
    [(body, _)] = server.bodies
    assert body["messages"][1]["tool_calls"] == [{"type": "function", "function": {"name": "rain"}}]
    assert body["messages"][2]["tool_call_id"] == "1"


def test_one_of_the_choices_is_asked_for_as_json_and_held_to_it(serving):
    said = {"right": '{"answer": "5"}', "number": '{"answer": 5}', "bare": "5", "other": '{"answer": "6"}'}
    server = serving(lambda text, times: chat_answer(said[text]))
    found = engine(server).generate(ask(*said), max_tokens=3, choices=["5", "rate"])
    told = {t: c for t, [c] in zip(said, found, strict=True)}
    assert told["right"] == Completion("5")
    assert "none of the choices: 5" in told["number"].error and 'none of the choices: "6"' in told["other"].error
    assert "cannot be read" in told["bare"].error
    asked = server.bodies[0][0]["response_format"]["json_schema"]
    assert asked["strict"] and asked["schema"]["properties"]["answer"]["enum"] == ["5", "rate"]
    assert asked["schema"]["type"] == "object" and server.bodies[0][0]["max_tokens"] > 3 + 8


def test_a_model_that_thinks_is_asked_without_what_it_refuses_and_cut_at_a_stop_here(serving):
    server = serving(lambda text, times: chat_answer("one. two"))
    [[one]] = engine(server, reasoning_tokens=1000).generate(ask("a"), max_tokens=7, stop=["."])
    body = server.bodies[0][0]
    assert body["max_completion_tokens"] == 1007 and one.text == "one"
    assert not {"max_tokens", "temperature", "top_p", "stop"} & set(body)


@pytest.mark.parametrize(
    "said",
    [
        lambda text, times: chat_answer("A"),
        lambda text, times: (400, b'{"error": {"message": "logprobs are not supported with this model"}}', "a/json"),
        lambda text, times: (403, b'{"error": {"message": "You are not allowed to request logprobs"}}', "a/json"),
    ],
)
def test_a_server_that_tells_no_log_probabilities_at_all_is_one_error_with_the_remedy(serving, said):
    server = serving(said)
    with pytest.raises(EngineError, match=r"no log-probabilities of what model says.*`reflection: letter`"):
        engine(server, at_once=2).choose(ask(*map(str, range(40))), ["A", "B"])
    assert len(server.seen) < 20


def test_an_adapter_that_cannot_be_unloaded_costs_the_others_nothing_and_unloading_no_budget(serving, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(f'{{"r": 8, "name": "{name}"}}')
    seen = []

    def manner(text, times):
        seen.append(text)
        return (500, b"no", "text/plain") if len(seen) == 3 else {}

    server = serving(manner)
    asking = engine(server, price_in=1.0, budget=1.0)
    for name in "ab":
        asking.with_adapter(tmp_path / name)
    asking.server.purse.spent = 2.0
    with pytest.raises(EngineError, match=r"may still be loaded.*\(500\): no"):
        asking.close()
    assert seen == ["/v1/load_lora_adapter"] * 2 + ["/v1/unload_lora_adapter"] * 2
    asking.close()
    assert len(seen) == 4
