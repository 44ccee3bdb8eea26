import json
from collections import Counter
from itertools import count

import polars as pl
import pytest

from curation.step import STEPS, Completion, StepError
from flows import steps  # noqa: F401  registers every step
from flows.responses import Remembered
from storage.schema import instruction, message, response
from storage.store import Store
from synthesis import llm2llm as ll
from synthesis import retelling
from tests.fakes import FakeEngine
from tests.rows import rows

POOL = [("Pick: a, b\nplay jazz", "a"), ("Pick: a, b\nrain today?", "b"), ("Pick: a, b\nsome rock", "a")]


def results(**correct):
    return pl.DataFrame({"id": list(correct), "student_correct": list(correct.values())})


def written(pool, table, teacher, heldout=None, **settings):
    config = ll.LLM2LLM(**settings)
    tables = {"results": table} | ({"heldout": heldout} if heldout is not None else {})
    return STEPS["llm2llm"](pool, config, {"teacher": teacher}, tables)


def grow(pool, table, teacher, **settings):
    """The rows that were kept."""
    return written(pool, table, teacher, **settings).filter(pl.col("drop_reason").is_null())


def why(made):
    """How many rows were refused for which reason."""
    return Counter(made["drop_reason"].drop_nulls().str.strip_prefix("llm2llm: ").to_list())


def wrong(n, correct=False):
    return results(**{f"r{i}": correct for i in range(n)})


def asked_about(text):
    return text.split("Input: ")[1].split("\n")[0]


def test_one_new_row_for_each_wrong_row_with_parent_method_and_round():
    teacher = FakeEngine(reply=lambda text, i: "a new one about " + text.split("Input: ")[1].split("\n")[0].split()[1])
    made = grow(rows(*POOL), results(r0=False, r1=True, r2=False), teacher, round=2)
    assert made["parent_id"].to_list() == ["r0", "r2"]
    assert made["method"].unique().to_list() == ["llm2llm"] and made["round"].unique().to_list() == [2]
    first = made["messages"].to_list()[0]
    assert instruction(first) == "Pick: a, b\na new one about jazz" and response(first) == "a"


def test_swapped_results_change_which_rows_grow():
    teacher = FakeEngine(reply=lambda text, i: f"another {hash(text)}")
    one = grow(rows(*POOL), results(r0=False, r1=True), teacher)
    other = grow(rows(*POOL), results(r0=True, r1=False), teacher)
    assert one["parent_id"].to_list() == ["r0"] and other["parent_id"].to_list() == ["r1"]


def test_grown_rows_and_validation_rows_are_never_parents():
    pool = rows(*POOL, split=["train", "validation", "train"])
    pool = pool.with_columns(round=pl.Series([0, 0, 1], dtype=pl.Int32))
    made = grow(pool, results(r0=False, r1=False, r2=False), FakeEngine(reply=lambda t, i: "something else"))
    assert made["parent_id"].to_list() == ["r0"]


def test_the_most_trusted_wrong_rows_come_first():
    pool = rows(*POOL, clear_confidence=[0.1, 0.5, 0.9])
    asked = FakeEngine(reply=lambda text, i: f"new {len(text)}")
    made = grow(pool, results(r0=False, r1=False, r2=False), asked, rows=2)
    assert made["parent_id"].to_list() == ["r2", "r1"]


def test_the_same_reply_in_two_rounds_gives_two_ids_and_is_not_written_again_while_it_stands():
    teacher = FakeEngine(reply=lambda text, i: "one more song")
    first = grow(rows(*POOL), results(r0=False), teacher, round=1)
    second = grow(rows(*POOL), results(r0=False), teacher, round=2)
    assert first["id"][0] != second["id"][0]
    assert (
        grow(pl.concat([rows(*POOL), first], how="diagonal_relaxed"), results(r0=False), teacher, round=2).height == 0
    )


