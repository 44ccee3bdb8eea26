"""How surely one answer is better than another: CLEAR's judgement of a candidate, with BSDetector's confidence in it.

    side by side   which is better, A or B? in both orders; p is the lower of the two confidences, and 0 where the judge
                   does not prefer the candidate both times                                     (Chen and Mueller, 2024)
    alone          is it correct? asked of each, S' of the candidate and S of the given answer; where one of the two is
                   right, it is the candidate with p = S' (1 - S) / (S' (1 - S) + S (1 - S'))   (ours, for weak judges)

The paper leaves the orders open. A judgement is a letter, and a letter that differs contradicts, so that similarity and
exact match are one number within BSDetector: alpha has no say, and no NLI model is asked.
"""

from dataclasses import dataclass

import numpy as np

from curation.bsdetector import (
    REPLY_TOKENS,
    UNREAD,
    Letters,
    Reading,
    confidence,
    letter_in,
    letters,
    reflect,
)
from curation.step import Engine, Failed
from storage.schema import Messages

COMPARE = """{question}

Answer A: {a}

Answer B: {b}

Which answer is better, A or B? Reply with one letter."""
SIDES = ["A", "B"]


@dataclass(frozen=True, slots=True)
class Preference:
    confidence: np.ndarray  # that the candidate is better, shape (rows,); NaN where the judge failed
    unread: np.ndarray  # whether a reply could not be read, shape (rows,)
    errors: list[str | None]


def side_by_side(
    questions: list[str],
    given: list[str],
    candidates: list[str],
    judge: Engine,
    reading: Reading,
    beta: float,
    samples: int,
    seed: int,
) -> Preference:
    """The judge compares; only where it prefers the candidate in both orders is it asked how sure it is."""
    orders = [Judgements(questions, given, candidates, "B"), Judgements(questions, candidates, given, "A")]
    verdicts = [letters(order.asked, SIDES, judge, reading) for order in orders]
    errors = [next((v.error for v in both if isinstance(v, Failed)), None) for both in zip(*verdicts, strict=True)]
    unread = np.array([any(v is None for v in both) for both in zip(*verdicts, strict=True)], dtype=bool)
    p = np.where([error is not None for error in errors], np.nan, 0.0)
    agreed = [
        i
        for i, both in enumerate(zip(*verdicts, strict=True))
        if all(_side(v) == order.wanted for v, order in zip(both, orders, strict=True))
    ]
    sure = []
    for order, found in zip(orders, verdicts, strict=True):
        some = order.only(agreed)
        reflected = reflect(some.texts, [f"Answer {order.wanted} is better."] * len(agreed), judge, reading)
        observed = _observed(some, [found[i] for i in agreed], judge, reading, samples, seed)
        sure.append(confidence(observed.confidence, reflected.credit, beta))
        for k, i in enumerate(agreed):
            unread[i] |= reflected.unread[k] > 0 or observed.unread[k]
            errors[i] = errors[i] or reflected.errors[k] or observed.errors[k]
    p[agreed] = np.minimum(*sure)
    return Preference(p, unread, errors)


def alone(questions: list[str], given: list[str], candidates: list[str], judge: Engine, reading: Reading) -> Preference:
    """The judge reflects on each answer by itself; two that it finds alike right or wrong are even."""
    old, new = (reflect(questions, answers, judge, reading) for answers in (given, candidates))
    better, worse = new.credit * (1 - old.credit), old.credit * (1 - new.credit)
    even = np.where(np.isnan(better + worse), np.nan, 0.5)
    p = np.divide(better, better + worse, out=even, where=better + worse > 0)
    errors = [one or other for one, other in zip(old.errors, new.errors, strict=True)]
    return Preference(p, (old.unread + new.unread) > 0, errors)


@dataclass(frozen=True, slots=True)
class Judgements:
    """Which of two answers to each question is better, in one order of the two."""

    questions: list[str]
    a: list[str]
    b: list[str]
    wanted: str  # the side where the candidate stands

    @property
    def texts(self) -> list[str]:
        return [COMPARE.format(question=q, a=a, b=b) for q, a, b in zip(self.questions, self.a, self.b, strict=True)]

    @property
    def asked(self) -> list[Messages]:
        return [[{"role": "user", "content": text}] for text in self.texts]

    def only(self, places: list[int]) -> "Judgements":
        return Judgements(*([column[i] for i in places] for column in (self.questions, self.a, self.b)), self.wanted)


def _observed(
    some: Judgements, verdicts: list[Letters], judge: Engine, reading: Reading, samples: int, seed: int
) -> Preference:
    """How consistently the judge says what is wanted; a sample that nobody can read counts half."""
    if reading == "probability":  # what infinitely many samples would come to
        told = np.array([v[SIDES.index(some.wanted)] for v in verdicts])
        return Preference(told, np.zeros(len(told), dtype=bool), [None] * len(told))
    sampled = judge.generate(some.asked, n=samples, max_tokens=REPLY_TOKENS, temperature=1.0, seed=seed)
    found = [[letter_in(s.text, SIDES) for s in samples if s.error is None] for samples in sampled]
    credits = [[UNREAD if f is None else float(f == some.wanted) for f in read] for read in found]
    return Preference(
        np.array([np.mean(c) if c else np.nan for c in credits]),
        np.array([None in read for read in found], dtype=bool),
        [None if c else s[0].error for c, s in zip(credits, sampled, strict=True)],
    )


def _side(verdict: Letters) -> str | None:
    return SIDES[int(verdict.argmax())] if isinstance(verdict, np.ndarray) else None
