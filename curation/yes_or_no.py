"""A judge's yes or no as a probability, its leaning to one letter cancelled."""

from collections.abc import Callable

from curation.step import Engine, Failed
from storage.schema import message


def probability_of_yes(judge: Engine, ask: Callable[[str, str], list[str]]) -> list[float | None]:
    """P(yes) / (P(yes) + P(no)) of each question, in 0 to 1; null where the judge said nothing to either order.

    `ask` gives the questions with the letters of yes and no. Both orders of the letters are asked and averaged, since
    judges lean to one letter (Zheng et al., 2023, arXiv 2306.05685).
    """
    votes: list[list[float]] = []
    for yes, no in ("AB", "BA"):
        questions = ask(yes, no)
        votes = votes or [[] for _ in questions]
        for vote, odds in zip(votes, judge.choose([[message("user", q)] for q in questions], [yes, no]), strict=True):
            if not isinstance(odds, Failed) and sum(odds) > 0:
                vote.append(odds[0] / sum(odds))
    return [sum(vote) / len(vote) if vote else None for vote in votes]
