from collections import Counter
from itertools import count, permutations

import polars as pl
import pytest

from curation.step import STEPS, Completion, StepError
from flows import steps  # noqa: F401  registers every step
from flows.responses import Remembered
from storage.schema import instruction, message, response
from storage.store import Store
from synthesis import self_guide as sg
from synthesis import self_guide_filters as keep
from tests.fakes import FakeEngine
from tests.rows import rows

EXAMPLES = rows(
    ("Yes or no?\nIs snow cold?", "yes"), ("Yes or no?\nIs fire cold?", "no"), ("Yes or no?\nAre cats?", "yes")
)
LABELS = ["yes", "no"]


def guide(examples, student, **settings):
    settings = {"epochs": 2, "prompts": 3, "lengths": "neither"} | settings
    return STEPS["self-guide"](examples, sg.SelfGuide(**settings), {"student": student})


def why(made):
    return Counter(made["drop_reason"].drop_nulls().str.strip_prefix("self-guide: ").to_list())


def live(made):
    said = made.filter(pl.col("drop_reason").is_null())["messages"].to_list()
    return [(instruction(m).removeprefix("Yes or no?\n"), response(m)) for m in said]


def student(inputs, answers):
    """Writes one input after another; answers each as told, by input and sample."""
    texts = iter(inputs)

    def reply(text, i):
        return next(texts) if text.startswith("Write") else answers(text.partition("\n")[2], i)

    return FakeEngine(reply=reply)


@pytest.mark.parametrize(
    ("lengths", "interval", "widened"),
    [
        pytest.param([10, 20, 30], (3, 36), (3, 36), id="mean 20, deviation 8.165"),
        pytest.param([2, 4, 30], (-13, 37), (-13, 37), id="below nothing"),
        pytest.param([12, 15, 11], (9, 16), (9, 16), id="narrow"),
        pytest.param([7, 7, 7], (7, 7), (7, 8), id="equal: the paper's holds nothing"),
        pytest.param([1, 1, 1, 1, 1, 1, 1, 1, 1, 20], (-8, 14), (-8, 21), id="one far out"),
    ],
)
def test_lengths_are_within_two_deviations_of_the_examples_and_never_shut_these_out(lengths, interval, widened):
    assert keep.interval(lengths) == interval
    assert keep.bounds(["x" * n for n in lengths]) == widened


@pytest.mark.parametrize(
    ("answers", "least", "agreed"),
    [
        pytest.param(["a", "a", *"bcdefghi"], 0.2, "a", id="2 of 10 at 0.2"),
        pytest.param(["a", "a", *"bcdefghi"], 0.3, None, id="2 of 10 at 0.3"),
        pytest.param(["yes.", "no", "yes.", "no"], 0.2, "no", id="a tie: the shorter"),
        pytest.param(["ab", "cd"], 0.2, "ab", id="a tie of one length: the first"),
        pytest.param([], 0.0, None, id="none"),
    ],
)
def test_the_commonest_answer_is_taken_if_it_is_common_enough(answers, least, agreed):
    assert keep.consistent(answers, least) == agreed


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        pytest.param("It is yes", "yes", id="within"),
        pytest.param("not yes but no", "no", id="the last"),
        pytest.param("RATE BOOK", "rate book", id="the longest that ends there"),
        pytest.param("perhaps", None, id="none"),
    ],
)
def test_an_answer_is_the_label_that_stands_last_in_it(answer, label):
    assert keep.label_of(answer, ["yes", "no", "book", "rate book"]) == label


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        pytest.param({"a": 9, "b": 6}, {"a": 6, "b": 6}, id="equal"),
        pytest.param({"a": 30, "b": 2}, {"a": 10, "b": 2}, id="a rare one: five times as many"),
        pytest.param({"a": 30, "b": 0}, {"a": 5}, id="one is absent"),
    ],
)
def test_no_label_has_more_rows_than_the_rarest_allows(found, counts):
    said = [label for label, n in found.items() for _ in range(n)]
    stay = keep.balanced(said, ["a", "b"])
    assert Counter(label for label, s in zip(said, stay, strict=True) if s) == counts


