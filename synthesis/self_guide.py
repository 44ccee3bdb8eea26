"""Self-Guide (Zhao et al., 2024, arXiv 2407.12874): a student writes its own training set from examples of a task.

    inputs    epochs times so many prompts, each with the task, its examples, and some inputs written earlier as ones to
              differ from; where there are labels, each prompt asks for an input of a label drawn at random
    filters   length (of the examples, mean ± 2 standard deviations), noise, exact duplicates
    answers   the examples as a conversation, then the input: 20 samples, the 10 likeliest are kept; length, noise,
              self-consistency; where there are labels: which label it is, then as many of each label
    training  of the student on what is left, by `train`; the label that an input was asked for is forgotten

The examples of a task are rows whose prompts begin with the same instruction line; a dataset may hold several tasks.
The first example of a task stands for it: it is the parent of its rows. Not asked for is top-k (40 and 10 in the
paper's code), which no engine here has.
"""

import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import polars as pl
from pydantic import Field, model_validator

from curation.step import Completion, Engine, StepConfig, StepError, step
from storage.schema import Messages, message, prompt, response, with_examples
from synthesis import growing
from synthesis.growing import OF_GROWN, Allowance, Place, Question, Unread, Written, in_another_script
from synthesis.recital import Recited
from synthesis.retelling import input_of, task_of
from synthesis.self_guide_filters import balanced, bounds, consistent, is_noise, label_of

WRITE = """Write another input for this task{same}.
Task: {task}
{good}{worse}{answer}"""
_SAME, _WORSE = " that has the given answer", "These are not as good; write something else:\n"
_VERSION = 1  # raise it with the wording above

LEAST = 3  # answers that must be left to agree
OF_TASK, OF_ANSWERS = 5_000_000, 2_000_000  # seeds: from one task to the next, and from inputs to answers
OF_INPUTS = 0.25  # of a bound in tokens or seconds; the rest is for answers, of which there are more
TEMPERATURE = {True: 0.7, False: 0.9}  # by whether there are labels: the paper's pipelines
FILTERS = {True: (True, False), False: (False, True)}  # of the lengths of inputs and of outputs, likewise


class SelfGuide(StepConfig):
    labels: list[str] = Field(default_factory=list)
    """Answers of a classification; repeat the option for each. Without any the answers are free text."""

    epochs: int = Field(40, ge=1, le=1000)
    """How often inputs are asked for; each time it is shown some that it wrote before."""

    prompts: int = Field(10, ge=1)
    """Inputs that are asked for each time."""

    rows: int = Field(0, ge=0)
    """Inputs of a task after which no more are asked for; 0 is as many as come."""

    examples: int = Field(8, ge=1)
    """Most examples of a task that are shown at once, drawn anew each time."""

    temperature: float | None = Field(None, gt=0, le=2)
    """Sampling temperature of inputs; 0.7 with labels and 0.9 without, if not given."""

    max_tokens: int = Field(500, ge=1)
    """Longest input and longest answer, in tokens; what is cut there is refused."""

    samples: int = Field(20, ge=1, le=100)
    """Answers that are drawn for each input."""

    likeliest: int = Field(10, ge=1)
    """Of these, the likeliest that are looked at."""

    answer_temperature: float = Field(0.2, gt=0, le=2)
    """Sampling temperature of answers."""

    structured: bool = False
    """Hold the answers to the labels, by the engine."""

    min_frequency: float = Field(0.2, ge=0, le=1)
    """Share of the answers that must say the same."""

    lengths: Literal["auto", "both", "inputs", "outputs", "neither"] = "auto"
    """What must be about as long as the examples: with labels inputs, without labels outputs, if auto."""

    noise: list[str] = Field(default_factory=list)
    """Phrases that no input and no answer may have, beside the built-in ones; repeat the option for each."""

    tokens: int | None = Field(None, ge=1)
    """Most tokens that the student may write: a quarter of them inputs, the others answers."""

    seconds: float | None = Field(None, gt=0)
    """Seconds of the student's work after which nothing more is asked; how far it comes differs from run to run."""

    round: int = Field(1, ge=0)
    """Turn of the loop, written into the new rows."""

    seed: int = 0
    """Seed of all that is drawn."""

    def columns(self) -> tuple[str, ...]:
        return ("split",)

    @model_validator(mode="after")
    def _labels_to_hold_to(self) -> Self:
        if self.structured and not self.labels:
            raise ValueError("structured holds answers to labels; name them, or leave it out")
        return self

    def measures(self) -> tuple[bool, bool]:
        """Whether the lengths of inputs and of outputs are looked at."""
        if self.lengths == "auto":
            return FILTERS[bool(self.labels)]
        return self.lengths in ("both", "inputs"), self.lengths in ("both", "outputs")


