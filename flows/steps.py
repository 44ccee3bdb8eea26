"""Every step that Thresher ships, registered by importing its file; a new method is one line here."""

from curation import (
    clear,
    diversity,
    duplicates,
    embed,
    evaluate,
    heldout,
    instructmining,
    perplexity,
    random_choice,
    split,
)
from synthesis import llm2llm

MODULES = (
    clear,
    diversity,
    duplicates,
    embed,
    evaluate,
    heldout,
    instructmining,
    llm2llm,
    perplexity,
    random_choice,
    split,
)
