"""BSDetector (Chen and Mueller, 2023, arXiv 2308.16175): how sure may one be of an answer? Ask a model, several times.

    consistency o_i = alpha * s_i + (1 - alpha) * r_i,  O = mean of o_i over k sampled answers y_i        alpha 0.8
                s_i = 1 - contradiction of (y, y_i), by an NLI model, mean of both orders;  r_i = [y = y_i]
    reflection  S   = mean of two chained choices between A = 1, B = 0, C = 0.5
    confidence  C   = beta * O + (1 - beta) * S                                                           beta 0.7

The authors' code is not public; the weights are also those of uqlm's BSDetector (0.56, 0.14 and 0.30). Where there is
no NLI model, as offline, s_i is the cosine of sentence embeddings, not under 0: a named deviation.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from curation.same_answer import plain, same
from curation.step import Classifier, Completion, Embedder, Engine, Failed
from storage.schema import Messages

REFLECT = """{question}

Proposed answer: {answer}

Is the proposed answer: (A) correct (B) incorrect (C) not sure? Reply with one letter."""
CHALLENGE = """Are you really sure that the proposed answer is correct? \
Choose again: (A) correct (B) incorrect (C) not sure. Reply with one letter."""
LETTERS = ["A", "B", "C"]
CREDIT = np.array([1.0, 0.0, 0.5])
UNREAD = 0.5  # credit of a reply that nobody can read: that of C
REPLY_TOKENS = 64  # of a reply that ends in a letter: a brief explanation fits

Reading = Literal["probability", "letter"]
Letters = np.ndarray | Failed | None  # weights of the letters summing to 1; None where the reply could not be read


@dataclass(frozen=True, slots=True)
class Consistency:
    observed: np.ndarray  # O, shape (rows,); NaN where no answer could be sampled
    similarity: np.ndarray  # mean of s_i, shape (rows,); NaN there too, and where similarity is left out
    errors: list[str | None]


@dataclass(frozen=True, slots=True)
class Reflection:
    credit: np.ndarray  # S, shape (rows,); NaN where the engine failed
    unread: np.ndarray  # replies that could not be read, of two, shape (rows,)
    errors: list[str | None]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Given and sampled answers, one pair for each sample that there is."""

    row: np.ndarray
    given: list[str]
    sampled: list[str]

    @property
    def same(self) -> np.ndarray:
        return np.array([same(y, s) for y, s in zip(self.given, self.sampled, strict=True)], dtype=bool)


def pairs_of(given: list[str], sampled: list[list[Completion]]) -> Pairs:
    found = [(i, s.text) for i, samples in enumerate(sampled) for s in samples if s.error is None]
    rows = np.array([i for i, _ in found], dtype=int)
    return Pairs(rows, [given[i] for i in rows], [text for _, text in found])


def consistency(
    sampled: list[list[Completion]], pairs: Pairs, similar: np.ndarray | None, alpha: float, why: dict[int, str]
) -> Consistency:
    """O of each row; `similar` is s of each pair, and without it equality alone counts.

    A pair whose s is NaN, since it could not be judged, is left out, as is a sample that failed; `why` says it by row.
    """
    rows, equal = len(sampled), pairs.same.astype(float)
    credits = equal if similar is None else alpha * similar + (1 - alpha) * equal
    told = np.isfinite(credits)
    counts = np.bincount(pairs.row[told], minlength=rows)

    def mean(of_pairs: np.ndarray) -> np.ndarray:
        sums = np.bincount(pairs.row[told], weights=of_pairs[told], minlength=rows)
        return np.divide(sums, counts, out=np.full(rows, np.nan), where=counts > 0)

    errors = [
        None if n else why.get(i) or next((s.error for s in samples if s.error), "no answer was sampled")
        for i, (samples, n) in enumerate(zip(sampled, counts, strict=True))
    ]
    return Consistency(mean(credits), np.full(rows, np.nan) if similar is None else mean(similar), errors)


def embedding_similarity(pairs: Pairs, embedder: Embedder) -> np.ndarray:
    """Cosine of each pair of texts as they are compared, not under 0; the same text is 1."""
    left, right = [plain(y) for y in pairs.given], [plain(s) for s in pairs.sampled]
    texts = sorted({*left, *right})
    if not texts:
        return np.zeros(0)
    place = {text: i for i, text in enumerate(texts)}
    vectors = embedder.embed(texts)
    cosine = np.einsum("ij,ij->i", vectors[[place[t] for t in left]], vectors[[place[t] for t in right]])
    return np.where(pairs.same, 1.0, np.clip(cosine, 0.0, 1.0))


