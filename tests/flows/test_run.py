import dataclasses
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

from curation.step import STEPS, Engine, Step, StepConfig, StepError, step
from flows.cost import cost
from flows.run import Lease, run_step
from storage.schema import ROW, message, row_id
from storage.store import Manifest, Store, key_of
from tests.fakes import FakeEngine
from tests.rows import rows


class Times(StepConfig):
    factor: int = 2
    """What lengths are multiplied by."""


def toy(name: str, kind: str, **options: str) -> Callable[[Callable[..., pl.DataFrame]], Step]:
    """A step that the registry does not keep, so that other tests do not meet it."""

    def register(fn: Callable[..., pl.DataFrame]) -> Step:
        made = step(name, kind, **options)(fn)
        del STEPS[name]
        return made

    return register


seen: list[list[str]] = []  # the ids that toy steps were handed, one list per call


@pytest.fixture(autouse=True)
def forget():
    seen.clear()


@toy("measure", "score", writes="measure_length")
def measure(rows: pl.DataFrame, cfg: Times) -> pl.DataFrame:
    """Length of the answer, times a factor."""
    seen.append(rows["id"].to_list())
    answers = pl.col("messages").list.last().struct.field("content")
    return rows.with_columns(measure_length=answers.str.len_chars() * cfg.factor)


@toy("number", "score", writes="number_place", scope="dataset")
def number(rows: pl.DataFrame, cfg: Times) -> pl.DataFrame:
    """Place of the row among all."""
    seen.append(rows["id"].to_list())
    return rows.with_columns(number_place=pl.int_range(pl.len(), dtype=pl.Int64))


@toy("drop-long", "filter", reads="measure_length")
def drop_long(rows: pl.DataFrame, cfg: Times) -> pl.DataFrame:
    """Drop answers longer than two characters."""
    seen.append(rows["id"].to_list())
    is_long = pl.col("measure_length") > 4
    return rows.with_columns(drop_reason=pl.when(is_long).then(pl.lit("drop-long: longer than 2")))


def pool(store: Store, *lengths: int, per_shard: int = 2) -> str:
    frame = rows(*[(f"q{n}", "x" * length) for n, length in enumerate(lengths)])
    cuts = [frame.slice(n, per_shard) for n in range(0, frame.height, per_shard)]
    parts = [store.put_part(key_of("pool", c["id"].to_list(), lengths), c, ROW) for c in cuts]
    id = f"pool-{key_of(lengths, per_shard)[:12]}"
    return store.seal(Manifest(id, "rows", "import", 1, {}, {}, {}, tuple((p,) for p in parts)))


def test_a_score_stands_beside_the_rows_in_their_shards(tmp_path):
    store = Store(tmp_path)
    source = pool(store, 1, 2, 3)
    made = run_step(store, measure, Times(), source)
    assert store.read(made)["measure_length"].to_list() == [2, 4, 6]
    assert seen == [["r0", "r1"], ["r2"]]
    kept = [shard[:1] for shard in store.manifest(made).shards]
    assert kept == list(store.manifest(source).shards)
    assert store.manifest(made).inputs == {"rows": source}
    assert store.manifest(made).counts == {"rows": 3, "live": 3}


def test_a_dataset_step_sees_all_rows_and_keeps_the_bounds_of_the_shards(tmp_path):
    store = Store(tmp_path)
    made = run_step(store, number, Times(), pool(store, 1, 2, 3))
    assert seen == [["r0", "r1", "r2"]]
    assert [shard["number_place"].to_list() for shard in store.shards(made)] == [[0, 1], [2]]


def test_a_second_run_computes_nothing(tmp_path):
    store = Store(tmp_path)
    source = pool(store, 1, 2, 3)
    made = run_step(store, measure, Times(), source)
    seen.clear()
    files = sorted(p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file())
    assert run_step(store, measure, Times(), source) == made
    assert seen == []
    assert sorted(p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()) == files


def test_another_config_is_another_dataset(tmp_path):
    store = Store(tmp_path)
    source = pool(store, 1, 2, 3)
    made = [run_step(store, measure, Times(factor=n), source) for n in (2, 3)]
    assert [store.read(m)["measure_length"][0] for m in made] == [2, 3]


