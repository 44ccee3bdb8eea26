"""The process around vLLM, held to its promises with a small program in vLLM's place, through the same pipe."""

import os
import signal
import threading
import time

import psutil
import pytest

from synthesis.fingerprint import EngineError
from synthesis.vllm_process import VllmProcess

# Answers each request with its tokens; `how` may have it misbehave.
PROGRAM = """
import os, subprocess, sys, time
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[1]))
settings = pipe.recv()
child = os.fork() if settings.get("child") else None
if child == 0:
    time.sleep(600)
pipe.send(("ready", {"child": child}))
while True:
    what, asked = pipe.recv()
    for name, tokens, how, adapter in asked if what == "ask" else []:
        if how.get("die"):
            sys.exit("ValueError: it cannot be")
        if how.get("garbled"):
            pipe.send("nonsense")
        if how.get("stray"):
            pipe.send(("done", [("99/0", ("said", None))]))
        if not how.get("silent"):
            pipe.send(("done", [(name, ("said", (tokens, settings.get("n"), adapter)))]))
"""


@pytest.fixture
def process():
    found = VllmProcess({}, ("-c", PROGRAM))
    yield found
    found.stop()


def test_what_is_asked_is_answered_and_what_nobody_waits_for_hurts_nobody(process):
    requests = {i: ([i], {"stray": True}) for i in range(5)}
    assert dict(process.answers(requests, None)) == {i: ([i], None, None) for i in range(5)}
    assert dict(process.answers({0: ([7], {})}, None)) == {0: ([7], None, None)}
    assert process.starts == 1


def test_a_process_that_dies_is_started_once_more_and_its_second_death_says_how_far_it_came(process):
    heard = []
    with pytest.raises(EngineError, match=r"died twice \(ValueError: it cannot be\); 2 of 3 answers were had"):
        for i, _ in process.answers({0: ([1], {}), 1: ([2], {}), 2: ([3], {"die": True})}, None):
            heard.append(i)
    assert heard == [0, 1] and process.starts == 2


def test_a_process_that_is_killed_while_its_child_holds_the_pipe_is_noticed_and_its_child_ended(process):
    process.settings["child"] = True
    silent, heard = {0: ([1], {"silent": True})}, []

    def ask():
        try:
            heard.extend(process.answers(silent, None))
        except EngineError as why:
            heard.append(why)

    waiting = threading.Thread(target=ask, daemon=True)
    waiting.start()
    children = []
    for life in (1, 2):
        until(lambda life=life: process.starts == life and process._running and process._running.calls)
        children.append(process._running.facts["child"])
        os.kill(process.pid, signal.SIGKILL)  # it alone, as when memory runs out
    waiting.join(60)
    assert not waiting.is_alive() and "died twice" in str(heard[0])
    until(lambda: not any(alive(child) for child in children))


def test_a_stop_that_another_caller_asked_for_is_no_death(process):
    heard = {}

    def ask():
        with pytest.raises(EngineError, match="died twice"):
            for i, outcome in process.answers({0: ([1], {}), 1: ([2], {"silent": True})}, None):
                heard[i] = outcome

    waiting = threading.Thread(target=ask, daemon=True)
    waiting.start()
    for start in (1, 2, 3):
        until(lambda start=start: process.starts == start and process._running and process._running.calls)
        process.settings["n"] = start
        if start == 3:
            break
        process.stop()  # such as for an adapter that needs it started otherwise
    assert waiting.is_alive() and set(heard) == {0}
    os.kill(process.pid, signal.SIGKILL)  # a death of its own: the first
    until(lambda: process.starts == 4 and process._running and process._running.calls)
    assert waiting.is_alive()
    os.kill(process.pid, signal.SIGKILL)
    waiting.join(60)
    assert not waiting.is_alive()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_message_that_nobody_understands_leaves_nobody_waiting(process):
    with pytest.raises(EngineError, match="died twice"):
        list(process.answers({0: ([1], {"garbled": True})}, None))


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(happened, patience=60):
    end = time.monotonic() + patience
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)