def nli_similarity(pairs: Pairs, questions: list[str], nli: Classifier) -> tuple[np.ndarray, dict[int, str]]:
    """1 - contradiction, mean of both orders, the question before each side; the same text is 1 and is not asked.

    A pair that comes again is asked once. One that could not be judged, such as a longer one than fits, is NaN, and the
    second value says why, by row.
    """
    equal = pairs.same
    sides = [
        (f"{questions[i]}\n{y.strip()}", f"{questions[i]}\n{s.strip()}")
        for i, y, s, alike in zip(pairs.row, pairs.given, pairs.sampled, equal, strict=True)
        if not alike
    ]
    asked = list(dict.fromkeys([*sides, *((s, y) for y, s in sides)]))
    place = contradiction(nli.labels)
    said = dict(zip(asked, nli.classify(asked) if asked else [], strict=True))
    odds = {pair: float("nan") if isinstance(found, Failed) else found[place] for pair, found in said.items()}
    out = np.ones(len(equal))
    out[~equal] = [1 - (odds[y, s] + odds[s, y]) / 2 for y, s in sides]
    why = {
        int(i): f"nli: {found.error}"
        for i, (y, s) in zip(pairs.row[~equal], sides, strict=True)
        for found in (said[y, s], said[s, y])
        if isinstance(found, Failed)
    }
    return out, why


def contradiction(labels: Iterable[str]) -> int | None:
    """Place of the class that says that one side contradicts the other; None where no class does."""
    return next((i for i, label in enumerate(labels) if "contradict" in label.lower()), None)


def reflect(questions: list[str], answers: list[str], judge: Engine, reading: Reading) -> Reflection:
    """Ask twice whether each answer is right, the second time as a challenge to the first reply."""
    asked = [
        [{"role": "user", "content": REFLECT.format(question=q, answer=a)}]
        for q, a in zip(questions, answers, strict=True)
    ]
    first = letters(asked, LETTERS, judge, reading)
    again = [_challenged(question, said) for question, said in zip(asked, first, strict=True)]
    second = letters(again, LETTERS, judge, reading)
    both = list(zip(first, second, strict=True))
    credit = np.array([np.mean([_credit(f), _credit(s)]) for f, s in both])
    unread = np.array([(f is None) + (s is None) for f, s in both], dtype=int)
    errors = [next((said.error for said in pair if isinstance(said, Failed)), None) for pair in both]
    return Reflection(credit, unread, errors)


def letters(prompts: list[Messages], of: list[str], judge: Engine, reading: Reading) -> list[Letters]:
    """What the judge chooses for each prompt: probabilities of the letters, or the last one of its greedy reply."""
    if reading == "probability":
        return [_weights(found) for found in judge.choose(prompts, of)]
    return [_written(reply, of) for [reply] in judge.generate(prompts, max_tokens=REPLY_TOKENS)]


def confidence(consistency: np.ndarray, reflection: np.ndarray, beta: float) -> np.ndarray:
    return beta * consistency + (1 - beta) * reflection


def letter_in(text: str, of: list[str]) -> str | None:
    """The last of the letters that stands alone in a text."""
    found = re.findall(rf"\b([{''.join(of)}])\b", text)
    return found[-1] if found else None


def _challenged(asked: Messages, first: Letters) -> Messages:
    said = LETTERS[int(first.argmax())] if isinstance(first, np.ndarray) else "C"
    return [*asked, {"role": "assistant", "content": said}, {"role": "user", "content": CHALLENGE}]


def _credit(said: Letters) -> float:
    if isinstance(said, Failed):
        return float("nan")
    return UNREAD if said is None else float(said @ CREDIT)


def _weights(found: list[float] | Failed) -> Letters:
    if isinstance(found, Failed):
        return found
    return np.array(found) / sum(found) if sum(found) > 0 else None


def _written(reply: Completion, of: list[str]) -> Letters:
    if reply.error is not None:
        return Failed(reply.error)
    said = letter_in(reply.text, of)
    return None if said is None else np.array([float(letter == said) for letter in of])