def test_a_run_that_was_cut_short_goes_on_at_its_first_missing_part(tmp_path):
    store = Store(tmp_path)
    source = pool(store, 1, 2, 3, 4, 5, 6)

    def stop(done: int, total: int) -> None:
        assert total == 6
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_step(store, measure, Times(), source, progress=stop)
    assert store.ids() == [source]
    assert seen == [["r0", "r1"], ["r2", "r3"]]
    seen.clear()
    made = run_step(store, measure, Times(), source)
    assert seen == [["r4", "r5"]]
    assert store.read(made)["measure_length"].to_list() == [2, 4, 6, 8, 10, 12]


def test_what_another_process_makes_meanwhile_is_not_made_again(tmp_path):
    store = Store(tmp_path)
    source, other = pool(store, 1, 2, 3, 4, 5), []

    def first_part_is_done(done: int, total: int) -> None:
        if done and not other:
            other.append(run_step(Store(tmp_path), measure, Times(), source))

    made = run_step(store, measure, Times(), source, progress=first_part_is_done)
    assert [made] == other and store.read(made)["measure_length"].to_list() == [2, 4, 6, 8, 10]
    assert seen == [["r0", "r1"], ["r2", "r3"], ["r4"]]  # each by one of the two


def test_what_a_part_cost_is_noted_by_the_process_that_put_it(tmp_path):
    store, there = Store(tmp_path), []

    @toy("slow", "score", writes="slow_length")
    def slow(rows: pl.DataFrame, cfg: Times) -> pl.DataFrame:
        """Another process is quicker, and notes nothing."""
        if not there:
            there.append(True)
            run_step(store, slow, cfg, source)
            for noted in (tmp_path / "parts").glob("*/*.json"):
                noted.unlink()
        return rows.with_columns(slow_length=pl.lit(1))

    source = pool(store, 1, 2)
    run_step(store, slow, Times(), source)
    assert there and not list((tmp_path / "parts").glob("*/*.json"))


def test_a_pool_that_grew_pays_for_its_new_shards_only(tmp_path):
    store = Store(tmp_path)
    source, more = pool(store, 1, 2), rows(("q", "xyz"), id=["new"])
    run_step(store, measure, Times(), source)
    seen.clear()
    part = store.put_part(key_of("more"), more, ROW)
    grown = store.seal(Manifest("grown-1", "rows", "import", 1, {}, {}, {}, (*store.manifest(source).shards, (part,))))
    assert store.read(run_step(store, measure, Times(), grown))["measure_length"].to_list() == [2, 4, 6]
    assert seen == [["new"]]


def test_a_score_step_in_another_order_finds_its_parts(tmp_path):
    store = Store(tmp_path)
    source = pool(store, 1, 2, 3)
    one = run_step(store, measure, Times(), run_step(store, number, Times(), source))
    seen.clear()
    other = run_step(store, number, Times(), run_step(store, measure, Times(), source))
    assert seen == []
    assert store.read(one).equals(store.read(other).select(store.read(one).columns))


def test_many_steps_after_each_other_keep_every_column(tmp_path):
    store = Store(tmp_path)
    made = pool(store, 1, 2, 3)
    for each in (number, measure, drop_long, number, measure):
        made = run_step(store, each, Times(), made)
    read = store.read(made)
    assert set(read.columns) == {*ROW.names, "number_place", "measure_length"}
    assert read["id"].to_list() == ["r0", "r1", "r2"]
    assert read["drop_reason"].to_list() == [None, None, "drop-long: longer than 2"]


def test_dropped_rows_are_not_handed_to_a_step_and_are_put_back_in_their_place(tmp_path):
    store = Store(tmp_path)
    source = run_step(store, measure, Times(), pool(store, 3, 1, 2, 9))
    dropped = run_step(store, drop_long, Times(), source)
    assert store.manifest(dropped).counts == {"rows": 4, "live": 2, "dropped by drop-long": 2}
    seen.clear()
    made = run_step(store, number, Times(), dropped)
    assert seen == [["r1", "r2"]]
    assert store.read(made)["id"].to_list() == ["r0", "r1", "r2", "r3"]
    assert store.read(made)["number_place"].to_list() == [None, 0, 1, None]
    again = run_step(store, drop_long, Times(factor=3), dropped)
    assert store.read(again)["drop_reason"].to_list() == store.read(dropped)["drop_reason"].to_list()


