"""What a step would ask of its models, before it is run: requests, tokens read and tokens written."""

from collections.abc import Callable, Container
from dataclasses import dataclass

from curation.bsdetector import CHALLENGE, REFLECT, REPLY_TOKENS
from curation.step import StepConfig
from synthesis.retelling import WITHOUT_INPUT

COUNTING = ("tokens", "instructmining-score")  # steps that need a model's tokenizer alone


@dataclass(frozen=True, slots=True)
class Asked:
    requests: float = 0.0
    read: float = 0.0
    written: float = 0.0

    def __add__(self, other: "Asked") -> "Asked":
        return Asked(self.requests + other.requests, self.read + other.read, self.written + other.written)

    def __mul__(self, times: float) -> "Asked":
        return Asked(self.requests * times, self.read * times, self.written * times)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean tokens of a dataset's prompts (as the chat template writes them) and responses (with the end token)."""

    prompt: float
    response: float
    reflect: float = 0.0
    """Of the words around a row when a judge is asked about it; `challenge` when it is asked once more."""
    challenge: float = 0.0
    teach: float = 0.0


def lengths_of_words(count: Callable[[list[str]], list[int]], prompt: float, response: float) -> Lengths:
    """`count` gives the tokens of texts."""
    return Lengths(prompt, response, *count([REFLECT, REFLECT + CHALLENGE, WITHOUT_INPUT]))


def asked(step: str, config: StepConfig, mean: Lengths, roles: Container[str] | None = None) -> Asked:
    """Of one row, and of all the step's roles or only some; a step that is not named here asks no language model.
    Answers are taken to be as long as the rows' own, up to the limit."""
    whole = mean.prompt + mean.response

    def answers(most: int) -> float:
        return min(most, mean.response)

    match step:
        case "evaluate":
            weighed = Asked(1, whole)
            if config.metric == "choice":
                return weighed * (len(config.choices) + config.likelihood)
            return Asked(1, mean.prompt, answers(config.max_tokens)) + weighed * config.likelihood
        case "judge-answers":
            return Asked(1, whole + mean.response + mean.reflect)
        case "perplexity":
            return Asked(1, whole)
        case "clear-score":
            drawn = Asked(1, mean.prompt, config.samples * answers(config.max_tokens))
            said = REPLY_TOKENS if config.reflection == "letter" else 0
            asked_twice = Asked(2, 2 * whole + mean.reflect + mean.challenge, 2 * said)
            parts = {"candidate": drawn, "judge": asked_twice}
            return sum((a for role, a in parts.items() if roles is None or role in roles), Asked())
        case "clear-correct":  # as if every candidate differed and were preferred in both orders; its student is new
            written = (6 + 2 * config.samples) * REPLY_TOKENS if config.judgement == "letter" else 0
            judged = Asked(6, 6 * (whole + mean.response) + 2 * (mean.reflect + mean.challenge), written)
            return Asked(1, mean.prompt, answers(config.max_tokens)) + judged
        case "llm2llm":
            once = Asked(1, whole + mean.teach, config.max_tokens)
            checked = Asked(1, mean.prompt, 3 * answers(config.max_tokens)) * config.agreement
            return (once + checked) * config.attempts
        case "self-guide":  # of one input, as if all were kept and as long as they may be
            read = config.examples * whole + mean.prompt
            return Asked(1, read, config.max_tokens) + Asked(1, read, config.samples * answers(config.max_tokens))
    return Asked()