def test_a_teacher_that_copies_is_refused_and_asked_no_more_than_the_attempts():
    teacher = FakeEngine(reply=lambda text, i: text.split("Input: ")[1].split("\n")[0])
    made = grow(rows(*POOL), results(r0=False), teacher, attempts=3)
    assert made.height == 0 and len(teacher.asked) == 3


def test_a_student_without_mistakes_grows_nothing_and_asks_nothing():
    teacher = FakeEngine()
    assert grow(rows(*POOL), results(r0=True), teacher).height == 0
    assert teacher.asked == []


TWELVE = "one two three four five six seven eight nine ten eleven twelve"
PLAIN = [message("user", "2+2?"), message("assistant", "4")]
WORKED = [message("user", "Tom has 3 and gets 2.\nHow many?"), message("assistant", "3+2=5\n#### 5")]
BELOW = [message("user", "Pick: a, b\nplay jazz"), message("assistant", "a")]


@pytest.mark.parametrize(
    ("parent", "reply", "cut", "expected"),
    [
        pytest.param(PLAIN, "Question: 3+3?\nAnswer: 6", False, [("3+3?", "6")], id="a-pair"),
        pytest.param(PLAIN, "Question: 3+3?", False, ["unreadable"], id="no-answer"),
        pytest.param(PLAIN, "six", False, [], id="no-question"),
        pytest.param(PLAIN, "Question: 3?\nAnswer: 1\nAnswer: 2", False, ["unreadable"], id="two-answers"),
        pytest.param(
            PLAIN,
            "1. Question: a?\nAnswer: 1\n2. Question 2: b?\nAnswer: 2",
            False,
            [("a?", "1"), ("b?", "2")],
            id="two",
        ),
        pytest.param(
            PLAIN,
            "Question: a?\nAnswer: 1\nQuestion: b?\nAnswer: 2",
            True,
            [("a?", "1"), "cut at max_tokens"],
            id="cut",
        ),
        pytest.param(BELOW, "some rock\nAnswer: a", False, [("Pick: a, b\nsome rock", "a")], id="an-input"),
        pytest.param(
            BELOW, "Input: x y\nInput: z", False, [("Pick: a, b\nx y", "a"), ("Pick: a, b\nz", "a")], id="inputs"
        ),
        pytest.param(BELOW, "x\nAnswer: b", False, ["unreadable"], id="an-input-with-another-answer"),
        pytest.param(BELOW, "Question: c?\nAnswer: a", False, ["unreadable"], id="a-question-for-an-input"),
        pytest.param(
            WORKED,
            "Question: 3 more?\nHow many?\nAnswer: 6\n#### 6",
            False,
            [("3 more?\nHow many?", "6\n#### 6")],
            id="worked",
        ),
        pytest.param(BELOW, "some ro", True, ["cut at max_tokens"], id="cut-input"),
        pytest.param(BELOW, "Input:\nInput: z", False, ["unreadable", ("Pick: a, b\nz", "a")], id="an-empty-input"),
    ],
)
def test_a_reply_is_read_as_its_rows_and_what_is_none_says_why(parent, reply, cut, expected):
    found = retelling.rows_in(parent, reply, cut)
    assert [f.why if hasattr(f, "why") else (instruction(f), response(f)) for f in found] == expected


def test_a_student_that_is_always_wrong_grows_the_papers_seed_set_to_740_rows_in_ten_steps():
    pool, numbers = rows(*[(f"Count.\nthing {i}", str(i)) for i in range(74)]), count()
    teacher = FakeEngine(reply=lambda text, i: f"entirely new words {next(numbers)} {hash(text)}")
    seeds = set(pool["id"])
    for step in range(1, 10):  # the tenth trains and evaluates, and grows nothing
        new = grow(pool, pool.select("id", student_correct=pl.lit(False)), teacher, round=step)
        assert new.height == 74 and set(new["parent_id"]) == seeds
        pool = pl.concat([pool, new], how="diagonal_relaxed")
    assert pool.height == 74 + 9 * 74 == 740