TEXTS = [
    "",
    "fine one",
    "fine one",
    "x" * 99,
    "output: a",
    "well enough",
    "as an AI",
    "fine two",
    "no",
    "well enough",
]


def test_filters_keep_the_same_in_any_order_and_twice_is_once_and_the_step_keeps_that():
    low, high = keep.bounds(["eight ch", "eleven char", "a nice text"])
    filters = [
        lambda some: [t for t in some if t],
        lambda some: [t for t in some if low <= len(t) < high],
        lambda some: [t for t in some if not keep.is_noise(t)],
        lambda some: list(dict.fromkeys(some)),
    ]

    def filtered(texts, order):
        for one in order:
            texts = one(texts)
        return texts

    kept = {tuple(filtered(TEXTS, order)) for order in permutations(filters)}
    assert kept == {("fine one", "well enough", "fine two")}
    assert filtered(filtered(TEXTS, filters), filters) == filtered(TEXTS, filters)
    examples = rows(("Do it.\neight ch", "a"), ("Do it.\neleven char", "b"), ("Do it.\na nice text", "c"))
    made = guide(examples, student(TEXTS, lambda text, i: "a"), prompts=10, epochs=1, lengths="inputs")
    assert (
        tuple(instruction(m).partition("\n")[2] for m in made.filter(pl.col("drop_reason").is_null())["messages"])
        == kept.pop()
    )
    assert why(made) == {
        "empty": 1, "input of another length": 2, "input there already": 2, "input with noise": 2
    }  # fmt: skip


def test_answers_are_drawn_with_the_examples_as_a_conversation_and_the_commonest_is_the_rows():
    asked = student(["Is ice warm?", "Is tea hot?"], lambda text, i: "no" if "ice" in text or i == 0 else "yes")
    made = guide(EXAMPLES, asked, epochs=1, prompts=2, samples=5)
    assert live(made) == [("Is ice warm?", "no"), ("Is tea hot?", "yes")]
    assert set(made["parent_id"]) == {"r0"} and set(made["method"]) == {"self-guide"}
    assert made["clear_writer"].to_list() == ["fake"] * 2 and made["grown_prompt"].to_list() == ["self-guide/1"] * 2
    (first, second) = asked.how
    assert (first["n"], first["temperature"], second["n"], second["temperature"]) == (1, 0.9, 5, 0.2)


def test_what_the_samples_do_not_agree_on_is_no_answer_nor_what_too_few_are_left_of():
    def answers(text, i):
        return {"all alike": "same", "all apart": f"{i}", "two": "same" if i < 2 else "", "none": ""}[text]

    made = guide(EXAMPLES, student(["all alike", "all apart", "two", "none"], answers), epochs=1, prompts=4, samples=10)
    assert live(made) == [("all alike", "same")]
    assert why(made) == {
        "its answers do not agree": 1,
        "too few answers are left: 8 empty": 1,
        "too few answers are left: 10 empty": 1,
    }


def test_the_likeliest_samples_are_looked_at_and_failures_last():
    class Sure(FakeEngine):
        def generate(self, prompts, *, n=1, **how):
            if prompts[0][-1]["content"].startswith("Write"):
                return [[Completion("an input")]]
            said = [
                Completion("", error="lost"),
                *[Completion("rare", (-9.0,))] * 3,
                *[Completion("sure", (-0.1,))] * 3,
            ]
            return [said for _ in prompts]

    assert live(guide(EXAMPLES, Sure(), epochs=1, prompts=1, samples=7, likeliest=3)) == [("an input", "sure")]


