"""InstructMining (Cao et al., 2023, arXiv 2307.06290): a linear rule over cheap indicators predicts the tuned loss.

    name          indicator of one row                                   column
    Len_in/out    tokens of prompt and response, the tuned tokenizer     instructmining_input_length, _output_length
    PPL           perplexity of the response under the base model        instructmining_perplexity
    MTLD          lexical diversity of the response, factor 0.72         instructmining_mtld
    Knn6          distance to the 6th nearest neighbour, embedding space     instructmining_knn6
    Rew, Nat, Coh, Und   a reward model and UniEval, from the model hub  instructmining_reward, …

Published rules, lower is better (secondary sources; the papers' numbers could not be read first-hand):
"""

import polars as pl
from pydantic import Field
from sklearn.neighbors import NearestNeighbors

from curation.step import Engine, StepConfig, StepError, step
from storage.schema import instruction, response

RULES: dict[str, dict[str, float]] = {
    "2023-07": {"": 1.0694, "reward": -0.1498, "output_length": 8.257e-5, "knn6": -0.9350},
    "2024": {"": 0.0274, "reward": -0.0078, "understandability": 0.4421, "naturalness": -0.3212, "coherence": -0.1520},
}
FROM_THE_HUB = {
    "reward": "OpenAssistant/oasst-rm-2.1-pythia-1.4b-epoch-2.5",
    "understandability": "MingZhong/unieval-dialog",
    "naturalness": "MingZhong/unieval-dialog",
    "coherence": "MingZhong/unieval-dialog",
}
FACTOR = 0.72


class Indicators(StepConfig):
    pass


class Neighbours(StepConfig):
    k: int = Field(6, ge=1)
    """Which nearest neighbour's distance is taken."""


class Rule(StepConfig):
    rule: str = "2024"
    """Which published rule: 2023-07 or 2024."""

    def columns(self) -> tuple[str, ...]:
        return tuple(f"instructmining_{name}" for name in RULES.get(self.rule, {}) if name)


@step(
    "instructmining-score",
    kind="score",
    reads="base_nll",
    writes="instructmining_input_length instructmining_output_length instructmining_perplexity instructmining_mtld",
    good="-instructmining_perplexity -instructmining_output_length",  # the length's sign is that of the 2023-07 rule
)
def indicators(rows: pl.DataFrame, cfg: Indicators, base: Engine) -> pl.DataFrame:
    """The indicators of InstructMining that need no other model: lengths, perplexity, lexical diversity."""
    conversations = rows["messages"].to_list()
    responses = [response(m) for m in conversations]
    return rows.with_columns(
        instructmining_input_length=_tokens(base, [instruction(m) for m in conversations]),
        instructmining_output_length=_tokens(base, responses),
        instructmining_perplexity=pl.col("base_nll").exp(),
        instructmining_mtld=pl.Series([mtld(text.split()) for text in responses], dtype=pl.Float64),
    )


@step(
    "instructmining-knn",
    kind="score",
    scope="dataset",
    reads="embedding",
    writes="instructmining_knn6",
    good="instructmining_knn6",  # its sign in the 2023-07 rule: far from the neighbours, low predicted loss
)
def neighbours(rows: pl.DataFrame, cfg: Neighbours) -> pl.DataFrame:
    """Distance to the 6th nearest neighbour; large is rare. Null where there are too few rows."""
    if rows.height <= cfg.k:
        return rows.with_columns(instructmining_knn6=pl.lit(None, dtype=pl.Float64))
    vectors = rows["embedding"].to_numpy()
    distance, _ = NearestNeighbors(n_neighbors=cfg.k + 1, algorithm="brute").fit(vectors).kneighbors(vectors)
    return rows.with_columns(instructmining_knn6=pl.Series(distance[:, cfg.k].astype(float)))


@step(
    "instructmining-predict",
    kind="score",
    writes="instructmining_predicted_loss",
    good="-instructmining_predicted_loss",
)
def predict(rows: pl.DataFrame, cfg: Rule) -> pl.DataFrame:
    """Predicted log loss by a published rule; lower is better. Refuses where an indicator is missing."""
    if cfg.rule not in RULES:
        raise StepError(f"there is no rule {cfg.rule!r}; there are {', '.join(RULES)}")
    for column in cfg.columns():
        name = column.removeprefix("instructmining_")
        if column not in rows.columns:
            where = f", which {FROM_THE_HUB[name]} from the model hub gives" if name in FROM_THE_HUB else ""
            raise StepError(f"rule {cfg.rule} needs the indicator {column}{where}; the dataset does not have it")
    predicted = pl.sum_horizontal(
        *[weight * (pl.col(f"instructmining_{name}") if name else 1) for name, weight in RULES[cfg.rule].items()],
        ignore_nulls=False,
    )
    return rows.with_columns(instructmining_predicted_loss=predicted)


def _tokens(base: Engine, texts: list[str]) -> pl.Series:
    return pl.Series(base.count_tokens(texts), dtype=pl.Int64)


def mtld(words: list[str]) -> float | None:
    """Mean length of runs that keep a type-token ratio over 0.72, in both directions.

    Undefined where all words differ; the number of words, its natural bound, stands there.
    """
    if not words:
        return None
    words = [w.lower() for w in words]
    return (_one_way(words) + _one_way(words[::-1])) / 2


def _one_way(words: list[str]) -> float:
    factors, seen, n = 0.0, set(), 0
    for word in words:
        n += 1
        seen.add(word)
        if len(seen) / n <= FACTOR:
            factors, seen, n = factors + 1, set(), 0
    if n:
        factors += (1 - len(seen) / n) / (1 - FACTOR)
    return len(words) / factors if factors else float(len(words))