@dataclass(frozen=True, slots=True)
class Task:
    text: str  # the instruction line; empty where the prompts have none
    examples: list[dict[str, Any]]  # rows
    inputs: list[str]
    outputs: list[str]
    earlier: list[str]  # inputs that were written in earlier rounds


@step("self-guide", kind="make", scope="dataset", writes=" ".join(OF_GROWN), version=3)
def guide(
    rows: pl.DataFrame, cfg: SelfGuide, student: Engine, training_text: pl.DataFrame | None = None
) -> pl.DataFrame:
    """New rows of a task that the student writes itself, inputs and answers, from a few examples (Self-Guide).

    DATASET holds the examples: rows whose prompts begin with the same instruction line. What was written and not kept
    is there too, as dropped rows that say why: `thresher review` lists the reasons.
    """
    found, written, recited = tasks(rows), [], Recited(training_text)
    for number, task in enumerate(found):
        _check_labels(task, cfg.labels)
        seed = (cfg.seed * 1009 + cfg.round) * 1024 + OF_TASK * number
        asked = inputs(task, cfg, _part(student, cfg, OF_INPUTS / len(found)), seed, recited)
        kept = [w for w in asked if w.refused is None]
        written += annotate(task, kept, cfg, _part(student, cfg, (1 - OF_INPUTS) / len(found)), seed + OF_ANSWERS)
        written += [w for w in asked if w.refused is not None]
    return growing.frame("self-guide", written, student.identity, cfg.round)


def tasks(rows: pl.DataFrame) -> list[Task]:
    """The tasks of a dataset, by their instruction lines, as they come; examples are imported rows alone."""
    grown = [m for m in rows.filter(pl.col("round") > 0)["messages"].to_list() if len(m) > 1]
    examples = rows.filter(pl.col("round") == 0)
    if "split" in examples.columns:
        examples = examples.filter(pl.col("split") == "train")
    found: dict[str, list[dict[str, Any]]] = {}
    for row in examples.select("id", "messages", "source").to_dicts():
        said = row["messages"]
        if len(said) > 1 and input_of(said).strip() and response(said).strip():
            found.setdefault(task_of(said), []).append(row)
    said = {text: [row["messages"] for row in some] for text, some in found.items()}
    return [
        Task(t, some, [*map(input_of, said[t])], [*map(response, said[t])], [own_part(m, t) for m in grown])
        for t, some in found.items()
    ]


def own_part(messages: Messages, task: str) -> str:
    """What stands below the instruction line of a task, or the whole question where there is none."""
    asked = messages[-2]["content"] or ""
    return asked.removeprefix(f"{task}\n") if task else asked


def inputs(task: Task, cfg: SelfGuide, allowance: Allowance, seed: int, recited: Recited) -> list[Written]:
    """Inputs that the student wrote, as rows without an answer; none of what it was trained on."""
    known = {*task.inputs, *task.earlier}
    low, high = bounds(task.inputs)
    measured, _ = cfg.measures()

    def ask(place: Place, attempt: int, kept: list[Messages]) -> list[Question]:
        rng = random.Random(f"{cfg.seed} {cfg.round} {task.text} {attempt}")
        return [input_question(task, [own_part(m, task.text) for m in kept], cfg, rng) for _ in range(cfg.prompts)]

    def read(place: Place, text: str, cut: bool) -> list[Messages | Unread]:
        text = text.removeprefix("Input:").strip()
        if cut or not text:
            return [Unread(text, "cut at max_tokens" if cut else "empty")]
        return [answered(task, text, "")]

    def refuse(place: Place, new: Messages) -> str | None:
        text = own_part(new, task.text)
        if measured and not low <= len(text) < high:
            return "input of another length"
        if is_noise(text, cfg.noise):
            return "input with noise"
        if text in known:
            return "input there already"
        if in_another_script(text, task.inputs[0]):
            return "input in another script"
        if text in recited:
            return "recited"
        known.add(text)
        return None

    return growing.grow(
        [Place(task.examples[0], cfg.rows or None)],
        allowance,
        attempts=cfg.epochs,
        seed=seed,
        how={"max_tokens": cfg.max_tokens, "temperature": cfg.temperature or TEMPERATURE[bool(cfg.labels)]},
        ask=ask,
        read=read,
        refuse=refuse,
    )


