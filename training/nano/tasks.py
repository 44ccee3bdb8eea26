"""Builds the nano model's training conversations: judging, choosing among labels, writing requests, and plain text."""

import random
import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from training.nano.corpus import Corpus
from training.nano.labels import HELD_OUT_INTENTS, SNIPS_LABELS, intent_names
from training.nano.meaning import Meaning

JUDGE = "Is the proposed answer: (A) correct (B) incorrect (C) not sure? Reply with one letter."
SURE = (
    "Are you really sure that the proposed answer is correct? Choose again: (A) correct (B) incorrect (C) not sure. "
    "Reply with one letter."
)
GROW = "Write another input for this task that has the same answer.\nTask: {task}\nInput: {text}\nAnswer: {label}"
INSTRUCTIONS = (
    "Which of these does the request ask for: {labels}?",
    "Which of these does the request ask for: {labels}?",
    "Which of these fits the text: {labels}?",
    "Choose the label that fits: {labels}.",
    "What is this about: {labels}?",
    "Classify the request as one of: {labels}.",
    "Options: {labels}. Which one is meant?",
)
NEAREST = 8
BARRED = frozenset(SNIPS_LABELS) | {name.replace("_", " ") for name in HELD_OUT_INTENTS}


class Turn(NamedTuple):
    role: str
    pieces: tuple[str, ...]  # a piece that has a sentence vector is taught it at its last token
    weight: float  # of the turn's tokens in the loss


class Item(NamedTuple):
    text: str
    right: str
    wrong: tuple[str, ...]  # the first half are near misses
    intent: str


class Source(NamedTuple):
    corpus: Corpus
    meaning: Meaning
    names: dict[str, list[str]]
    by_intent: dict[str, list[str]]
    alike: dict[str, list[str]]  # request: the nearest others of its intent


def open_source(corpus: Corpus, meaning: Meaning) -> Source:
    by_intent: dict[str, list[str]] = defaultdict(list)
    for intent, text in corpus["requests"]:
        by_intent[intent].append(text)
    alike = {}
    for texts in by_intent.values():
        vectors = meaning["vectors"][[meaning["rows"][text] for text in texts]]
        order = np.argsort(-(vectors @ vectors.T), axis=1)[:, 1 : NEAREST + 1]
        alike.update({text: [texts[i] for i in row] for text, row in zip(texts, order, strict=True)})
    return Source(corpus, meaning, intent_names(), dict(by_intent), alike)


def restyled(texts: tuple[str, ...], rng: random.Random) -> tuple[str, ...]:
    """Texts in small letters, half the time written as others write: a capital first, a stop last, words as names."""
    if rng.random() < 0.5:
        return texts
    stop, named = rng.choice(("", "", ".", "?")), rng.choice((0.0, 0.0, 0.2, 0.5))
    found = []
    for text in texts:
        words = [word.capitalize() if len(word) > 3 and rng.random() < named else word for word in text.split(" ")]
        joined = " ".join(words)
        found.append(joined[:1].upper() + joined[1:] + stop)
    return tuple(found)


def user(*pieces: str) -> Turn:
    return Turn("user", pieces, 0.0)


def reply(text: str, weight: float = 1.0) -> Turn:
    return Turn("assistant", (text,), weight)


