"""OpenAssistant's trees: a row for each thread from the prompt to an answer that nobody replied to."""

from typing import Any

from storage.schema import Messages, message
from storage.turns import Record, Said, Unusable, kind, storable

_ROLES = {"prompter": "user", "assistant": "assistant", "system": "system"}
_WALKED = ("text", "role", "replies")


def threads(record: Record) -> list[Said | Unusable]:
    """Threads in the order of the tree. One that ends with a question has no answer, and says so."""
    found: list[Said | Unusable] = []
    todo: list[tuple[Any, Messages, list[Any]]] = [(record.get("prompt"), [], [])]
    while todo:
        node, before, ids = todo.pop()
        if not isinstance(node, dict):
            raise Unusable(f"a message of the tree is {kind(node)}, not an object")
        role = _ROLES.get(node["role"]) if isinstance(node.get("role"), str) else None
        if role is None or not isinstance(node.get("text"), str):
            raise Unusable("a message of the tree has no text, or a role that is neither prompter nor assistant")
        said = [*before, message(role, storable(node["text"]))]
        path = [*ids, {name: value for name, value in node.items() if name not in _WALKED}]
        replies = node.get("replies") or []
        if not isinstance(replies, list):
            raise Unusable(f"the replies of a message are {kind(replies)}, not a list")
        if replies:
            todo += [(reply, said, path) for reply in reversed(replies)]
        elif role != "assistant" or not node["text"].strip():
            found.append(Unusable(f"no answer: a thread of {len(said)} messages ends with the {node['role']}"))
        elif not any(m["content"].strip() for m in said[:-1]):
            found.append(Unusable("no prompt: nothing is said before the answer"))
        else:
            found.append(Said(said, own={"thread": path}))
    return found
