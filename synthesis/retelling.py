"""How a teacher is asked for rows like another one, and how its reply is read.

Where a prompt is an instruction line with an input below it, the task stays and the teacher writes another input that
has the same answer. Else it writes question and answer.
"""

import json
import re
from typing import Any

from curation.same_answer import same
from storage.schema import Messages, message, response
from synthesis.growing import Question, Unread

# One row is asked for with the words that the embedded teacher has learnt.
WITH_INPUT = """Write another input for this task that has the same answer.
Task: {task}
Input: {input}
Answer: {answer}"""
WITHOUT_INPUT = """Write a new question of the same kind, with other names, numbers or words, and its answer.
Question: {question}
Answer: {answer}
Reply as "Question: ..." and "Answer: ..."."""
INPUTS = """Write {n} other inputs for this task that have the same answer, each on a line that begins with "Input:".
Task: {task}
Input: {input}
Answer: {answer}"""
QUESTIONS = """Write {n} new questions of the same kind, with other names, numbers or words, and their answers.
Question: {question}
Answer: {answer}
Reply with {n} times "Question: ..." and "Answer: ..."."""
OTHERS = "\nThere are these already; write different ones:\n{known}"
AS_JSON = "\nReply as JSON."
_VERSION = 1  # raise it with any of the wordings above

MARKER = "####"  # before the final number of an answer of GSM8K
_INPUT = re.compile(r"(?:^|\n)[ \t]*(?:\d+[.)][ \t]*)?Input(?: *\d+)?:")
_QUESTION = re.compile(r"(?:^|\n)[ \t]*(?:\d+[.)][ \t]*)?Question(?: *\d+)?:")
_ANSWER = re.compile(r"\n[ \t]*Answer(?: *\d+)?:")


def _list_of(*fields: str) -> dict[str, Any]:
    one = {"type": "object", "properties": {f: {"type": "string"} for f in fields}, "required": list(fields)}
    return {"type": "array", "items": one | {"additionalProperties": False}, "minItems": 1, "maxItems": 10}


SCHEMAS = {True: _list_of("input"), False: _list_of("question", "answer")}  # by whether the prompt has an input


def question(parent: Messages, n: int, known: list[Messages], structured: bool = False) -> Question:
    """What is asked for n rows like the parent, and unlike those that are known."""
    task, below, text = _parts(parent)
    few, many = (WITH_INPUT, INPUTS) if below else (WITHOUT_INPUT, QUESTIONS)
    said = (few if n == 1 else many).format(n=n, task=task, input=text, question=task, answer=response(parent))
    said += OTHERS.format(known="\n".join(input_of(m) for m in known)) if known else ""
    named = "-".join(["input" if below else "question", *(["more"] if n > 1 else []), *(["others"] if known else [])])
    version = f"{named}{'-json' if structured else ''}/{_VERSION}"
    return Question([{"role": "user", "content": said + (AS_JSON if structured else "")}], version)


def rows_in(parent: Messages, text: str, cut: bool, structured: bool = False) -> list[Messages | Unread]:
    """The rows that a reply holds, each as it can be read; what was being said when it was cut is no row."""
    task, below, _ = _parts(parent)
    if structured:
        found = _of_json(text, bool(below))
        return [_row(parent, task if below else "", *pair) for pair in found] or [Unread(text, _unread(cut))]
    chunks = (_INPUT if below else _QUESTION).split(text)
    chunks = chunks[1:] or ([text] if below else [])
    out: list[Messages | Unread] = []
    for chunk in chunks:
        parts = [part.strip() for part in _ANSWER.split(chunk)]
        if below:
            same_answer = len(parts) < 2 or same(parts[1], response(parent))
            whole = parts[0] and same_answer and not _QUESTION.search(chunk)
            out.append(_row(parent, task, parts[0], response(parent)) if whole else Unread(chunk, "unreadable"))
        else:
            whole = len(parts) == 2 and all(parts)
            out.append(_row(parent, "", *parts) if whole else Unread(chunk, "unreadable"))
    if cut:
        out[-1:] = [Unread(chunks[-1] if chunks else text, "cut at max_tokens")]
    return out


def input_of(messages: Messages) -> str:
    """What of a prompt is its own: the last question, without an instruction line above it."""
    task, _, text = _parts(messages)
    return text or task


def task_of(messages: Messages) -> str:
    """The instruction line above an input; empty where there is none."""
    task, _, text = _parts(messages)
    return task if text else ""


def _parts(messages: Messages) -> tuple[str, str, str]:
    asked = (messages[-2]["content"] or "") if len(messages) > 1 else ""
    if MARKER in response(messages):  # a worked answer is of this very question, however many lines that has
        return asked, "", ""
    return asked.partition("\n")


def _row(parent: Messages, task: str, asked: str, answer: str | None = None) -> Messages:
    said = f"{task}\n{asked}" if task else asked
    return [*parent[:-2], message("user", said), message("assistant", response(parent) if answer is None else answer)]


def _of_json(text: str, below: bool) -> list[tuple[str, ...]]:
    fields = ("input",) if below else ("question", "answer")
    try:
        said = json.loads(text)
    except ValueError:
        return []
    found = [
        tuple(one.get(f) for f in fields) for one in (said if isinstance(said, list) else []) if isinstance(one, dict)
    ]
    return [pair for pair in found if all(isinstance(part, str) and part.strip() for part in pair)]


def _unread(cut: bool) -> str:
    return "cut at max_tokens" if cut else "unreadable"
