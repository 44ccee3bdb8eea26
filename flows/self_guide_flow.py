"""Self-Guide whole (arXiv 2407.12874): from examples to the student's own rows, its training, and what that gave.

For every task and seed: grow, mark copies and what is near a held-out row, train on what is left, answer the held-out
rows; beside that the untuned model, prompted with the instruction alone and with examples. With `search`, settings are
tried before, each on the validation rows of all tasks with the first seed, and that one is taken whose least gain over
few-shot prompting is the greatest. The held-out rows have no say in it.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from prefect import flow

from curation.step import StepError
from flows import assemble, cards, page
from flows.cells import through
from flows.config import Use, train_settings
from flows.engines import release
from flows.loop import Turn
from flows.own_steps import load_steps
from flows.recording import if_recorded
from flows.report import unscorable
from flows.rule_page import publish
from flows.self_guide_config import SelfGuideConfig, Setting
from flows.self_guide_page import markdown, scores_of, told
from flows.tasks import bring_in
from storage.store import Store


@dataclass(frozen=True, slots=True)
class Task:
    """Datasets of a task that have nothing to do with what the student writes."""

    name: str
    heldout: str
    guarded: str
    validation: str
    prompted: str  # the untuned model's answers to the held-out rows


@dataclass(frozen=True, slots=True)
class Chain:
    """A task with a seed and a setting, as far as it has come; or why it went no further."""

    task: Task
    seed: int
    setting: Setting
    grown: str = ""
    marked: str = ""
    own: str = ""
    adapter: str = ""
    tested: str = ""
    failed: str | None = None

    @property
    def label(self) -> str:
        return f"{self.task.name}, seed {self.seed}, "

    def turn(self, config: SelfGuideConfig, root: Path, steps: int = 1) -> Turn:
        return Turn(config.loop(self.task.name, steps), root, self.seed, 1, None, self.label)


@if_recorded
@flow(name="self-guide", persist_result=False)
def self_guide(config: SelfGuideConfig, folder: Path, root: Path, workers: int = 1) -> dict[str, Any]:
    """Every task with every seed, the search before them if it is asked for; returns what the page says."""
    store = Store(root)
    load_steps(folder / file for file in config.steps)
    with cards.publishing():
        tasks = [_task(config, folder, root, name) for name in config.tasks]
        shown = {(t.name, seed): _few_shot(config, root, t, seed) for t in tasks for seed in config.seeds}
        tried = _search(config, root, tasks, workers) if config.search else []
        setting = best(tried) if tried else config.own()
        chains = [Chain(task, seed, setting) for task in tasks for seed in config.seeds]
        chains = _run(config, root, chains, "heldout", workers)
    said = told(config, store, setting, tried, chains, shown)
    text = markdown(said)
    publish(store, f"self-guide-{config.name}", said, text)
    (store.root / "reports" / f"self-guide-{config.name}.html").write_text(page.as_html(text), encoding="utf-8")
    return said


def _task(config: SelfGuideConfig, folder: Path, root: Path, name: str) -> Task:
    store, loop = Store(root), config.loop(name)
    turn = Turn(loop, root, config.seeds[0], 0, None, f"{name}, ")
    pool = bring_in(f"{name}, import the examples", root, folder / loop.pool, loop.name)
    heldout = bring_in(f"{name}, import the held-out set", root, folder / loop.heldout, f"{loop.name}-heldout")
    guarded = turn.guard(pool, heldout)
    live = store.read(guarded, ["drop_reason", "split"]).filter(pl.col("drop_reason").is_null())["split"].to_list()
    for split, why in (("train", "to show as an example"), ("validation", "to search a setting by")):
        if split not in live and (split == "train" or config.search):
            raise StepError(f"task {name}: of {len(live)} live rows none is left {why}; give it more rows")
    validation = assemble.where(store, guarded, "split", "validation")
    return Task(name, heldout, guarded, validation, turn.evaluate("evaluate prompted", heldout, None))


def _few_shot(config: SelfGuideConfig, root: Path, task: Task, seed: int, rows: str | None = None) -> str:
    """The untuned model's answers where examples stand before each prompt: as many as the student is shown."""
    turn = Chain(task, seed, config.own()).turn(config, root)
    most = config.use(task.name).config().examples
    choice = turn.apply(Use(step="random", **{"with": {"rows": most}}), task.guarded, name="examples")
    examples = assemble.taken(turn.store, task.guarded, choice)
    what = "evaluate few-shot" if rows is None else "evaluate few-shot on validation"
    return turn.evaluate(what, rows or task.heldout, None, examples=examples)