def input_question(task: Task, earlier: list[str], cfg: SelfGuide, rng: random.Random) -> Question:
    """A request for one input: the examples' own in another order, and up to ten that are to be differed from."""
    good = rng.sample(task.inputs, min(cfg.examples, len(task.examples)))
    worse = rng.sample(earlier, min(rng.randint(1, 10), len(earlier)))
    label = rng.choice(cfg.labels) if cfg.labels else None
    said = WRITE.format(
        same=_SAME if label else "",
        task=task.text,
        good="".join(f"Input: {text}\n" for text in good),
        worse=_WORSE + "".join(f"- {text}\n" for text in worse) if worse else "",
        answer=f"Answer: {label}" if label else "",
    )
    return Question([{"role": "user", "content": said.strip()}], f"self-guide/{_VERSION}")


def annotate(task: Task, new: list[Written], cfg: SelfGuide, allowance: Allowance, seed: int) -> list[Written]:
    """The rows with their answers; those without one that can be believed say why."""
    rng = random.Random(f"{cfg.seed} {cfg.round} {task.text}")
    examples = [row["messages"] for row in task.examples]
    shown = [rng.sample(examples, min(cfg.examples, len(examples))) for _ in new]
    asked = [prompt(with_examples(w.messages, some)) for some, w in zip(shown, new, strict=True)]
    how: dict[str, Any] = {"max_tokens": cfg.max_tokens, "temperature": cfg.answer_temperature, "with_logprobs": True}
    how |= {"choices": cfg.labels} if cfg.structured and cfg.labels else {}
    said = allowance.ask(asked, seed=seed, n=cfg.samples, **how)
    out = []
    for one, samples in zip(new, said, strict=True):
        answer, why = agreed(samples, task, cfg) if samples is not None else ("", "no answer was asked for")
        out.append(replace(one, messages=[*one.messages[:-1], message("assistant", answer)], refused=why))
    return balance(out, cfg.labels)


def agreed(samples: list[Completion], task: Task, cfg: SelfGuide) -> tuple[str, str | None]:
    """The answer that the samples agree on, and why it is not taken, if it is not."""
    likely = sorted(samples, key=lambda c: (c.error is not None, -sum(c.logprobs)))[: cfg.likeliest]
    low, high = bounds(task.outputs)
    _, measured = cfg.measures()
    lost: Counter[str] = Counter()
    left = []
    for said in likely:
        text = said.text.strip()
        if said.error is not None:
            lost["failed"] += 1
        elif said.truncated:
            lost["cut"] += 1
        elif not text:
            lost["empty"] += 1
        elif measured and not low <= len(text) < high:
            lost["of another length"] += 1
        elif is_noise(text, cfg.noise):
            lost["with noise"] += 1
        else:
            left.append(text)
    if len(left) < min(LEAST, cfg.samples, cfg.likeliest):
        told = ", ".join(f"{n} {why}" for why, n in lost.items())
        return left[0] if left else "", f"too few answers are left: {told}"
    best = consistent(left, cfg.min_frequency)
    if best is None:
        return left[0], "its answers do not agree"
    if cfg.labels:
        label = label_of(best, cfg.labels)
        return label or best, None if label else "its answer is no label"
    return best, None


def balance(rows: list[Written], labels: list[str]) -> list[Written]:
    """The rows, those marked that are too many of their label."""
    if not labels:
        return rows
    live = [w for w in rows if w.refused is None]
    stay = iter(balanced([response(w.messages) for w in live], labels))
    why = "too many of its label"
    return [w if w.refused is not None or next(stay) else replace(w, refused=why) for w in rows]


def _check_labels(task: Task, labels: list[str]) -> None:
    known = {label.casefold() for label in labels}
    if strange := [o for o in task.outputs if o.strip().casefold() not in known] if labels else []:
        raise StepError(f"self-guide: an example answers {strange[0][:60]!r}, which is none of the labels {labels}")


def _part(student: Engine, cfg: SelfGuide, share: float) -> Allowance:
    tokens, seconds = cfg.tokens and int(cfg.tokens * share), cfg.seconds and cfg.seconds * share
    return Allowance(student, tokens, seconds)


def answered(task: Task, text: str, answer: str) -> Messages:
    """A row of the task with another input."""
    asked = f"{task.text}\n{text}" if task.text else text
    return [*task.examples[0]["messages"][:-2], message("user", asked), message("assistant", answer)]
