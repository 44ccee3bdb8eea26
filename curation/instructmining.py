"""InstructMining (Cao et al., 2023, arXiv 2307.06290): a linear rule over cheap indicators predicts the tuned loss.

    name            indicator of one row                                     column, after `instructmining_`
    Len_in, Len_out tokens of prompt and response, the tuned tokenizer       input_length, output_length
    PPL             perplexity of the response under the base model          perplexity
    MTLD            lexical diversity of the response, factor 0.72           mtld
    Knn6            distance to the 6th nearest neighbour among embeddings   knn6
    Rew             a reward model's number for prompt and response          reward
    Nat, Coh, Und   UniEval-dialog: P(yes) of a question on the response     naturalness, coherence, understandability

Where the last four models cannot be had, a judge is asked instead; its answers stand under names of their own,
judged_reward and so on, since a rule that was fitted on the one says nothing of the other.
"""

from collections.abc import Callable

import numpy as np
import polars as pl
from pydantic import Field, field_validator

from curation.choice import ChoiceConfig, for_training, take_first
from curation.draw import uniform
from curation.evaluate import nll
from curation.kmeans import directions
from curation.lexical_diversity import mtld
from curation.neighbours import Search, kth_distance, settled
from curation.rule import INDICATORS, column, find_rule, known
from curation.shingles import prompt_text
from curation.step import Classifier, Engine, Failed, StepConfig, StepError, step
from curation.yes_or_no import probability_of_yes

KNN = 6
WITHOUT_MORE_MODELS = ("input_length", "output_length", "perplexity", "mtld")
OF_ROWS = tuple(name for name in INDICATORS if name != "knn6")

# UniEval's questions for dialogues (Zhong et al., 2022, arXiv 2210.07197); coherence also reads what came before.
UNIEVAL = {
    "naturalness": "Is this a natural response in the dialogue?",
    "coherence": "Is this a coherent response given the dialogue history?",
    "understandability": "Is this an understandable response in the dialogue?",
}
JUDGED = {
    "judged_reward": "Is this response helpful, correct and complete?",
    **{f"judged_{name}": question for name, question in UNIEVAL.items()},
}
JUDGE = """{instruction}

Response: {response}

{question} ({yes}) yes ({no}) no. Reply with one letter."""


class Indicators(StepConfig):
    rule: str = ""
    """Compute what this rule asks for, and no more: 2023-07, 2024, or one that `thresher fit-rule` fitted."""

    indicators: list[str] = Field(list(WITHOUT_MORE_MODELS))
    """Which to compute where no rule is named; repeat the option for each. The default asks the base model alone."""

    _known = field_validator("indicators")(known)

    def asked(self) -> list[str]:
        wanted = find_rule(self.rule).terms if self.rule else self.indicators
        return [name for name in OF_ROWS if name in wanted]

    def unasked(self) -> tuple[str, ...]:
        asked = self.asked()
        by_role = {
            "base": WITHOUT_MORE_MODELS[:3],
            "reward": ("reward",),
            "unieval": tuple(UNIEVAL),
            "judge": tuple(JUDGED),
        }
        return tuple(role for role, names in by_role.items() if not set(names) & set(asked))


class Neighbours(StepConfig):
    search: Search = "auto"
    """exact; faiss, approximate over 20,000 rows; auto: faiss where it is installed."""

    def settled(self, models: object) -> "Neighbours":
        return self.model_copy(update={"search": settled(self.search)})


class Predict(StepConfig):
    rule: str = "2024"
    """A published rule, 2023-07 or 2024, or one that `thresher fit-rule` fitted."""

    winsorise: float = Field(0.01, ge=0, lt=0.5)
    """A published rule's reward is held between this quantile and its mirror; a fitted rule has bounds of its own."""

    def columns(self) -> tuple[str, ...]:
        try:
            return find_rule(self.rule).columns()
        except StepError:  # the name of a fitted rule, which is looked up before the step is run
            return ()


