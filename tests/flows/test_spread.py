"""Who works on which piece, with workers that are threads of this process; `test_cluster.py` has Ray's."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from curation.step import STEPS, StepError
from flows.cluster import check_address, elsewhere, job_of, places
from flows.cluster_worker import Done, Worker, Wrong
from flows.crew import Crew
from flows.engine_settings import OpenAI
from flows.engines import EngineError, EngineSpec, leases
from flows.own_steps import ConfigError
from flows.run import run_step
from flows.spread import Gone, spread
from storage.schema import ROW
from storage.store import Manifest, Store, StoreError
from tests.rows import rows


@dataclass
class Threads:
    """Satisfies `flows.spread.Crew`; `dies` says of a worker's number and its message whether it ends there.

    That is over the message, once it has said that it has it, or `before` it came.
    """

    size: int
    dies: Callable[[int, Any], bool | Literal["before"]] = lambda number, message: False
    workers: dict[int, Worker] = field(default_factory=dict)
    on_its_way: dict[Future, int] = field(default_factory=dict)
    dying: set[int] = field(default_factory=set)
    begun: int = 0
    worked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.threads = ThreadPoolExecutor(self.size + 1)

    def staff(self, wanted: int) -> list[int]:
        while len(self.workers) < min(wanted, self.size):
            self.workers[self.begun] = Worker()
            self.begun += 1
        return [n for n in self.workers if n not in self.on_its_way.values()]

    def share(self, message: Any) -> Any:
        return message

    def send(self, worker: int, message: Any) -> None:
        how = self.dies(worker, message)
        if worker in self.dying or how:
            over = how is True and hasattr(message, "columns")
            self.dying.add(worker)
            future: Future = Future()
            future.set_result(("begun",) if over else Gone("it was out of memory"))
        else:
            future = self.threads.submit(self.workers[worker].turn, message)
        self.on_its_way[future] = worker

    def said(self) -> Iterator[tuple[int, Any]]:
        for future in wait(self.on_its_way, 10, FIRST_COMPLETED).done:
            worker, said = self.on_its_way.pop(future), future.result()
            if isinstance(said, Gone):
                del self.workers[worker]
            if isinstance(said, Done):
                self.worked.append(worker)
            yield worker, said

    def rest(self) -> None: ...

    def end(self) -> None:
        self.workers = {}


def pool(root: Path, shards: int = 6) -> tuple[Store, str]:
    store = Store(root)
    said = rows(*[(f"What is {i} plus {i}?", f"{i} plus {i} is {2 * i}.") for i in range(shards * 3)])
    parts = [(store.put_part(f"pool{i}", said[i * 3 : i * 3 + 3], ROW),) for i in range(shards)]
    return store, store.seal(Manifest("pool-1", "rows", "import", 1, {}, {}, {}, tuple(parts)))


def run(store: Store, source: str, crew: Threads | None, step: str = "gopher-repetition", base: Path | None = None):
    """A step by the crew, or in this process alone."""
    found, seen = STEPS[step], []
    models = {"base": EngineSpec(model=str(base))} if base else {}
    lease = leases(models, store)

    def work(place, its, config, pieces, tables):
        return spread(crew, place, job_of(its, config, models, tables), pieces)

    lease = replace(lease, elsewhere=work if crew else None)
    made = run_step(store, found, found.config(), source, {}, lease, lambda done, total: seen.append((done, total)))
    return store.manifest(made), seen


def test_a_crew_makes_the_dataset_that_one_process_makes(tmp_path):
    crew = Threads(3)
    spread_out, seen = run(*pool(tmp_path / "many"), crew)
    alone, _ = run(*pool(tmp_path / "one"), None)
    assert spread_out == alone
    assert sorted(seen) == [(n, 18) for n in (0, 3, 6, 9, 12, 15, 18)]
    assert len(crew.worked) == 6


def test_what_the_workers_asked_is_kept_and_counted_as_if_it_were_asked_here(tmp_path, tiny_model):
    many, one = pool(tmp_path / "many"), pool(tmp_path / "one")
    spread_out, _ = run(*many, Threads(2), "perplexity", tiny_model)
    alone, _ = run(*one, None, "perplexity", tiny_model)
    assert spread_out == alone
    spent = [s.run_facts(alone.id) for s, _ in (many, one)]
    for facts in spent:
        del facts["started"], facts["seconds"], facts["engine_seconds"]
    assert spent[0] == spent[1] and spent[0]["requests"] == 18
    again, *_ = (Store(tmp_path / "again"),)
    many[0].answers.copy_into(again.answers.path)  # what they said lies in the store, and costs nothing a second time
    run(*pool(again.root), Threads(2), "perplexity", tiny_model)
    assert again.run_facts(alone.id)["from_store"] == 18


def test_a_worker_that_dies_over_a_piece_or_before_loses_nothing(tmp_path):
    died = []

    def dies(number: int, message: Any) -> bool:
        first = number == 0 and hasattr(message, "columns")  # over its first piece
        died.extend([number] * (first or number == 1))  # and another one before
        return first or number == 1

    crew = Threads(2, dies)
    spread_out, _ = run(*pool(tmp_path / "many"), crew)
    assert sorted(died) == [0, 1]
    assert spread_out == run(*pool(tmp_path / "one"), None)[0]
    assert len(crew.worked) == 6 and not {0, 1} & set(crew.worked)


def test_what_a_worker_had_spent_on_a_piece_is_counted_though_it_died(tmp_path, tiny_model):
    many, one = pool(tmp_path / "many"), pool(tmp_path / "one")
    heard = []

    def dies(number: int, message: Any) -> bool:
        heard.extend([message] * (number == 0 and message is None))  # that it began, and that its answers are kept
        return number == 0 and len(heard) == 2

    crew = Threads(2, dies)
    spread_out, _ = run(*many, crew, "perplexity", tiny_model)
    assert spread_out == run(*one, None, "perplexity", tiny_model)[0] and 0 not in crew.worked
    facts, alone = (s.run_facts(spread_out.id) for s, _ in (many, one))
    assert (facts["requests"], facts["from_store"]) == (alone["requests"] + 3, 3)  # a shard of three, asked for twice
    assert facts["prompt_tokens"] == alone["prompt_tokens"] > 0  # and read once


def test_a_shard_that_ends_every_worker_is_named_and_the_others_are_kept(tmp_path):
    store, source = pool(tmp_path)
    deadly = store.read_shard(store.manifest(source).shards[3])["id"][0]
    crew = Threads(2, lambda number, message: deadly in _ids(message))
    with pytest.raises(StoreError, match=r"gopher-repetition: shard 4 of the 6 .* ended 3 workers.*out of memory"):
        run(store, source, crew)
    assert not crew.workers  # and none is left
    kept = len(list(store.root.glob("parts/*/*.parquet"))) - 6
    _, seen = run(store, source, None)
    assert seen[0] == (kept * 3, 18) and kept >= 1


def test_workers_that_were_dead_before_a_shard_came_say_nothing_of_it(tmp_path):
    """Five workers; one dies over the last shard, and three that had nothing to do died with it."""
    store, source = pool(tmp_path / "many")
    last, died = store.read_shard(store.manifest(source).shards[5])["id"][0], []

    def dies(number: int, message: Any) -> bool | Literal["before"]:
        if last not in _ids(message) or len(died) == 4:
            return False
        died.append(number)
        return True if len(died) == 1 else "before"

    crew = Threads(5, dies)
    spread_out, _ = run(store, source, crew)
    assert len(died) == 4 and spread_out == run(*pool(tmp_path / "one"), None)[0]


def test_what_another_process_makes_meanwhile_is_not_sent(tmp_path):
    store, source = pool(tmp_path)
    crew, other = Threads(1), []

    def dies(number: int, message: Any) -> bool:
        if crew.worked and not other:
            other.append(run(store, source, None)[0])
        return False

    crew.dies = dies
    assert [run(store, source, crew)[0]] == other and len(crew.worked) == 2


def _ids(message: Any) -> list[str]:
    return message["id"].to_list() if hasattr(message, "columns") else []


def test_what_goes_wrong_in_a_worker_is_told_as_here(tmp_path):
    store, source = pool(tmp_path)
    with pytest.raises(StepError, match=r"language-filter reads .*language_code"):
        run(store, source, Threads(2), "language-filter")


def test_a_worker_is_sent_the_adapter_that_it_does_not_have(tmp_path, tiny_model, tiny_adapters):
    adapter, gone = tiny_adapters[0], tmp_path / "elsewhere" / "adapter"
    spec = EngineSpec(model=str(tiny_model), adapter=str(adapter))
    job = job_of(STEPS["perplexity"], STEPS["perplexity"].config(), {"base": spec}, {})
    folders = job.folders | {("base", "adapter"): replace(job.folders["base", "adapter"], path=str(gone))}
    worker, sent = Worker(), []
    asked = worker.turn(replace(job, folders=folders))
    while isinstance(asked, tuple):
        what, folder, name, start = asked
        assert (what, folder) == ("file", str(gone))
        sent.append(name)
        asked = worker.turn((adapter / name).read_bytes()[start : start + 100_000])
    assert asked is None and set(sent) == {p.name for p in adapter.iterdir()}
    worker.close()  # it has the same identity, or it would have refused
    assert not worker._folder.exists()


def test_a_worker_with_another_model_refuses(tmp_path, tiny_model):
    spec = EngineSpec(model=str(tiny_model))
    job = job_of(STEPS["perplexity"], STEPS["perplexity"].config(), {"base": spec}, {})
    said = Worker().turn(replace(job, identities={"base": "local-3:other:float32"}))
    assert isinstance(said, Wrong) and isinstance(said.why, EngineError)
    assert "the base would answer otherwise" in str(said.why) and "local-3:other:float32" in str(said.why)


@pytest.mark.parametrize("address", ["here", "host", "http://host:1", "ray://host", "host:99999999", "a b:1", ""])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ConfigError, match="is no address; say local, auto, host:port or ray://host:port"):
        check_address(address)


def test_an_address_at_which_nobody_listens_is_one_line_with_the_remedy():
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(EngineError, match=rf"there is no Ray cluster at {address} .*refused.*ray start"):
            check_address(address)


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"pip install 'thresher\[ray\]'"):
        check_address("local")


@pytest.mark.parametrize(
    ("gpus", "cards", "room"),
    [((8, 8), 1, 16), ((8, 8), 4, 4), ((2, 3), 2, 2), ((2, 2, 2), 4, 0), ((), 1, 0), ((0, 4), 3, 1)],
)
def test_a_worker_has_its_gpus_on_one_node(gpus, cards, room):
    nodes = [{"CPU": 16.0, **({"GPU": float(n)} if n else {})} for n in gpus]
    assert places(nodes, cards) == room
    assert places(nodes, 0) == 16 * len(gpus)


def test_what_ray_says_when_its_cluster_is_gone_is_one_line_with_the_remedy():
    ray = pytest.importorskip("ray")

    def gone(*_, **__):
        raise ray.exceptions.RaySystemError("the head is gone")

    class Ray:
        exceptions = ray.exceptions
        remote = put = wait = gone

    crew = Crew(Ray, "10.0.0.5:6379", 0, room=1)
    for call in (lambda: crew.staff(1), lambda: crew.share(1), lambda: list(crew.said())):
        with pytest.raises(
            EngineError, match=r"there is no Ray cluster at 10\.0\.0\.5:6379 .*the head is gone.*ray start"
        ):
            call()
    crew.end()


def test_what_sees_all_rows_or_asks_a_server_stays_here():
    at = "127.0.0.1:6379"
    assert elsewhere(at, STEPS["perplexity"], {"base": EngineSpec()}) is not None
    assert elsewhere(None, STEPS["perplexity"], {"base": EngineSpec()}) is None
    served = EngineSpec(model="m", settings=OpenAI(url="http://127.0.0.1:1/v1"))
    assert elsewhere(at, STEPS["clear-score"], {"judge": served}) is None
    for name in ("kmeans-cluster", "random", "duplicates"):
        assert elsewhere(at, STEPS[name], {}) is None
