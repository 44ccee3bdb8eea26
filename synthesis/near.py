"""Which texts are nearly another one over again: ROUGE-L, F of the longest common subsequence of words (Lin, 2004)."""

import re
from collections import Counter
from collections.abc import Iterable

from rouge_score.rouge_scorer import RougeScorer

_WORD = re.compile(r"\w+")


class Words:
    """Words of any script; the scorer's own tokenizer knows a to z."""

    @staticmethod
    def tokenize(text: str) -> list[str]:
        return _WORD.findall(text.casefold())


_ROUGE = RougeScorer(["rougeL"], tokenizer=Words())


def rouge_l(one: str, other: str) -> float:
    return _ROUGE.score(one, other)["rougeL"].fmeasure


class Near:
    """Texts that grow in number, asked whether one of them is over the limit to another text.

    Of n words, more than n·limit/(2 - limit) must be shared for that. So only texts are compared that have one of the
    rarest words of which so many are left out that one of them must be shared.
    """

    def __init__(self, limit: float, texts: Iterable[str] = ()) -> None:
        self.limit = limit
        self._texts: dict[str, Counter[str]] = {}
        self._with: dict[str, list[str]] = {}
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        if text not in self._texts:
            self._texts[text] = Counter(Words.tokenize(text))
            for word in self._texts[text]:
                self._with.setdefault(word, []).append(text)

    def __contains__(self, text: str) -> bool:
        words = Counter(Words.tokenize(text))
        n, looked = words.total(), 0
        compared: set[str] = set()
        for word in sorted(words, key=lambda w: len(self._with.get(w, ()))):
            if looked >= n - n * self.limit / (2 - self.limit) and looked:
                break
            looked += words[word]
            for known in self._with.get(word, ()):
                if known not in compared and self._over(known, words, n, text):
                    return True
                compared.add(known)
        return False

    def _over(self, known: str, words: Counter[str], n: int, text: str) -> bool:
        theirs = self._texts[known]  # no subsequence is longer than the words that they share
        most = 2 * (words & theirs).total() / (n + theirs.total())
        return most > self.limit and rouge_l(known, text) > self.limit