def test_an_engine_is_opened_once_and_only_if_a_part_is_missing(tmp_path):
    store = Store(tmp_path)
    source, opened = pool(store, 1, 2, 3), []

    @toy("ask", "score", writes="ask_tokens")
    def ask(rows: pl.DataFrame, cfg: Times, judge: Engine) -> pl.DataFrame:
        """Tokens of the answers."""
        texts = [m[-1]["content"] for m in rows["messages"].to_list()]
        return rows.with_columns(ask_tokens=pl.Series(judge.count_tokens(texts)))

    @contextmanager
    def opening():
        opened.append("open")
        yield {"judge": FakeEngine()}
        opened.append("closed")

    def lease(identity: str) -> Lease:
        return Lease({"judge": identity}, opening)

    made = run_step(store, ask, Times(), source, lease=lease("fake"))
    assert opened == ["open", "closed"]
    assert store.manifest(made).engines == {"judge": "fake"}
    assert run_step(store, ask, Times(), source, lease=lease("fake")) == made
    assert opened == ["open", "closed"]
    assert run_step(store, ask, Times(), source, lease=lease("another")) != made
    assert len(opened) == 4


def test_what_a_part_cost_stays_with_the_part(tmp_path):
    store, spent = Store(tmp_path), {"requests": 7}

    def asked(rows, cfg):
        spent["requests"] += rows.height
        return measure.fn(rows, cfg)

    costly = dataclasses.replace(measure, fn=asked)
    lease = Lease(spent=spent)
    first = run_step(store, costly, Times(), pool(store, 1, 2, 3, 4), lease=lease)
    grown = run_step(store, costly, Times(), pool(store, 1, 2, 3, 4, 5), lease=lease)
    for dataset, requests in ((first, [2, 2]), (grown, [2, 2, 1])):
        own = [shard[-1] for shard in store.manifest(dataset).shards]
        assert [store.part_facts(part)["requests"] for part in own] == requests
        assert all(store.part_facts(part)["seconds"] >= 0 for part in own)


def test_new_rows_are_a_dataset_of_their_own(tmp_path):
    store = Store(tmp_path)

    @toy("grow", "make")
    def grow(rows: pl.DataFrame, cfg: Times) -> pl.DataFrame:
        """A child of the first row."""
        said = [message("user", "more?"), message("assistant", "more")]
        child = {"id": row_id(said, "test", rows["id"][0]), "messages": said, "source": "test", "round": 1}
        child |= {"method": "grow", "parent_id": rows["id"][0], "drop_reason": None}
        return pl.DataFrame([child], schema=rows.schema)

    read = store.read(run_step(store, grow, Times(), pool(store, 1, 2)))
    assert read["parent_id"].to_list() == ["r0"]


broken: dict[str, tuple[str, dict[str, str], Callable[[pl.DataFrame], pl.DataFrame]]] = {
    "it may not add, drop or reorder rows": ("score", {"writes": "x"}, lambda r: r.reverse().with_columns(x=1)),
    "it may not change ['source']": ("score", {"writes": "x"}, lambda r: r.with_columns(x=1, source=pl.lit("else"))),
    "it may not change ['y']": ("score", {"writes": "x"}, lambda r: r.with_columns(x=1, y=2)),
    "it promised ['x']": ("score", {"writes": "x"}, lambda r: r),
    "it may not remove ['method']": ("score", {"writes": "x"}, lambda r: r.with_columns(x=1).drop("method")),
    "it may not change ['messages']": (
        "filter",
        {},
        lambda r: r.with_columns(messages=pl.col("messages").list.tail(1)),
    ),
    "its drop_reason says who dropped the row and why: 'liar: …'": (
        "filter",
        {},
        lambda r: r.with_columns(drop_reason=pl.lit("too long")),
    ),
    "a choice has": ("select", {}, lambda r: r),
    "every new row names a parent that it was given": ("make", {}, lambda r: r),
    "it promised a table of ['x'], not ['id']": ("table", {"writes": "x"}, lambda r: r.select("id")),
}


