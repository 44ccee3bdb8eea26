"""Every step that Thresher ships, registered by importing its file; a new method is one line here."""

from curation import (  # noqa: F401
    clear,
    clear_correct,
    clear_filter,
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
    split,
    tokens,
)
from synthesis import llm2llm  # noqa: F401