def test_a_teacher_that_copies_leaves_the_whole_quota_missing():
    pool, teacher = rows(*POOL), FakeEngine(reply=lambda text, i: asked_about(text))
    made = written(pool, wrong(3), teacher, attempts=4)
    assert why(made) == {"its parent over again": 12, "short of the quota: asked 4 times": 3}
    assert len(teacher.asked) == 12 and made["id"].n_unique() == 15


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        pytest.param(
            "one two three four five six seven eight nine ten eleven twelve!", "its parent over again", id="same"
        ),
        pytest.param(
            "One two three four five six seven eight nine ten ELEVEN twelve", "near to its parent", id="but-for-case"
        ),
        pytest.param("one two three four five six seven eight nine ten eleven dozen", None, id="F-of-eleven-twelfths"),
        pytest.param("something else", None, id="different"),
        pytest.param("here we go again", "near to another row", id="a-pool-row"),
        pytest.param("Here we go, again", "near to another row", id="near-to-a-grown-row"),
        pytest.param("never to be trained on", "near to a held-out row", id="held-out"),
        pytest.param("Never to be: trained on", "near to a held-out row", id="near-to-held-out"),
        pytest.param("совсем другое дело", "in another script", id="script"),
        pytest.param("  \n", "empty", id="empty"),
        pytest.param("Answer: a", None, id="no-mark-is-wanted-where-there-is-none"),
    ],
)
def test_a_new_prompt_is_refused_for_what_it_is_near_to(reply, reason):
    pool = rows(
        ("Pick.\none two three four five six seven eight nine ten eleven twelve!", "a"),
        ("Pick.\nhere we go again", "a"),
    ).with_columns(round=pl.Series([0, 1], dtype=pl.Int32))
    heldout = rows(("Pick.\nnever to be trained on", "a"))
    made = written(pool, wrong(1), FakeEngine(reply=lambda text, i: reply), heldout=heldout, attempts=1)
    assert why(made) == ({reason: 1, "short of the quota: asked 1 times": 1} if reason else {})


def test_an_answer_with_the_mark_of_gsm8k_has_children_with_one_such_mark():
    pool = rows(("How many?", "2 and 3 are 5\n#### 5"))
    replies = iter(["6", "#### 6", "so #### 6 or #### 7"])
    teacher = FakeEngine(reply=lambda text, i: f"Question: how few {len(text)}?\nAnswer: {next(replies)}")
    assert why(written(pool, wrong(1), teacher, attempts=1))["its answer has not one mark"] == 1
    assert written(pool, wrong(1), teacher, attempts=1)["drop_reason"].to_list() == [None]
    assert why(written(pool, wrong(1), teacher, attempts=1))["its answer has not one mark"] == 1


class Trying(FakeEngine):
    """Answers with the completions it was given, one after another."""

    def __init__(self, *said):
        super().__init__()
        self.said = iter(said)

    def generate(self, prompts, *, max_tokens, n=1, temperature=0.0, top_p=1.0, seed=0, schema=None):
        self.asked += [p[-1]["content"] for p in prompts]
        self.how.append({"max_tokens": max_tokens, "n": n, "seed": seed, "schema": schema})
        return [[next(self.said) for _ in range(n)] for _ in prompts]


def test_what_fails_or_is_cut_is_counted_and_asked_again():
    teacher = Trying(Completion("", error="out of memory"), Completion("a b c", truncated=True), Completion("fine now"))
    made = written(rows(*POOL), wrong(1), teacher)
    assert why(made) == {"failed request: out of memory": 1, "cut at max_tokens": 1}
    assert made["drop_reason"].null_count() == 1 and len(teacher.asked) == 3


