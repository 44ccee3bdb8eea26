"""What `thresher schedule` decides before it speaks with a server, and what its forms hold."""

from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint
from prefect.states import Failed
from prefect.utilities.callables import parameter_schema
from typer.testing import CliRunner

from curation.step import STEPS, find_step
from flows import serve, single, step_flows
from flows.access import ServerError
from flows.approval import REFUSED, approved
from flows.config import ConfigError
from flows.deployments import LOOP_FORM, schedule_of
from flows.responses import Remembered
from flows.run import Lease, run_step
from flows.schedule import scheduling, when
from flows.tasks import server_is_gone
from storage.importing import import_files
from storage.store import Store, StoreError
from synthesis.fingerprint import EngineError
from tests.fakes import FakeEngine
from tests.flows.stores import corrected_store

ROOT = Path(__file__).parents[2]
ROW_OF_FILE = '{{"instruction": "Question {0}?", "output": "Answer {0}."}}\n'


@pytest.mark.parametrize(
    "said, told",
    [
        ({"cron": "0 3 * *"}, "--cron '0 3 \\* \\*'"),
        ({"cron": "0 3 * * *", "timezone": "Mars/Olympus"}, "--timezone 'Mars/Olympus'"),
        ({"every": "soon"}, "such as 30m, not 'soon'"),
        ({"every": "0m"}, "such as 30m, not '0m'"),
        ({"cron": "0 3 * * *", "every": "1h"}, "two ways"),
        ({"every": "1h", "timezone": "UTC"}, "--timezone is of --cron"),
    ],
)
def test_a_time_that_is_none_is_named(said, told):
    with pytest.raises(ConfigError, match=told):
        schedule_of(when(**{"cron": None, "every": None, "timezone": None} | said))


@pytest.mark.parametrize(
    "words, told",
    [
        (["--cron", "0 3 * *"], "--cron '0 3 \\* \\*'"),
        (["--on-import", "a name/no name"], "'a name/no name' is no dataset name"),
        (["--every", "1h", "--name", ""], "'' is no dataset name"),
        (["--every", "1h", "--name", LOOP_FORM], "no dataset name"),  # so no config has the name of the blank form
    ],
)
def test_what_is_wrong_is_said_before_a_server_is_started(tmp_path, words, told):
    ran = CliRunner().invoke(
        scheduling,
        ["schedule", str(ROOT / "examples/snips/loop.yaml"), *words, "--store", str(tmp_path)],
    )
    with pytest.raises((ConfigError, StoreError), match=told):
        raise ran.exception
    assert not (tmp_path / "prefect").exists()


def test_who_serves_ends_with_a_word_when_the_server_has_gone(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(serve, "SILENT_SECONDS", 0)
    monkeypatch.setattr(serve, "LOOK_SECONDS", 0)
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9/api has gone"):
        serve.until_ended(lambda: pytest.fail("looked"))


def test_times_become_schedules():
    assert schedule_of(when(None, "90m", None)).interval == timedelta(minutes=90)
    nightly = schedule_of(when("0 3 * * *", None, "Europe/Berlin"))
    assert (nightly.cron, nightly.timezone) == ("0 3 * * *", "Europe/Berlin")


@pytest.mark.parametrize("name", sorted(STEPS))
def test_the_form_of_a_step_has_the_help_the_bounds_and_the_defaults_of_its_settings(name):
    step = find_step(name)
    form = parameter_schema(step_flows.flow_of(step)).model_dump(exclude_unset=True)
    assert all(told.get("description") for told in form["properties"].values())
    shown = form["definitions"][step.config.__name__]["properties"]
    wanted = step.config.model_json_schema()["properties"]
    for field, said in wanted.items():
        assert shown[field]["description"]
        for what in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "default", "anyOf"):
            assert shown[field].get(what) == said.get(what), (field, what)