def test_labels_balance_the_inputs_that_are_asked_for_and_the_rows_and_stand_in_no_row():
    numbers = count()
    asked = student(
        (f"thing {next(numbers)}" for _ in range(40)), lambda text, i: f"It is {'no' if int(text[6:]) % 4 else 'yes'}."
    )
    made = guide(EXAMPLES, asked, labels=LABELS, prompts=20, samples=4)
    said = Counter(answer for _, answer in live(made))
    assert said == {"yes": 10, "no": 10} and why(made) == {"too many of its label": 20}
    wanted = Counter(text.rpartition("Answer: ")[2] for text in asked.asked if text.startswith("Write"))
    assert set(wanted) == {"yes", "no"} and min(wanted.values()) > 10
    assert asked.how[0]["temperature"] == 0.7


def test_an_answer_that_is_no_label_is_refused_and_the_engine_can_be_held_to_labels():
    class Held(FakeEngine):
        def generate(self, prompts, *, choices=(), **how):
            said = super().generate(prompts, **how)
            return [[Completion("no")] * len(row) for row in said] if choices == LABELS else said

    def asked():
        return student(["so what?"], lambda text, i: "perhaps")

    assert why(guide(EXAMPLES, asked(), labels=LABELS, epochs=1, prompts=1)) == {"its answer is no label": 1}
    held = Held(reply=asked().reply)
    assert live(guide(EXAMPLES, held, labels=LABELS, epochs=1, prompts=1, structured=True)) == [("so what?", "no")]


def test_an_example_whose_answer_is_no_label_is_told():
    with pytest.raises(StepError, match="'maybe', which is none of the labels"):
        guide(rows(("Yes or no?\nso?", "maybe")), FakeEngine(), labels=LABELS)


def test_earlier_inputs_are_shown_as_worse_ones_and_examples_as_good_ones():
    numbers = count()
    asked = student((f"thing {next(numbers)}" for _ in range(99)), lambda text, i: "yes")
    guide(EXAMPLES, asked, epochs=3, prompts=4)
    first, last = [t for t in asked.asked if t.startswith("Write")][::11]
    assert "write something else" not in first and all(
        f"Input: {t}\n" in f"{first}\n" for t in ("Are cats?", "Is snow cold?")
    )
    worse = last.partition("write something else:\n- ")[2].split("\n- ")
    assert 1 <= len(worse) <= 8 and set(worse) <= {f"thing {i}" for i in range(8)}


def test_each_task_of_a_dataset_has_rows_and_a_parent_of_its_own():
    examples = rows(("Add.\n1 1", "2"), ("Name it.\ncat", "a cat"), ("Add.\n1 2", "3"), ("alone", "x"))
    numbers = count()
    asked = student((f"input {next(numbers)}" for _ in range(99)), lambda text, i: "out")
    made = guide(examples, asked, epochs=1, prompts=2)
    assert Counter(made["parent_id"]) == {"r0": 2, "r1": 2, "r3": 2}
    assert {instruction(m).partition("\n")[0] for m in made["messages"].to_list()[:4]} == {"Add.", "Name it."}


def test_grown_rows_and_validation_rows_are_no_examples():
    examples = EXAMPLES.with_columns(
        round=pl.Series([0, 1, 0], dtype=pl.Int32), split=pl.Series(["train"] * 2 + ["validation"])
    )
    asked = student(["anything"], lambda text, i: "yes")
    guide(examples, asked, epochs=1, prompts=1)
    assert "snow" in asked.asked[0] and "fire" not in asked.asked[0] and "cats" not in asked.asked[0]


def test_no_more_inputs_are_asked_for_than_rows_and_what_is_missing_is_said():
    numbers = count()
    asked = student((f"thing {next(numbers)}" for _ in range(99)), lambda text, i: "yes")
    made = guide(EXAMPLES, asked, epochs=9, prompts=3, rows=5)
    assert len(live(made)) == 5 and why(made) == {"beyond the quota": 1}
    short = guide(EXAMPLES, student(["a", "a", "a", "a"], lambda text, i: "yes"), epochs=2, prompts=2, rows=3)
    assert why(short) == {"input there already": 3, "short of the quota: asked 2 times": 2}


