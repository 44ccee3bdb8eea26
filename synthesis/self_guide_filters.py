"""What Self-Guide keeps of what a student wrote: pure functions of texts (arXiv 2407.12874, sections 3.1 and 3.2).

length        int(m - 2s) <= characters < int(m + 2s), m the mean and s the standard deviation (population) of the
              examples, widened to hold them all
noise         no phrase by which a model speaks of itself or to its user, and no frame of the prompt
consistency   the commonest of the answers, if its share of those that are left is min_frequency or more
label         the label that stands last in the answer
balance       as many of each label as of the rarest; where that has fewer than 5, five times as many at most
"""

import statistics
from collections import Counter
from collections.abc import Sequence

# The paper has a fixed list of such phrases, and a list for each task; these are ours, compared in small letters.
CHATTER = (
    "as an ai",
    "language model",
    "i'm sorry",
    "i am sorry",
    "i cannot",
    "i can't help",
    "happy to help",
    "here to help",
    "great question",
    "good question",
    "thanks for asking",
    "thank you for asking",
    "here is a new",
    "here's a new",
    "let me know if",
    "input:",
    "output:",
    "answer:",
    "\n\n",
    "___",
)
_RARE, _TIMES = 5, 5


def bounds(texts: Sequence[str]) -> tuple[int, int]:
    """From how many characters, and under how many; the paper's interval holds nothing where all are equal."""
    lengths = [len(t) for t in texts]
    low, high = interval(lengths)
    return min(low, *lengths), max(high, *(n + 1 for n in lengths))


def interval(lengths: Sequence[int]) -> tuple[int, int]:
    """The paper's."""
    mean, deviation = statistics.fmean(lengths), statistics.pstdev(lengths)
    return int(mean - 2 * deviation), int(mean + 2 * deviation)


def is_noise(text: str, more: Sequence[str] = ()) -> bool:
    said = text.casefold()
    return any(phrase.casefold() in said for phrase in (*CHATTER, *more))


def consistent(answers: Sequence[str], min_frequency: float) -> str | None:
    """The commonest; of several the shortest, then the first; None where it is not common enough."""
    if not answers:
        return None
    counted = Counter(answers)
    best = min(counted, key=lambda a: (-counted[a], len(a)))  # the first of equals
    return best if counted[best] / len(answers) >= min_frequency else None


def label_of(answer: str, labels: Sequence[str]) -> str | None:
    """The label that ends last in an answer, the longest of those that end there; None where there is none."""
    said = answer.casefold()
    ends = {label: said.rfind(label.casefold()) + len(label) for label in labels if label.casefold() in said}
    return max(ends, key=lambda label: (ends[label], len(label)), default=None)


def balanced(found: Sequence[str], labels: Sequence[str]) -> list[bool]:
    """Which answers stay, the first of each label, so that no label has more than the rarest allows."""
    least = min((found.count(label) for label in labels), default=0)
    most = least if least >= _RARE else _TIMES * max(least, 1)
    seen: Counter[str] = Counter()
    stay = []
    for label in found:
        seen[label] += 1
        stay.append(seen[label] <= most)
    return stay
