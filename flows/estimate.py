"""What a run would take: rows, tokens, minutes and disk, before anything is done."""

import time
from pathlib import Path

import numpy as np

from curation.step import find_step
from flows.config import LoopConfig, Use
from flows.engines import model_folder
from flows.forecast import Asked, Lengths, asked, lengths_of_words
from storage.copies import Copies
from storage.reading import raw_file, read_batches, tell_format
from storage.schema import prompt, response
from storage.store import StoreError
from training.sizes import parameters

BACKWARD = 2.0  # cost of the LoRA backward pass, in forward passes
EFFICIENCY = 0.4  # share of the machine's matrix speed that a small model reaches
LONGEST = 1 << 15


def estimate(config: LoopConfig, folder: Path) -> str:
    """A few lines for a person; minutes are rough, grown rows are counted as if all were written."""
    rows, mean_of = _count(folder / config.pool, config.model)
    held, held_mean = _count(folder / config.heldout, config.model)
    tokens, held_tokens = (n * (m.prompt + m.response) for n, m in ((rows, mean_of), (held, held_mean)))
    budget = config.budget
    makes = [use for use in config.feedback if find_step(use.step).kind == "make"]
    grown = sum(_wanted(use) for use in makes)
    most = rows + grown * (budget.rounds - 1)
    mean = tokens / max(rows, 1)
    chosen = round(budget.tokens / max(mean, 1)) if budget.tokens else budget.rows
    batch = int(config.train.get("batch_size", 16))
    seeds = len(config.seeds)
    turns = [(use, budget.rounds * seeds if _by_student(config, use) else 1) for use in config.score]
    turns += [(use, (budget.rounds - 1) * seeds) for use in config.feedback]
    revised = [step for use in config.score if (step := find_step(use.step)).kind == "revise"]
    students = [step for step in revised if "student" in step.roles]  # each has one of its own
    trainings = seeds * (budget.rounds * (1 + len(students)) + (2 if config.baselines else 0))
    trained = trainings * budget.optimizer_steps * batch * mean
    tested = (trainings + 1) * held_tokens + seeds * (budget.rounds - 1) * (
        chosen + rows * config.validation
    ) * mean * 2
    students = {role for role, said in config.roles.items() if said.adapter == "last-student"}
    of_models = Asked()
    for use, times in turns:  # what is asked again of the same model is there already
        if use not in makes and times:
            again = asked(use.step, use.config(), mean_of, students) * (times - 1)
            of_models += (asked(use.step, use.config(), mean_of) + again) * most
    scored = of_models.read + of_models.written
    answer = Use(step="evaluate", **{"with": {"likelihood": False} | config.evaluate}).config()
    score = Use(step="evaluate", **{"with": config.evaluate | {"likelihood": True}}).config()
    of_models += asked("evaluate", answer, held_mean) * (held * (trainings + seeds))
    for use in config.check:
        of_models += asked(use.step, use.config(), held_mean) * (held * (trainings + seeds))
    fed = seeds * (budget.rounds - 1) * (chosen + rows * config.validation)
    of_models += asked("evaluate", score, mean_of) * fed
    for use in makes:
        each = asked(use.step, use.config(), mean_of)
        of_models += each * (_wanted(use) * (budget.rounds - 1) * seeds)
    work = 2 * parameters(model_folder(config.model)) * (scored + trained * (1 + BACKWARD) + tested)
    minutes = work / (_matrix_speed() * EFFICIENCY) / 60
    disk = (most * mean * 8 + most * 1600) * (1 + 0.3 * budget.rounds) * seeds / 2**20
    return "\n".join(
        [
            f"{config.name}: nothing is done, this is what `thresher run` would take at most",
            f"  rows     {rows:,} in the pool, {held:,} held out, up to {grown:,} grown a round",
            f"  choices  {budget.rounds} rounds of {chosen:,} rows, {seeds} seeds, {trainings} training runs",
            f"  models   {of_models.requests:,.0f} requests, {of_models.read:,.0f} tokens read, "
            f"{of_models.written:,.0f} written{', at most' if makes else ''}",
            f"  tokens   {scored:,.0f} scored, {trained:,.0f} trained on, {tested:,.0f} evaluated",
            f"  minutes  about {max(minutes, 0.1):,.1f} on this machine for the model's work",
            f"  disk     about {disk + trainings * 3:,.0f} MB",
        ]
    )


def _wanted(use: Use) -> int:
    """Rows that a step which makes rows may make; one without a quota makes no more than it asks for."""
    said = use.config().model_dump()
    return int(said.get("rows") or said.get("epochs", 0) * said.get("prompts", 0))


def _by_student(config: LoopConfig, use: Use) -> bool:
    """Whether a step asks the last student, so that it scores the pool anew in every round of every seed."""
    students = {role for role, said in config.roles.items() if said.adapter == "last-student"}
    step = find_step(use.step)
    return step.kind == "revise" or bool(students & set(step.roles))


def _count(path: Path, model: str) -> tuple[int, Lengths]:
    """Rows of a file, and the mean length of its prompts and responses by a sample."""
    from synthesis.chat import load_chat

    if not path.exists():
        raise StoreError(f"there is no file {path}; name one with `pool:` and `heldout:` in the config")
    chat = load_chat(model_folder(model))
    rows, sample = 0, []
    raw = raw_file(path)
    for batch in read_batches(raw, "estimate", tell_format(raw)[0], LONGEST, Copies()):
        rows += batch.rows.num_rows
        sample += batch.rows["messages"].slice(0, max(0, 2000 - len(sample))).to_pylist()
    prompts = [len(ids) for ids in chat.encode([prompt(messages) for messages in sample]) if isinstance(ids, list)]
    responses = [n + 1 for n in chat.count([response(messages) for messages in sample])]
    return rows, lengths_of_words(chat.count, float(np.mean(prompts or [0])), float(np.mean(responses or [0])))


def _matrix_speed() -> float:
    """Floating-point operations a second of this machine's CPU, by a quarter second of matrix products."""
    a, started, n = np.ones((768, 768), np.float32), time.perf_counter(), 0
    while time.perf_counter() - started < 0.25:
        a @ a
        n += 1
    return n * 2 * 768**3 / (time.perf_counter() - started)