@step(
    "instructmining-score",
    kind="score",
    writes=" ".join(column(name) for name in OF_ROWS),
    good="-instructmining_perplexity -instructmining_output_length",  # the length's sign is that of the 2023-07 rule
    version=2,
)
def indicators(
    rows: pl.DataFrame, cfg: Indicators, base: Engine, reward: Classifier, unieval: Classifier, judge: Engine
) -> pl.DataFrame:
    """The indicators that the rule asks for, but for the neighbours'; null where not asked, or where a model failed."""
    last = pl.col("messages").list.last().struct
    texts = rows.select(instruction=prompt_text(), response=last.field("content").fill_null(""))
    given = texts.rows()
    compute: dict[str, Callable[[], pl.Series | list]] = {
        "input_length": lambda: base.count_tokens(texts["instruction"].to_list()),
        "output_length": lambda: base.count_tokens(texts["response"].to_list()),
        "perplexity": lambda: pl.Series(
            [nll(found) for found in base.logprobs(rows["messages"].to_list())], dtype=pl.Float64
        ).exp(),
        "mtld": lambda: mtld(texts["response"]),
        "reward": lambda: [_first(found) for found in reward.classify(given)],
    }
    for name in UNIEVAL:
        compute[name] = lambda name=name: [_first(f) for f in unieval.classify([_unieval(name, *t) for t in given])]
    for name in JUDGED:
        compute[name] = lambda name=name: probability_of_yes(judge, lambda yes, no: _judged(name, given, yes, no))
    asked = cfg.asked()
    _check("reward", reward, ("score",), "a reward model: one number for a prompt and a response")
    _check("unieval", unieval, ("yes", "no"), "a model of UniEval's kind: a T5 that answers yes or no")
    return rows.with_columns(
        pl.Series(column(name), compute[name]() if name in asked else [None] * rows.height, dtype=_kind(name))
        for name in OF_ROWS
    )


@step(
    "instructmining-knn",
    kind="score",
    scope="dataset",
    reads="embedding",
    writes="instructmining_knn6",
    good="instructmining_knn6",  # its sign in the 2023-07 rule: far from the neighbours, low predicted loss
    version=3,
    without="messages",
)
def neighbours(rows: pl.DataFrame, cfg: Neighbours) -> pl.DataFrame:
    """Distance to the 6th nearest neighbour; large is rare. Null where fewer than seven rows have a direction.

    A row whose embedding is null, zero or not finite has none: it gets null, and is nobody's neighbour.
    """
    vectors = rows["embedding"].to_numpy()
    usable, found = directions(vectors), np.full(rows.height, np.nan)
    found[usable] = kth_distance(vectors if usable.all() else vectors[usable], KNN, cfg.search)
    return rows.with_columns(instructmining_knn6=pl.Series(found, dtype=pl.Float64).fill_nan(None))


@step(
    "instructmining-predict",
    kind="score",
    scope="dataset",
    writes="instructmining_predicted_loss",
    good="-instructmining_predicted_loss",
    version=2,
    without="messages",
)
def predict(rows: pl.DataFrame, cfg: Predict) -> pl.DataFrame:
    """Predicted log loss by a rule; low is good. Refuses where an indicator is missing; null for a row without it."""
    rule = find_rule(cfg.rule)
    for name in rule.terms:
        if column(name) not in rows.columns or rows[column(name)].null_count() == rows.height > 0:
            raise StepError(
                f"rule {rule.name} needs the indicator {column(name)}, which the dataset has for no row; "
                f"{_remedy(name)}"
            )
    return rows.with_columns(instructmining_predicted_loss=rule.predicted(cfg.winsorise))


@step(
    "instructmining-select",
    kind="select",
    scope="dataset",
    reads="instructmining_predicted_loss",
    without="messages",
)
def select(rows: pl.DataFrame, cfg: ChoiceConfig) -> pl.DataFrame:
    """Take the rows with the lowest predicted loss; one that could not be predicted is left out, never filled in."""
    loss = pl.col("instructmining_predicted_loss")
    pool = for_training(rows).filter(loss.is_finite())
    order = pool.with_columns(u=pl.Series(uniform(pool["id"], cfg.seed))).sort(loss, "u", "id")
    why = pl.format("predicted log loss {}", loss.round(4))
    return take_first(order.with_columns(why=why, weight=None), cfg)


def _remedy(name: str) -> str:
    if name == "knn6":
        return "run embed and instructmining-knn first"
    if name in UNIEVAL or name == "reward":
        role, model = ("reward", "a reward model") if name == "reward" else ("unieval", "MingZhong/unieval-dialog")
        return f"run instructmining-score with this rule first, {model} in the role {role}"
    return "run instructmining-score with this rule first"


def _check(role: str, model: Classifier | None, labels: tuple[str, ...], wanted: str) -> None:
    if model is not None and model.labels != labels:
        raise StepError(
            f"instructmining-score: the role {role} wants {wanted}; this one gives {', '.join(model.labels[:5])}"
        )


def _kind(name: str) -> type[pl.DataType]:
    return pl.Int64 if name.endswith("_length") else pl.Float64


def _first(found: list[float] | Failed) -> float | None:
    return None if isinstance(found, Failed) else found[0]


def _unieval(name: str, instruction: str, response: str) -> tuple[str, str]:
    history = f" </s> dialogue history: {instruction}" if name == "coherence" else ""
    return UNIEVAL[name], f"response: {response}{history}"


def _judged(name: str, given: list[tuple[str, str]], yes: str, no: str) -> list[str]:
    return [JUDGE.format(instruction=q, response=a, question=JUDGED[name], yes=yes, no=no) for q, a in given]
