"""Records that say which of two answers is better, or whether one answer is wanted.

A pair becomes two rows: the rejected answer, dropped from the start, and the chosen one, whose parent it is. So a pair
that was imported looks like a row and its correction, and `thresher prefer` learns from both alike. An answer that is
labelled as unwanted is a row that is dropped from the start.
"""

import re
from typing import Any

from storage.schema import Messages, message
from storage.turns import Record, Said, Unusable, answer, in_turns, kind, present, storable, text, turns

REJECTED = "import: rejected in a pair"
UNWANTED = "import: labelled as unwanted"
MASK = "privacy-mask"  # a row of this step answers no better than its parent, which holds what is private
_TRUTH = {True: True, False: False, "true": True, "false": False, "True": True, "False": False}
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


def pair(record: Record) -> list[Said]:
    """The rejected row and the chosen one, which is preferred to it."""
    notes: list[str] = []
    if "chosen" in record:
        chosen, rejected = (_answers(record, field, notes) for field in ("chosen", "rejected"))
        whole = _asks(chosen) and _asks(rejected)  # with the prompt beside them, as UltraFeedback has it
        if whole and isinstance(record.get("prompt"), str) and record["prompt"] not in _asks(chosen):
            raise Unusable("'prompt' is not what 'chosen' answers")
        asked = [] if whole else _prompt(record, notes)
        form = None if "prompt" in record or "instruction" in record or asked else '{"prompt": 0}'
    else:  # ms-swift's: the conversation with the better answer, and the other answer or conversation
        chosen, note = turns(record, "messages")
        notes += [note] if note else []
        form = None
        if isinstance(record.get("rejected_messages"), list):
            asked, rejected = [], turns(record, "rejected_messages")[0]
        else:
            asked, chosen = chosen[:-1], chosen[-1:]
            rejected = [message("assistant", answer(record, "rejected_response"))]
    if not asked:
        if [m["content"] for m in chosen[:-1]] != [m["content"] for m in rejected[:-1]]:
            raise Unusable("the chosen and the rejected answer are to different prompts")
        asked, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:]
    if chosen == rejected:
        raise Unusable("the chosen answer is the rejected one")
    note = "; ".join(notes) or None
    return [
        Said(asked + rejected, note, drop_reason=REJECTED, form=form),
        Said(asked + chosen, note, preferred_to=0, form=form),
    ]


def labelled(record: Record) -> list[Said]:
    """One row, dropped from the start if its label says that it is unwanted."""
    label = next((record[f] for f in ("label", "kto_tag") if f in record), None)
    if isinstance(label, list | dict) or label not in _TRUTH:
        raise Unusable(f"'label' is {kind(label)}, not true or false")
    notes: list[str] = []
    if "messages" in record or "conversations" in record:
        said, note = turns(record, "messages" if "messages" in record else "conversations")
        notes += [note] if note else []
    else:
        said = _prompt(record, notes) + _answers(record, "output" if "instruction" in record else "completion", notes)
    return [Said(said, "; ".join(notes) or None, drop_reason=None if _TRUTH[label] else UNWANTED)]


def _prompt(record: Record, notes: list[str]) -> Messages:
    for field in ("conversations", "messages", "prompt"):
        if field in record and (field != "prompt" or isinstance(record[field], list)):
            said, note = turns(record, field)
            notes += [note] if note else []
            break
    else:
        if "prompt" in record:
            said = [message("user", text(record, "prompt"))]
        elif "instruction" in record:
            asked, more = text(record, "instruction", optional=True), text(record, "input", optional=True)
            said = [message("user", "\n".join(t for t in (asked, more) if t.strip()))]
        else:
            return []
    system = text(record, "system", optional=True)
    return [message("system", system), *said] if system.strip() else said


def _answers(record: Record, field: str, notes: list[str]) -> Messages:
    """The turns of an answer; a whole conversation where the record has no prompt of its own."""
    given: Any = present(record, field)
    if isinstance(given, str):
        if "prompt" not in record and "instruction" not in record and given.startswith("\n\nHuman:"):
            return _transcript(given)
        return [message("assistant", answer(record, field))]
    said, note = in_turns([given]) if isinstance(given, dict) else turns(record, field)
    notes += [note] if note and note not in notes else []
    return said


def _asks(said: Messages) -> list[str | None]:
    """What a person says in it; nothing in an answer alone."""
    return [m["content"] for m in said if m["role"] == "user"]


def _transcript(said: str) -> Messages:
    """The conversation of a text in Anthropic's form, "\\n\\nHuman: 2+2?\\n\\nAssistant: 4"."""
    parts = _SPEAKER.split(said)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [message(roles[who], storable(what.strip())) for who, what in zip(parts[::2], parts[1::2], strict=True)]