def intent_item(source: Source, rng: random.Random, wrongs: int = 7) -> Item:
    """A request with one of its intent's names, half of the wrong names taken from the intents most like it."""
    intent, text = rng.choice(source.corpus["requests"])
    near = rng.sample(source.meaning["neighbours"][intent], (wrongs + 1) // 2)
    far = [name for name in rng.sample(sorted(source.names), wrongs + 8) if name != intent and name not in near]
    wrong = [rng.choice(source.names[name]) for name in near + far[: wrongs - len(near)]]
    return Item(*restyled((text,), rng), rng.choice(source.names[intent]), tuple(wrong), intent)


def phrase_item(source: Source, rng: random.Random, wrongs: int = 7) -> Item:
    """Any short text with the phrase nearest to it."""
    number = rng.randrange(len(source.meaning["texts"]))
    phrases, near = source.meaning["phrases"], source.meaning["nearest"][number]
    right = phrases[near[min(int(rng.expovariate(1.0)), 3)]]
    wrong = [phrases[rng.choice(source.meaning["misses"][number])]] + [rng.choice(phrases) for _ in range(wrongs)]
    wrong = [phrase for phrase in wrong if not set(phrase.split()) & set(right.split()[-1:])]
    return Item(source.meaning["texts"][number], right, tuple(wrong[:wrongs]), "")


def word_item(source: Source, rng: random.Random, wrongs: int = 7) -> Item:
    """Any short text with two of its own words as the label, which teaches that shared words count."""
    texts = rng.sample(source.meaning["texts"], wrongs + 1)
    labels = []
    for text in texts:
        words = [word for word in dict.fromkeys(re.findall(r"[a-z]{4,}", text.lower()))] or ["thing"]
        labels.append(" ".join(rng.sample(words, min(len(words), rng.choice((1, 2, 2, 3))))))
    labels = [label if label not in BARRED else "thing" for label in labels]
    return Item(texts[0], labels[0], tuple(label for label in labels[1:] if label not in texts[0].lower()), "")


MAKERS = (intent_item, phrase_item, word_item)


def draw(source: Source, rng: random.Random, shares: tuple[float, float, float] = (0.65, 0.25, 0.1)) -> Item:
    return rng.choices(MAKERS, weights=shares)[0](source, rng)


def question(item: Item, rng: random.Random, plain: bool = False) -> tuple[tuple[str, ...], list[str]]:
    """The pieces of a classification prompt, and its labels in order."""
    labels = list(item.wrong)
    rng.shuffle(labels)
    labels = [*labels[: rng.randint(1, 7)], item.right]
    rng.shuffle(labels)
    template = INSTRUCTIONS[0] if plain else rng.choice(INSTRUCTIONS)
    before, after = template.split("{labels}")
    pieces = [before]
    for number, label in enumerate(labels):
        pieces += [", ", label] if number else [label]
    return (*pieces, f"{after}\n", item.text), labels


def classify(source: Source, rng: random.Random) -> list[Turn]:
    """Few of the labels are intents' names, which could be learned by heart in place of being read in the list."""
    item = draw(source, rng, (0.4, 0.4, 0.2))
    pieces, _ = question(item, rng)
    return [user(*pieces), reply(item.right)]


def proposal(item: Item, labels: list[str], right: bool, rng: random.Random) -> str:
    if right:
        return item.right
    inside = [label for label in labels if label != item.right] or list(item.wrong)
    return rng.choice(inside if rng.random() < 0.85 else item.wrong or tuple(inside))


def judge(source: Source, rng: random.Random) -> list[Turn]:
    """The project's own judging prompt, followed by further proposals or by the question whether it is sure."""
    item = draw(source, rng)
    pieces, labels = question(item, rng)
    if rng.random() < 0.25:
        pieces = ("Request: ", item.text)
    right = rng.random() < 0.5
    turns = [user(*pieces, "\n\nProposed answer: ", proposal(item, labels, right, rng), "\n\n" + JUDGE)]
    turns.append(reply("AB"[not right], 3.0))
    if rng.random() < 0.35:
        if rng.random() < 0.5:
            turns[-1] = reply("AB"[right], 0.0)
        return [*turns, user(SURE), reply("AB"[not right], 2.0)]
    for _ in range(rng.randint(0, 2)):
        right = rng.random() < 0.5
        turns.append(user("Proposed answer: ", proposal(item, labels, right, rng), "\n\n" + JUDGE))
        turns.append(reply("AB"[not right], 3.0))
    return turns


def ask(source: Source, rng: random.Random) -> list[Turn]:
    """Short yes-or-no questions about one text: many judgements for few tokens."""
    item = draw(source, rng)
    turns: list[Turn] = []
    for number in range(rng.randint(2, 6)):
        right = rng.random() < 0.5 or not item.wrong
        label = item.right if right else rng.choice(item.wrong[len(item.wrong) // 2 :] * 2 + item.wrong)
        if item.intent and right:
            label = rng.choice(source.names[item.intent])
        start = ("Request: ", item.text, "\nIs this about: ") if not number else ("Is this about: ",)
        turns += [user(*start, label, "? yes or no"), reply("yes" if right else "no", 3.0)]
    return turns


def pair(source: Source, rng: random.Random) -> list[Turn]:
    """Whether two requests ask for the same thing."""
    intent, text = rng.choice(source.corpus["requests"])
    turns: list[Turn] = []
    for number in range(rng.randint(1, 3)):
        same = rng.random() < 0.5
        near = rng.choice(source.meaning["neighbours"][intent] if rng.random() < 0.4 else sorted(source.by_intent))
        other = rng.choice(source.by_intent[intent if same or near == intent else near])
        start = ("Request: ", text, "\n") if not number else ()
        turns += [user(*start, "Same as: ", other, "\nyes or no?")]
        turns.append(reply("yes" if same or near == intent else "no", 3.0))
    return turns


def grow(source: Source, rng: random.Random) -> list[Turn]:
    """A request of the same intent near to the given one, in the project's wording, or any one for the intent."""
    item = intent_item(source, rng)
    if rng.random() < 0.2:
        return [user("Write a request for: ", item.right), reply(rng.choice(source.by_intent[item.intent]), 0.6)]
    given = rng.choice(source.by_intent[item.intent])
    given, other = restyled((given, rng.choice(source.alike[given])), rng)
    item = item._replace(text=given)
    pieces, _ = question(item, rng)
    task = "".join(pieces[:-1]).strip()
    start, rest = GROW.split("{task}")
    middle, last = rest.split("{text}")
    last = last.replace("{label}", "")
    return [user(start, task, middle, item.text, last, item.right), reply(other, 0.6)]


def names(source: Source, rng: random.Random) -> list[Turn]:
    """A column of short texts, phrases and words, read for the sake of their sentence vectors."""
    keys = rng.choices(source.meaning["phrases"], k=3) + rng.choices(source.meaning["texts"], k=2)
    keys += [rng.choice(several) for several in rng.choices(list(source.names.values()), k=3)]
    keys += rng.choices(list(source.meaning["rows"]), k=4)
    rng.shuffle(keys)
    return [user(*[piece for key in keys for piece in (key, "\n")])]


def echo(source: Source, rng: random.Random) -> list[Turn]:
    """One of a short list said again, which teaches to copy."""
    phrases = [*rng.choices(source.meaning["phrases"], k=2), *rng.choices(list(source.meaning["rows"])[-3000:], k=2)]
    rng.shuffle(phrases)
    number = rng.randrange(4)
    if rng.random() < 0.5:
        return [user("Say again: ", phrases[number]), reply(phrases[number])]
    listed = [piece for phrase in phrases for piece in (", ", phrase)][1:]
    return [user(f"Which of these starts with {phrases[number].split()[0]}: ", *listed, "?"), reply(phrases[number])]


def task(source: Source, rng: random.Random) -> list[Turn]:
    """A row of another public task, answered, or judged with a row's answer that is its own or another's."""
    instruction, text, answer = rng.choice(source.corpus["tasks"])
    prompt = f"{instruction}\n{text}"
    if rng.random() < 0.5:
        return [user(prompt), reply(answer, 0.5)]
    others = [row[2] for row in rng.choices(source.corpus["tasks"], k=80) if row[0] == instruction and row[2] != answer]
    right = rng.random() < 0.5 or not others
    shown = answer if right else rng.choice(others)
    turns = [user(f"{prompt}\n\nProposed answer: {shown}\n\n{JUDGE}"), reply("AB"[not right], 1.5)]
    return [*turns, user(SURE), reply("AB"[not right], 0.5)] if rng.random() < 0.3 else turns


def chat(source: Source, rng: random.Random) -> list[Turn]:
    asked, answer = rng.choice(source.corpus["chats"])
    return [user(asked), reply(answer, 0.3)]


def prose(source: Source, rng: random.Random) -> list[Turn]:
    return [Turn("", (rng.choice(source.corpus["prose"]),), 0.3)]


BUILDERS = {
    "judge": judge, "ask": ask, "classify": classify, "pair": pair, "grow": grow, "names": names, "echo": echo,
    "task": task, "chat": chat, "prose": prose,
}
# Share of examples by kind at the start, in the middle and at the end of the training.
KINDS = ("judge", "ask", "classify", "pair", "grow", "names", "echo", "task", "chat", "prose")
MIXES = tuple(dict(zip(KINDS, shares, strict=True)) for shares in (
    (3, 7, 6, 1, 1, 1, 2, 0, 0, 1),
    (6, 3, 9, 1, 3, 1, 1.5, 1, 0.4, 2),
    (7, 2, 9, 1, 4, 0.5, 0.5, 1.5, 0.4, 1.5),
))


def mix_at(progress: float) -> dict[str, float]:
    """The shares at a moment of the training, 0 to 1, in a straight line between the three mixes."""
    place = min(max(progress, 0.0), 1.0) * (len(MIXES) - 1)
    left = min(int(place), len(MIXES) - 2)
    part = place - left
    return {kind: (1 - part) * MIXES[left][kind] + part * MIXES[left + 1][kind] for kind in BUILDERS}


def example(source: Source, rng: random.Random, shares: dict[str, float]) -> list[Turn]:
    kind = rng.choices(list(shares), weights=list(shares.values()))[0]
    return BUILDERS[kind](source, rng)