def test_a_student_that_fails_or_never_stops_is_bounded_and_counted():
    class Endless(FakeEngine):
        def generate(self, prompts, *, max_tokens, n=1, **how):
            self.asked += prompts
            return [[Completion("on and on", tokens=max_tokens, truncated=True)] * n for _ in prompts]

    endless = Endless()
    made = guide(EXAMPLES, endless, epochs=50, prompts=4, max_tokens=10, tokens=400)
    assert len(endless.asked) == 10 and why(made) == {"cut at max_tokens": 10}


def test_a_second_run_asks_the_model_nothing_and_gives_the_same(tmp_path):
    numbers = count()
    engine = student((f"thing {next(numbers)}" for _ in range(99)), lambda text, i: "yes")
    first = guide(EXAMPLES, Remembered(engine, Store(tmp_path)))
    asked = len(engine.asked)
    assert guide(EXAMPLES, Remembered(engine, Store(tmp_path))).equals(first)
    assert len(engine.asked) == asked


def test_a_system_prompt_stands_once_before_the_examples():
    examples = EXAMPLES.with_columns(
        messages=pl.Series(
            [[message("system", "Be terse."), *m] for m in EXAMPLES["messages"].to_list()],
            dtype=EXAMPLES["messages"].dtype,
        )
    )
    seen = []

    class Seeing(FakeEngine):
        def generate(self, prompts, **how):
            seen.extend(prompts)
            return super().generate(prompts, **how)

    made = guide(examples, Seeing(reply=student(["new?"], lambda text, i: "yes").reply), epochs=1, prompts=1)
    assert [m["role"] for m in seen[1]] == ["system", *["user", "assistant"] * 3, "user"]
    assert [m["role"] for m in made["messages"].to_list()[0]] == ["system", "user", "assistant"]


def test_an_input_of_several_lines_is_kept_with_the_answer_to_all_of_it():
    plain = rows(("Is snow cold?", "yes"), ("Is fire cold?", "no"), ("Are cats?", "yes"))
    asked = []

    def reply(text, i):
        if text.startswith("Write"):
            return "Tom has 3 apples.\nHow many has he?"
        asked.append(text)
        return "3"

    made = guide(plain, FakeEngine(reply=reply), epochs=1, prompts=1, min_frequency=0)
    kept = made.filter(pl.col("drop_reason").is_null())["messages"].to_list()
    assert [(instruction(m), response(m)) for m in kept] == [("Tom has 3 apples.\nHow many has he?", "3")]
    assert asked[0].endswith("Tom has 3 apples.\nHow many has he?")


def test_an_input_that_is_a_word_before_nothing_is_empty():
    made = guide(EXAMPLES, student(["Input:", "Input: ", "Input: Is ice?"], lambda *_: "yes"), epochs=1)
    assert live(made) == [("Is ice?", "yes")] and why(made)["empty"] == 2


@pytest.mark.parametrize("likeliest", [1, 2])
def test_as_few_answers_as_are_asked_for_can_agree(likeliest):
    made = guide(EXAMPLES, student(["Is ice?"], lambda *_: "yes"), epochs=1, prompts=1, likeliest=likeliest)
    assert live(made) == [("Is ice?", "yes")]


def test_what_was_written_in_an_earlier_round_is_not_written_again():
    first = guide(EXAMPLES, student(["Is ice?"], lambda *_: "yes"), epochs=1, prompts=1)
    grown = pl.concat([EXAMPLES, first.select(EXAMPLES.columns)], how="vertical_relaxed")
    again = guide(grown, student(["Is ice?", "Is rain?"], lambda *_: "yes"), epochs=1, prompts=2, round=2)
    assert live(again) == [("Is rain?", "yes")] and why(again)["input there already"] == 1


def test_structure_without_labels_to_hold_to_is_refused():
    with pytest.raises(ValueError, match="name them"):
        sg.SelfGuide(structured=True)