def test_a_row_says_who_wrote_it_by_which_prompt_and_seed():
    made = written(
        rows(*POOL), wrong(1), FakeEngine(reply=lambda t, i: "x" if "1" in t else asked_about(t)), attempts=2
    )
    refused = made.filter(pl.col("grown_prompt").is_not_null())
    assert refused["clear_writer"].to_list() == ["fake"] * 2 and refused["grown_prompt"].to_list() == ["input/1"] * 2
    assert refused["grown_seed"].to_list() == [20, 21] and made["parent_id"].unique().to_list() == ["r0"]
    (short,) = made.filter(pl.col("grown_prompt").is_null()).to_dicts()
    assert short["clear_writer"] is None and short["drop_reason"] == "llm2llm: short of the quota: asked 2 times"


def test_the_papers_retry_asks_for_more_and_shows_what_there_is():
    teacher = FakeEngine(reply=lambda text, i: "Input: brand new\nInput: " + asked_about(text))
    made = grow(rows(*POOL), wrong(1), teacher, retry="more", per_parent=3, attempts=3)
    assert made.height == 1 and len(teacher.asked) == 3
    assert "Write 3 other inputs" in teacher.asked[0] and "brand new" not in teacher.asked[0]
    assert "Write 3 other inputs" in teacher.asked[1] and teacher.asked[1].endswith("write different ones:\nbrand new")
    assert "Write 4 other inputs" in teacher.asked[2] and "brand new" not in teacher.asked[2]


def test_more_rows_than_were_wanted_are_refused_as_such():
    teacher = FakeEngine(reply=lambda text, i: "Input: one thing\nInput: other\nInput: third")
    made = written(rows(*POOL), wrong(1), teacher, retry="more", per_parent=2)
    assert made["drop_reason"].null_count() == 2 and why(made) == {"beyond the quota": 1}


def test_grown_rows_are_parents_where_that_is_asked_for():
    pool = rows(*POOL).with_columns(round=pl.Series([0, 0, 1], dtype=pl.Int32))
    numbers = count()
    teacher = FakeEngine(reply=lambda text, i: f"new {next(numbers)}")
    assert grow(pool, wrong(3), teacher, parents="all")["parent_id"].to_list() == ["r0", "r1", "r2"]


def test_json_is_asked_for_by_a_schema_for_each_form_and_read_as_rows():
    pool = rows(POOL[0], ("Why?", "so"))
    teacher = Trying(Completion('[{"input": "a song"}]'), Completion('[{"question": "How?", "answer": "thus"}]'))
    made = written(pool, wrong(2), teacher, structured=True)
    said = [(instruction(m), response(m)) for m in made["messages"].to_list()]
    assert said == [("Pick: a, b\na song", "a"), ("How?", "thus")]
    fields = [list(h["schema"]["items"]["properties"]) for h in teacher.how]
    assert fields == [["input"], ["question", "answer"]] and teacher.asked[0].endswith("Reply as JSON.")
    assert made["grown_prompt"].to_list() == ["input-json/1", "question-json/1"]
    broken = Trying(*[Completion(said) for said in ("[{", json.dumps([{"input": 3}]), "{}", '["a"]')])
    assert why(written(pool, wrong(1), broken, structured=True, attempts=4))["unreadable"] == 4


def test_a_row_whose_answer_the_teacher_does_not_repeat_is_refused():
    def drawn(*answers):
        replies = iter(answers)
        return FakeEngine(reply=lambda text, i: "Question: new?\nAnswer: 7" if "Write" in text else next(replies))

    pool = rows(("old?", "1"))
    assert grow(pool, wrong(1), drawn("7.", "8", "7"), agreement=True).height == 1
    made = written(pool, wrong(1), drawn("7", "8", "9"), agreement=True, attempts=1)
    assert why(made) == {"the teacher answers otherwise": 1, "short of the quota: asked 1 times": 1}


