"""Rows of the pool that ask what a held-out row asks: trained on, they would make the report say too much."""

import polars as pl
from pydantic import Field

from curation.shingles import Index, common_sentences, distinctive, normalised, prompt_text, shingled
from curation.step import StepConfig, step


class HeldoutOverlap(StepConfig):
    jaccard: float = Field(0.8, gt=0, le=1)
    """Prompts at least this similar to a held-out one are dropped."""

    shingle: int = Field(5, ge=1, le=50)
    """Characters in a shingle."""


@step("heldout-overlap", kind="filter")
def drop_heldout(rows: pl.DataFrame, cfg: HeldoutOverlap, heldout: pl.DataFrame) -> pl.DataFrame:
    """Drop rows whose prompt equals or nearly equals that of a held-out row, whatever the answers."""
    pool = rows.select(prompt=prompt_text(), asked=normalised(prompt_text()))
    held = heldout.select("id", prompt=prompt_text(), asked=normalised(prompt_text())).sort("id")
    exact = held.unique("asked", keep="first", maintain_order=True).select("asked", exact="id")
    found = pool.join(exact, on="asked", how="left", maintain_order="left")
    found = found.with_columns(pl.Series("near", _near(pool["prompt"], held, cfg), dtype=pl.String))
    reason = pl.format("heldout: {}", pl.coalesce("exact", "near"))
    return rows.with_columns(drop_reason=found.select(reason).to_series())


def _near(prompts: pl.Series, held: pl.DataFrame, cfg: HeldoutOverlap) -> list[str | None]:
    """The id of the held-out row that each prompt is nearest to, if it is near any.

    What sentences are common is counted in the held-out set alone, so that no other row of the pool has a say: a row
    that passed in the pool passes again in every choice from it.
    """
    common = common_sentences(held["prompt"])
    ids, index = held["id"].to_list(), Index(cfg.jaccard)
    told = distinctive(held["prompt"], common)
    for n, (shingles, bands) in enumerate(shingled(told["text"].to_list(), cfg.shingle)):
        index.add(n, told["template"][n], shingles, bands)
    told = distinctive(prompts, common)
    near = [
        index.nearest(template, shingles, bands)
        for template, (shingles, bands) in zip(
            told["template"], shingled(told["text"].to_list(), cfg.shingle), strict=True
        )
    ]
    return [found and ids[found.item] for found in near]
