import pytest

from curation.step import Completion, Failed
from flows.engines import EngineError
from flows.responses import Remembered, RememberedClasses
from flows.spending import in_words
from storage.responses import Responses
from storage.schema import message
from storage.store import Store
from tests.fakes import FakeEngine, FakeNLI


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
        lambda e: e.choose(prompts[:1], ["A", "B"]),
        lambda e: e.logprobs(prompts),
    ]
    plain = [call(Exact()) for call in calls]
    first = [call(Remembered(engine, store)) for call in calls]
    assert len(engine.asked) == 7
    assert [call(Remembered(engine, store)) for call in calls] == first == plain
    assert len(engine.asked) == 7


def test_a_failure_is_not_kept_and_costs_its_neighbours_nothing(store):
    engine = Exact()
    for _ in range(2):
        found = Remembered(engine, store).choose(ask("a", "long", "b"), ["A", "B"])
        assert [isinstance(f, Failed) for f in found] == [False, True, False]
    assert engine.asked == ["a", "long", "b", "long"]


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
    one.generate(ask("a"), max_tokens=2, temperature=1.0, top_p=0.5)
    one.generate(ask("a"), max_tokens=2, n=2)
    one.generate(ask("a"), max_tokens=2, temperature=1.0)
    one.generate(ask("a"), max_tokens=2, temperature=1.0, seed=1)
    one.choose(ask("a"), ["A"])
    one.choose(ask("a"), ["B"])
    Remembered(Exact(identity="another model"), store).generate(ask("a"), max_tokens=2)
    assert len(engine.asked) == 7
    one.generate(ask("a"), max_tokens=2, seed=9)  # greedy: the seed decides nothing
    assert len(engine.asked) == 7


def test_rows_that_are_new_are_all_that_is_asked(store):
    engine = FakeEngine()
    grown = [*"abcd", *"xyz"]
    for batch in (256, None):
        if batch is None:
            engine = Telling(identity="streams")
        Remembered(engine, store, batch).generate(ask(*"abcd"), max_tokens=1, temperature=1.0)
        again = Remembered(engine, store, batch).generate(ask(*reversed(grown)), max_tokens=1, temperature=1.0)
        assert [c.text for [c] in again] == grown[::-1]
        assert engine.asked == [*"abcd", *"zyx"]


class Telling(FakeEngine):
    """Answers `m` tokens of as many as it would like: the prompt is how many. Tells each as it comes."""

    def generate(self, prompts, *, max_tokens, n=1, temperature=0.0, top_p=1.0, seed=0, done=lambda i, answers: None):
        self.asked += [p[-1]["content"] for p in prompts]
        out = []
        for i, p in enumerate(prompts):
            said = p[-1]["content"]
            tokens = min(int(said) if said.isdigit() else 1, max_tokens)
            cut = said.isdigit() and int(said) > max_tokens
            out.append([Completion(said, (), None, tokens, cut)] * n)
            done(i, out[-1])
        return out


def test_a_larger_max_tokens_asks_only_for_what_was_cut_and_a_smaller_one_for_what_is_too_long(store):
    engine = Telling()
    one = Remembered(engine, store, None)
    one.generate(ask("2", "9", "4"), max_tokens=5)
    engine.asked.clear()
    whole = one.generate(ask("2", "9", "4"), max_tokens=20)
    assert engine.asked == ["9"] and [c.tokens for [c] in whole] == [2, 9, 4]
    engine.asked.clear()
    assert [c.tokens for [c] in one.generate(ask("2", "9", "4"), max_tokens=3)] == [2, 3, 3]
    assert engine.asked == ["9", "4"]
    engine.asked.clear()
    assert [c.tokens for [c] in one.generate(ask("2", "9", "4"), max_tokens=5)] == [2, 5, 4]  # as it was, to the token
    assert not engine.asked


def test_more_samples_leave_those_that_are_there(store):
    drawn = {"max_tokens": 3, "temperature": 1.0, "seed": 1}
    for batch, engine in ((256, Exact()), (None, Telling(identity="streams"))):
        one = Remembered(engine, store, batch)
        [first] = one.generate(ask("7"), n=2, **drawn)
        [more] = one.generate(ask("7"), n=4, **drawn)
        assert more[:2] == first and len(more) == 4
        assert engine.asked == ["7"] * 3