def test_the_teacher_writes_no_more_tokens_than_it_may():
    class Counting(FakeEngine):
        def generate(self, prompts, **how):
            return [[Completion(c.text, tokens=4) for c in a] for a in super().generate(prompts, **how)]

    pool, numbers = rows(*[(f"Pick.\nthing {i}", "a") for i in range(20)]), count()
    teacher = Counting(reply=lambda text, i: f"new {next(numbers)}")
    made = written(pool, wrong(20), teacher, max_tokens=10, tokens=50)
    # 5 fit for sure and take 20, 3 of the 30 left take 12, 1 of the 18 takes 4, 1 of the 14 takes 4; 10 left: 1 more
    assert len(teacher.asked) == 11 and made["drop_reason"].null_count() == 11
    assert why(made) == {"short of the quota: the tokens are spent": 9}
    assert teacher.how[0]["seed"] != teacher.how[1]["seed"]


def test_what_the_teacher_checks_has_its_own_part_of_the_tokens():
    numbers = count()

    class Counting(FakeEngine):
        def generate(self, prompts, **how):
            return [[Completion(c.text, tokens=5) for c in a] for a in super().generate(prompts, **how)]

    teacher = Counting(reply=lambda text, i: f"new {next(numbers)}" if "Write" in text else "a")
    pool = rows(*[(f"Pick.\nthing {i}", "a") for i in range(20)])
    assert grow(pool, wrong(20), teacher, max_tokens=10, tokens=400, agreement=True).height == 19
    assert len(teacher.asked) == 38  # 19 rows for 95 of a quarter, and three answers to each for 285 of the rest


def test_places_that_came_too_late_say_that_the_tokens_are_spent():
    pool = rows(*[(f"Pick.\nthing {i}", "a") for i in range(3)], *[(f"thing {i}?", "a") for i in range(3)])
    teacher = Trying(*[Completion("[]", tokens=1)] * 2)
    made = written(pool, wrong(6), teacher, structured=True, tokens=2, max_tokens=1, attempts=1)
    assert why(made) == {
        "unreadable": 2,
        "short of the quota: asked 1 times": 2,
        "short of the quota: the tokens are spent": 4,
    }


def test_nothing_is_asked_once_the_seconds_are_over():
    class Slow(FakeEngine):
        def generate(self, prompts, **how):
            self.used["seconds"] += 6
            return super().generate(prompts, **how)

    numbers = count()
    teacher = Slow(reply=lambda text, i: f"new {next(numbers)}")
    pool = rows(*[(f"Pick.\nthing {i}", "a") for i in range(150)])
    assert grow(pool, wrong(150), teacher, seconds=10).height == 128  # in two calls of 64


def test_another_parser_reads_the_same_replies_and_asks_no_model(tmp_path):
    pool, store = rows(*POOL), Store(tmp_path)
    teacher = FakeEngine(reply=lambda text, i: f"- all about {hash(text)}\n- and {hash(text)}")
    config = ll.LLM2LLM(attempts=3)
    first = STEPS["llm2llm"](pool, config, {"teacher": Remembered(teacher, store)}, {"results": wrong(3)})
    asked = len(teacher.asked)
    places = [ll.Place(row) for row in pool.to_dicts()]
    how = {"max_tokens": config.max_tokens, "temperature": config.temperature, "top_p": config.top_p}
    again = ll.growing.grow(
        places,
        ll.Allowance(Remembered(teacher, store)),
        attempts=3,
        seed=(config.seed * 1009 + config.round) * 20,
        how=how,
        ask=lambda place, attempt, kept: ll.questions(place, attempt, kept, config),
        read=lambda place, text, cut: [
            [*place.parent["messages"][:-1], message("assistant", line)] for line in text.split("\n")
        ],
        refuse=lambda place, new: None,
    )
    assert first.height == 3 and [response(w.messages)[:2] for w in again[:3]] == ["- "] * 3
    assert len(teacher.asked) == asked == 3


def test_results_without_a_verdict_say_which_command_gives_one():
    with pytest.raises(StepError, match="`thresher step evaluate` writes it"):
        written(rows(*POOL), pl.DataFrame({"id": ["r0"]}), FakeEngine())


