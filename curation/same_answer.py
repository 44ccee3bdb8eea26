"""When two short answers are the same: but for case, spacing, and punctuation or quotes around them."""

_AROUND = " \t\r\n.,;:!?\"'`*()[]{}"


def same(answer: str, wanted: str) -> bool:
    return plain(answer) == plain(wanted)


def plain(text: str) -> str:
    """What is compared; within the text nothing is left out, so that `1.5` and `15`, `2+2` and `2-2` stay apart."""
    spaced = " ".join(text.casefold().split())
    return spaced.strip(_AROUND) or spaced
