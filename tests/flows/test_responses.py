import pytest

from curation.step import Completion, Failed
from flows.responses import Remembered
from storage.schema import message
from storage.store import Store
from tests.fakes import FakeEngine


def ask(*texts):
    return [[message("user", t)] for t in texts]


class Exact(FakeEngine):
    """Numbers that no decimal writes short, one failure, and samples that follow the seed."""

    def generate(self, prompts, *, max_tokens, n=1, temperature=0.0, top_p=1.0, seed=0):
        self.asked += [p[-1]["content"] for p in prompts]
        return [[Completion(f"{seed}-{i}", (-0.1 - i / 3, float("-inf"))) for i in range(n)] for _ in prompts]

    def choose(self, prompts, answers):
        self.asked += [p[-1]["content"] for p in prompts]
        return [Failed("too long") if p[-1]["content"] == "long" else [1 / 3, 2e-308] for p in prompts]

    def logprobs(self, conversations):
        self.asked += [c[-1]["content"] for c in conversations]
        return [[-1 / 7] * 2 for _ in conversations]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def test_a_second_call_asks_the_engine_nothing_and_gives_the_same_to_the_last_bit(store):
    prompts, engine = ask("a", "long", "b"), Exact()
    calls = [
        lambda e: e.generate(prompts, max_tokens=2, n=2, temperature=0.7, seed=3),
        lambda e: e.choose(prompts, ["A", "B"]),
        lambda e: e.logprobs(prompts),
    ]
    plain = [call(Exact()) for call in calls]
    first = [call(Remembered(engine, store)) for call in calls]
    assert len(engine.asked) == 9
    assert [call(Remembered(engine, store)) for call in calls] == first == plain
    assert len(engine.asked) == 9


def test_a_call_cut_in_the_middle_asks_only_for_the_rest(store):
    class Dying(FakeEngine):
        def generate(self, prompts, **how):
            if prompts[0][-1]["content"] == "c":
                raise KeyboardInterrupt
            return super().generate(prompts, **how)

    prompts = ask(*"abcde")
    with pytest.raises(KeyboardInterrupt):
        Remembered(Dying(), store, batch=2).generate(prompts, max_tokens=1)
    engine, seen = FakeEngine(), []
    whole = Remembered(engine, store, batch=2, progress=lambda done, total: seen.append((done, total)))
    assert [c.text for [c] in whole.generate(prompts, max_tokens=1)] == [*"abcde"]
    assert engine.asked == [*"cde"]
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_another_question_is_another_answer(store):
    engine = Exact()
    one = Remembered(engine, store)
    one.generate(ask("a"), max_tokens=2)
    one.generate(ask("a"), max_tokens=3)
    one.generate(ask("a"), max_tokens=2, n=2)
    one.generate(ask("a"), max_tokens=2, temperature=1.0)
    one.generate(ask("a"), max_tokens=2, temperature=1.0, seed=1)
    one.choose(ask("a"), ["A"])
    one.choose(ask("a"), ["B"])
    Remembered(Exact(identity="another model"), store).generate(ask("a"), max_tokens=2)
    assert len(engine.asked) == 7
    one.generate(ask("a"), max_tokens=2, seed=9)  # greedy: the seed decides nothing
    assert len(engine.asked) == 7


def test_equal_prompts_in_two_batches_are_sampled_independently(store):
    answers = Remembered(Exact(), store, batch=1).generate(ask("a", "a", "a"), max_tokens=1, temperature=1.0, seed=5)
    texts = [c.text for [c] in answers]
    assert texts[0] == "5-0" and len(set(texts)) == 3


def test_what_another_process_answered_first_is_believed(store):
    class Late(Exact):
        def logprobs(self, conversations):
            Remembered(FakeEngine(nll=lambda text: 2.0), store).logprobs(conversations)  # wins the race
            return super().logprobs(conversations)

    assert Remembered(Late(), store).logprobs(ask("one")) == [[-2.0]]


def test_nothing_asked_is_nothing_answered(store):
    assert Remembered(FakeEngine(), store).generate([], max_tokens=1) == []