def test_the_shipped_deployments_are_all_steps_and_chains_and_can_be_loaded():
    said = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert {d["name"] for d in said} == {*STEPS, "loop", "curate", "synthesise", "train"}
    for one in said:
        flow = load_flow_from_entrypoint(one["entrypoint"])
        assert set(one["parameters"]) <= set(parameter_schema(flow).properties), one["name"]
        assert one["work_pool"]["name"] == "thresher" and "thresher" in one["tags"]


def test_a_config_that_is_gone_is_named_with_what_ends_its_schedule(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no config .*gone\.yaml any more; .*--remove"):
        single.loop.fn(tmp_path / "gone.yaml", root=tmp_path)


def test_a_scheduled_run_asks_again_for_a_server_that_is_gone_and_for_nothing_else(monkeypatch):
    gone, wrong = EngineError("there is no server"), EngineError("it refuses the key")
    gone.__cause__ = httpx.ConnectError("refused")
    states = [Failed(data=why) for why in (gone, wrong)]
    assert [server_is_gone(None, None, state) for state in states] == [False, False]  # a person is there to see
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "nightly")
    assert [server_is_gone(None, None, state) for state in states] == [True, False]


def test_a_pool_that_has_grown_pays_for_its_new_rows_alone(tmp_path):
    store, file, step = Store(tmp_path / "store"), tmp_path / "raw.jsonl", find_step("perplexity")
    engine = Asked()
    lease = Lease({"base": "fake"}, lambda: nullcontext({"base": Remembered(engine, store)}))
    paid = []
    for size in (6, 6, 9):
        file.write_text("".join(ROW_OF_FILE.format(i) for i in range(size)))
        pool = import_files(store, [file], "pool").dataset
        engine.seen.clear()
        scored = run_step(store, step, step.config(), pool, {}, lease)
        paid.append(sorted({text for text in engine.seen if text.startswith("Answer")}))
    assert store.manifest(scored).counts["rows"] == 9
    assert paid == [[f"Answer {i}." for i in range(6)], [], [f"Answer {i}." for i in (6, 7, 8)]]


class Asked(FakeEngine):
    """Remembers whose likelihood it was asked for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def logprobs(self, conversations):
        self.seen += [c[-1]["content"] for c in conversations]
        return super().logprobs(conversations)


# ---- a person's word


@pytest.fixture
def corrected(tmp_path) -> tuple[Store, str, str]:
    return corrected_store(tmp_path), "corrected", "before"


def test_refused_corrections_are_marked_and_their_parents_are_as_they_were(corrected):
    store, after, before = corrected
    assert approved(store, after, before, "word", lambda *_: (False, "worse than before")) == before
    told = store.read(store.resolve("word"))
    assert sorted(told["id"]) == ["n0", "n1", "r0", "r1", "r2"]
    reasons = dict(told.select("id", "drop_reason").iter_rows())
    assert reasons["n0"] == reasons["n1"] == f"{REFUSED}, worse than before"
    assert {i: reasons[i] for i in ("r0", "r1", "r2")} == dict(
        store.read(before).select("id", "drop_reason").iter_rows()
    )
    assert store.manifest(store.resolve("word")).counts["dropped by approval"] == 2


def test_a_word_is_asked_for_once_and_holds_for_the_run_that_comes_back(corrected):
    store, after, before = corrected
    asked = []

    def yes(*about):
        asked.append(about)
        return True, ""

    for _ in range(2):
        assert approved(store, after, before, "word", yes) == after
    assert len(asked) == 1


def test_nothing_is_asked_where_nothing_was_corrected(corrected):
    store, _, before = corrected
    assert approved(store, before, before, "word", lambda *_: pytest.fail("asked")) == before


def test_without_a_server_a_person_cannot_be_asked_and_that_is_said(corrected, monkeypatch):
    monkeypatch.setenv("THRESHER_UNRECORDED", "1")
    with pytest.raises(StoreError, match="approve=false"):
        approved(*corrected, "word")
