"""Every step that Thresher ships, registered by importing its file; a new method is one line here."""

from curation import (  # noqa: F401
    choose,
    clear,
    clear_correct,
    clear_filter,
    clusters,
    contamination,
    diversity,
    duplicates,
    embed,
    evaluate,
    gopher,
    heldout,
    instructmining,
    judged,
    kcenter,
    language,
    longest,
    perplexity,
    privacy,
    random_choice,
    semantic_duplicates,
    split,
    subsets,
    tokens,
)
from synthesis import llm2llm, self_guide  # noqa: F401