def test_an_answer_that_could_not_be_judged_grows_nothing():
    table = pl.DataFrame({"id": ["r0", "r1"], "student_correct": [None, False]})
    assert grow(rows(*POOL), table, FakeEngine(reply=lambda t, i: "fresh"))["parent_id"].to_list() == ["r1"]


def test_a_parent_without_text_is_short_and_never_asked_about():
    teacher = FakeEngine()
    made = written(rows(("", "a"), ("q", "")), wrong(2), teacher)
    assert why(made) == {"short of the quota: its parent has nothing to show": 2} and not teacher.asked


def clustered(*answers):
    """Rows of clusters a, b, c …, each with the student's verdicts as letters: + right, - wrong, ? not known."""
    said = [(n, verdict) for n, verdicts in enumerate(answers) for verdict in verdicts]
    pool = rows(*[(f"Pick: a, b\ntext {i}", "a") for i in range(len(said))], diversity_cluster=[n for n, _ in said])
    verdicts = [{"+": True, "-": False, "?": None}[v] for _, v in said]
    return pool, pl.DataFrame({"id": pool["id"], "student_correct": verdicts})


@pytest.mark.parametrize(
    ("settings", "parents"),
    [
        pytest.param({}, [0, 1, 5, 9, 13], id="all that were wrong"),
        pytest.param({"weak_clusters": 1}, [0, 1], id="of the weakest cluster"),
        pytest.param({"weak_clusters": 1, "of": "every"}, [0, 1, 2], id="all of it that was answered"),
        pytest.param({"weak_clusters": 2}, [0, 1, 13], id="one wrong of two is weaker than one of four"),
        pytest.param({"weak_clusters": 9}, [0, 1, 5, 9, 13], id="more clusters than there are"),
    ],
)
def test_it_grows_in_the_clusters_where_the_student_is_right_least_often(settings, parents):
    (pool, verdicts), numbers = clustered("--+?", "+-++", "+-++", "+-"), count()
    teacher = FakeEngine(reply=lambda text, i: f"quite another one, number {next(numbers)}")
    made = grow(pool, verdicts, teacher, **settings)
    assert sorted(int(p[1:]) for p in made["parent_id"]) == parents


def test_one_wrong_row_makes_no_cluster_weaker_than_three():
    (pool, verdicts), numbers = clustered("-", "---"), count()
    teacher = FakeEngine(reply=lambda text, i: f"quite another one, number {next(numbers)}")
    assert set(grow(pool, verdicts, teacher, weak_clusters=1)["parent_id"]) == {"r1", "r2", "r3"}


def test_weak_clusters_want_clusters_and_every_row_is_said_of_weak_clusters_alone():
    with pytest.raises(StepError, match="run `kmeans-cluster` first"):
        grow(rows(*POOL), wrong(3), FakeEngine(), weak_clusters=1)
    with pytest.raises(ValueError, match="say with weak_clusters how many"):
        ll.LLM2LLM(of="every")


def test_a_truncated_last_item_and_one_with_two_answer_marks_are_refused():
    """Check 7 of the method's specification, through the whole step."""
    said = (
        "Question: two and two, how many?\nAnswer: 4 #### 4\nQuestion: three and four in all?\nAnswer: 7 #### 7 #### 8"
    )
    reply = f"{said}\nQuestion: five and six, how"

    class Cut(FakeEngine):
        def generate(self, prompts, **how):
            return [[Completion(reply, truncated=True)] for _ in prompts]

    pool = rows(("What is one and one?", "It is 2 #### 2"))
    made = written(pool, wrong(1), Cut(), attempts=1, per_parent=3)  # asked three times, and the same each time
    refused = {"its answer has not one mark": 3, "cut at max_tokens": 3, "near to another row": 2}
    assert why(made) == refused | {"short of the quota: asked 1 times": 2} and made["drop_reason"].null_count() == 1