def _run(config: SelfGuideConfig, root: Path, chains: list[Chain], on: str, workers: int) -> list[Chain]:
    """The chains with all their stages; `on` names the rows of a task that are answered in the end."""
    chains = through(chains, "grown", partial(_grow, config=config, root=root))
    release()
    chains = through(chains, "trained", partial(_train, config=config, root=root), workers)
    return through(chains, "tested", partial(_test, config=config, root=root, on=on), workers)


def _grow(chain: Chain, config: SelfGuideConfig, root: Path) -> Chain:
    """The student's rows that count: no copies of each other or of an example, and none near a held-out row."""
    turn, task = chain.turn(config, root), chain.task
    grown = turn.apply(config.use(task.name, chain.setting), task.guarded)
    both = assemble.together(turn.store, [task.guarded, grown])
    marked = turn.apply(Use(step="duplicates"), both)
    marked = turn.apply(Use(step="heldout-overlap"), marked, heldout=task.heldout)
    return replace(chain, grown=grown, marked=marked, own=assemble.where(turn.store, marked, "method", "self-guide"))


def _train(chain: Chain, config: SelfGuideConfig, root: Path) -> Chain:
    rows = Store(root).manifest(chain.own).counts["live"]
    if not rows:
        raise StepError("nothing that the student wrote was kept, and there is nothing to train on")
    steps = math.ceil(rows * chain.setting.epochs / train_settings(config.train).batch_size)
    return replace(chain, adapter=chain.turn(config, root, steps).train("train", chain.own, chain.task.heldout))


def _test(chain: Chain, config: SelfGuideConfig, root: Path, on: str) -> Chain:
    rows = getattr(chain.task, on)
    return replace(chain, tested=chain.turn(config, root).evaluate(f"evaluate {on}", rows, chain.adapter))


def _search(config: SelfGuideConfig, root: Path, tasks: list[Task], workers: int) -> list[dict[str, Any]]:
    """Each setting with its gain on the validation rows of each task; None where a task came to nothing."""
    store, seed = Store(root), config.seeds[0]
    before = {task.name: _few_shot(config, root, task, seed, task.validation) for task in tasks}
    tried = []
    for setting in config.settings():
        chains = _run(config, root, [Chain(task, seed, setting) for task in tasks], "validation", workers)
        gains = {c.task.name: None if c.failed else gain(store, before[c.task.name], c.tested) for c in chains}
        tried.append(
            {"setting": setting, "gains": gains, "failed": [f"{c.label}{c.failed}" for c in chains if c.failed]}
        )
    return tried


def best(tried: list[dict[str, Any]]) -> Setting:
    """Of settings with gains by task that whose least gain is the greatest; the first of several."""
    whole = [one for one in tried if all(gain is not None for gain in one["gains"].values())]
    if not whole:
        raise StepError(f"no setting gave every task a student: {tried[0]['failed'][0]}")
    return max(whole, key=lambda one: min(one["gains"].values()))["setting"]


def gain(store: Store, before: str, after: str) -> float:
    """How much better the second one answers, on the mean of the rows whose response the metric can compare."""
    left_out = unscorable(store, [before, after])
    return float(scores_of(store, after, left_out).mean() - scores_of(store, before, left_out).mean())