@pytest.mark.parametrize("what", broken)
def test_a_broken_promise_is_an_error_that_names_the_step_and_leaves_nothing(tmp_path, what):
    store = Store(tmp_path)
    kind, options, body = broken[what]

    @toy("liar", kind, **options)
    def liar(rows: pl.DataFrame, cfg: Times) -> pl.DataFrame:
        """Does what it may not."""
        return body(rows)

    source = pool(store, 1, 2)
    with pytest.raises(StepError) as error:
        run_step(store, liar, Times(), source)
    assert str(error.value).startswith(f"liar is a {kind} step: {what}")
    assert store.ids() == [source]


@pytest.mark.parametrize("name", ["My step", "a:b", "a/b", "", "-a", "a_b", "..", "a--b"])
def test_a_step_whose_name_could_not_stand_in_an_id_is_refused(name):
    with pytest.raises(StepError, match="a name is of small letters and digits"):
        step(name, "score")


def test_what_a_step_lacks_is_named(tmp_path: Path):
    store = Store(tmp_path)
    source = pool(store, 1, 2)
    with pytest.raises(StepError, match=r"drop-long reads \['measure_length'\]"):
        run_step(store, drop_long, Times(), source)

    @toy("compare", "score", writes="x")
    def compare(rows: pl.DataFrame, cfg: Times, heldout: pl.DataFrame) -> pl.DataFrame:
        """Needs a table."""
        return rows.with_columns(x=heldout.height)

    with pytest.raises(StepError, match=r"compare needs the table \['heldout'\]"):
        run_step(store, compare, Times(), source)
    made = run_step(store, compare, Times(), source, {"heldout": pool(store, 1, 2, 3), "other": source})
    assert store.read(made)["x"].to_list() == [3, 3]
    assert "other" not in store.manifest(made).inputs


@toy("mend", "revise", revives="drop-long", writes="mend_done", reads="measure_length")
def mend(rows: pl.DataFrame, cfg: Times) -> pl.DataFrame:
    """A short answer in the place of every one of three characters, dropped or not."""
    seen.append(rows["id"].to_list())
    if "r4" in seen[-1] and cfg.factor == 3:
        raise KeyboardInterrupt
    parents = rows.filter(pl.col("measure_length") == 6)
    said = [[message("user", "q"), message("assistant", "ok")] for _ in parents["id"]]
    ids = [row_id(m, "test", parent) for m, parent in zip(said, parents["id"], strict=True)]
    new = parents.select(
        pl.Series("id", ids, dtype=pl.String),
        pl.Series("messages", said, dtype=rows.schema["messages"]),
        "source",
        "round",
        method=pl.lit("mend"),
        parent_id="id",
        drop_reason=pl.lit(None, dtype=pl.String),
        mend_done=pl.lit(True),
    )
    bad = pl.col("id").is_in(parents["id"].to_list())
    marked = rows.with_columns(
        mend_done=bad, drop_reason=pl.when(bad).then(pl.lit("mend: replaced")).otherwise("drop_reason")
    )
    return pl.concat([marked, new], how="diagonal_relaxed")


def measured(store: Store, *lengths: int) -> str:
    return run_step(store, measure, Times(), pool(store, *lengths))


def test_what_is_revised_is_marked_and_its_new_row_stands_beside_the_old_ones(tmp_path):
    store = Store(tmp_path)
    dropped = run_step(store, drop_long, Times(), measured(store, 3, 1, 9, 2))
    made = run_step(store, mend, Times(), dropped)
    assert seen[-2:] == [["r0", "r1"], ["r2", "r3"]]  # the dropped ones too
    rows_ = store.read(made)
    assert rows_["id"].to_list()[:4] == ["r0", "r1", "r2", "r3"] and rows_["parent_id"].to_list()[4:] == ["r0"]
    reasons = ["mend: replaced", None, "drop-long: longer than 2", None, None]
    assert rows_["drop_reason"].to_list() == reasons
    assert rows_["mend_done"].to_list() == [True, False, False, False, True]
    counts = {"rows": 5, "live": 3, "dropped by drop-long": 1, "dropped by mend": 1, "mend_done": 2}
    assert store.manifest(made).counts == counts
    kept = [shard[:-1] for shard in store.manifest(made).shards[:2]]
    assert kept == list(store.manifest(dropped).shards)