def test_an_engine_that_dies_in_the_middle_leaves_what_it_has_told(store):
    class Dying(Telling):
        def generate(self, prompts, *, done, **how):
            super().generate(prompts[:3], done=done, **how)
            raise EngineError("died twice")

    with pytest.raises(EngineError, match="died twice"):
        Remembered(Dying(), store, None).generate(ask(*"abcde"), max_tokens=1)
    engine = Telling()
    answers = Remembered(engine, store, None).generate(ask(*"abcde"), max_tokens=1)
    assert [c.text for [c] in answers] == [*"abcde"] and engine.asked == [*"de"]


class Scoring(FakeEngine):
    """Tells each number as it comes, and stops at the third."""

    stops = True

    def choose(self, prompts, answers, done=None):
        return self._each(prompts, done)

    def logprobs(self, conversations, done=None):
        return self._each(conversations, done)

    def _each(self, asked, done):
        out = []
        for i, messages in enumerate(asked):
            if self.stops and i == 2:
                raise EngineError("the budget is spent")
            self.asked.append(messages[-1]["content"])
            self.used.update(requests=1, prompt_tokens=10)
            out.append(Failed("too long") if messages[-1]["content"] == "long" else [0.5])
            done(i, out[-1])
        return out


@pytest.mark.parametrize("call", [lambda e, p: e.choose(p, ["A"]), lambda e, p: e.logprobs(p)])
def test_numbers_that_were_told_before_a_stop_are_kept_and_counted(store, call):
    prompts, spent = ask("a", "b", "c", "long"), {}
    with pytest.raises(EngineError, match="budget"):
        call(Remembered(Scoring(), store, None, spent=spent), prompts)
    assert spent == {"requests": 2, "prompt_tokens": 20}
    engine, seen = Scoring(), []
    engine.stops = False
    found = call(Remembered(engine, store, None, progress=lambda *x: seen.append(x)), prompts)
    assert engine.asked == ["c", "long"] and found == [[0.5]] * 3 + [Failed("too long")]
    assert seen == [(3, 4), (4, 4), (4, 4)]


def test_what_a_call_that_was_cut_short_took_is_counted(store):
    class Dying(Telling):
        def generate(self, prompts, *, done, **how):
            self.used.update(requests=3, prompt_tokens=30, cost=1.5)
            super().generate(prompts[:3], done=done, **how)
            raise KeyboardInterrupt

    spent = {}
    with pytest.raises(KeyboardInterrupt):
        Remembered(Dying(), store, None, spent=spent).generate(ask(*"24689"), max_tokens=9)
    assert spent == {"requests": 3, "generated_tokens": 12, "prompt_tokens": 30, "cost": 1.5}


def test_pairs_are_judged_once_and_both_are_counted(store):
    class Judge(FakeNLI):
        def classify(self, pairs):
            judged = zip(pairs, super().classify(pairs), strict=True)
            return [Failed("too long") if "long" in pair else odds for pair, odds in judged]

    engine, spent = Judge(), {}
    for some in ([("a", "b"), ("a", "long")], [("a", "b"), ("c", "d")]):
        RememberedClasses(engine, store, spent=spent).classify(some)
    assert engine.asked == [("a", "b"), ("a", "long"), ("c", "d")]
    assert spent.pop("engine_seconds", 0) >= 0
    assert spent == {"classified_pairs": 4, "pairs_from_store": 1, "failures": 1}
    assert in_words(spent) == "4 pairs judged (1 from the store), 1 failed, 0.0 s of the engine"


def test_a_sum_that_two_commands_add_to_holds_both(store):
    one, other = (Responses(store.root / "responses.sqlite") for _ in range(2))
    assert one.sums("run") == {}
    one.add("run", {"cost": 1.5})
    assert other.add("run", {"cost": 2.0, "requests": 1}) == {"cost": 3.5, "requests": 1}
    assert one.sums("run") == {"cost": 3.5, "requests": 1} and one.sums("another") == {}


def test_what_was_needed_and_what_was_asked_are_counted_apart(store):
    class Counting(Telling):
        def generate(self, prompts, **how):
            self.used.update(requests=len(prompts), prompt_tokens=10 * len(prompts), seconds=1)
            return super().generate(prompts, **how)

    spent: dict = {}
    one = Remembered(Counting(), store, None, spent=spent)
    one.generate(ask("2", "3"), max_tokens=9)
    one.generate(ask("2", "3", "4"), max_tokens=9)
    assert spent == {
        "requests": 5, "from_store": 2, "generated_tokens": 14, "prompt_tokens": 30, "engine_seconds": 2,
    }  # fmt: skip


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