def test_rows_that_another_step_dropped_are_not_handed_to_what_revises(tmp_path):
    store = Store(tmp_path)
    dropped = run_step(store, drop_long, Times(), measured(store, 3, 3))
    other = dataclasses.replace(mend, revives="")
    made = run_step(store, other, Times(), dropped)
    assert seen[-1] == [] and store.read(made)["drop_reason"].to_list() == ["drop-long: longer than 2"] * 2


def test_a_revision_that_was_cut_short_goes_on_at_its_first_missing_part(tmp_path):
    whole, cut = Store(tmp_path / "whole"), Store(tmp_path / "cut")
    made = run_step(whole, mend, Times(), measured(whole, 3, 1, 3, 1, 3))
    source = measured(cut, 3, 1, 3, 1, 3)
    with pytest.raises(KeyboardInterrupt):
        run_step(cut, mend, Times(factor=3), source)
    seen.clear()
    again = run_step(
        cut, dataclasses.replace(mend, fn=lambda rows, cfg: mend.fn(rows, Times())), Times(factor=3), source
    )
    assert seen == [["r4"]]
    assert cut.read(again).equals(whole.read(made))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        pytest.param(lambda out: out.with_columns(drop_reason=None), "marks the parents", id="unmarked-parent"),
        pytest.param(lambda out: out.head(2), "marks the parents", id="marked-without-a-new-row"),
        pytest.param(lambda out: out.slice(1), "drop or reorder", id="a-row-is-gone"),
        pytest.param(lambda out: out.with_columns(source=pl.lit("other")), "may not change", id="another-column"),
        pytest.param(lambda out: out.with_columns(parent_id=pl.lit("r9")), "names a parent", id="no-parent"),
    ],
)
def test_a_revision_that_breaks_its_promise_is_refused(tmp_path, how, told):
    store = Store(tmp_path)
    broken = dataclasses.replace(mend, fn=lambda rows, cfg: how(mend.fn(rows, cfg)))
    with pytest.raises(StepError, match=told):
        run_step(store, broken, Times(), measured(store, 3, 1))


def test_a_step_says_in_its_run_what_it_asked_and_of_how_many_rows(tmp_path):
    store, spent = Store(tmp_path), {"requests": 7}

    def asked(rows, cfg):
        spent["requests"] += 3 * rows.height
        return measure.fn(rows, cfg)

    made = run_step(
        store, dataclasses.replace(measure, fn=asked), Times(), pool(store, 1, 2, 3), lease=Lease(spent=spent)
    )
    facts = store.run_facts(made)
    assert (facts["rows"], facts["requests"]) == (3, 9)
    assert cost(store, made).startswith("3.0 model calls a row")
    assert cost(store, run_step(store, number, Times(), made)) == ""


@toy("dear", "score", writes="dear_length")
def dear(rows: pl.DataFrame, cfg: Times, judge: Engine) -> pl.DataFrame:
    """Asks a judge for each row, and is cut short after the first time."""
    seen.append(rows["id"].to_list())
    judge.generate([[message("user", "?")]] * rows.height, max_tokens=1)
    if len(seen) == 1:
        raise KeyboardInterrupt
    return rows.with_columns(dear_length=pl.lit(1))


def test_what_a_step_spent_before_it_was_cut_short_is_in_its_account(tmp_path):
    store, spent = Store(tmp_path), {}

    class Priced(FakeEngine):
        def generate(self, prompts, **how):
            spent["cost"] = spent.get("cost", 0) + len(prompts)
            return super().generate(prompts, **how)

    @contextmanager
    def opened():
        yield {"judge": Priced()}

    lease, given = Lease({"judge": "x"}, opened, spent), pool(store, 1, 2, 3)
    with pytest.raises(KeyboardInterrupt):
        run_step(store, dear, Times(), given, lease=lease)
    made = run_step(store, dear, Times(), given, lease=lease)
    assert store.run_facts(made)["cost"] == 5  # the first part of two rows twice, the second of one once
