"""What stands before an answer: the system message, the history and the question, from columns of their own."""

from collections.abc import Mapping
from typing import Any

from training.data.messages import list_of, text_of
from training.data.problems import BadRow
from training.data.samples import Message

Row = Mapping[str, Any]
SYSTEMS = ("system", "system_prompt")


def with_system(messages: list[Message], row: Row) -> list[Message]:
    """The messages behind the system message of the row's column. Raises BadRow where they begin with another one."""
    name = next((name for name in SYSTEMS if row.get(name)), None)
    if name is None:
        return messages
    content = text_of(row[name], name)
    first = messages[0] if messages else {"role": "user"}
    if first["role"] not in ("system", "developer"):
        return [{"role": "system", "content": content}, *messages]
    if first["content"] != content:
        raise BadRow(name, "differs from the system message at the beginning: which of the two?")
    return messages


def history(row: Row) -> list[Message]:
    """The messages of `history`, a list of [question, answer]."""
    messages: list[Message] = []
    for i, pair in enumerate(list_of(row, "history") if row.get("history") else ()):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(f"history[{i}]", "must be a list of two texts, a question and its answer")
        messages.append({"role": "user", "content": text_of(pair[0], f"history[{i}][0]")})
        messages.append({"role": "assistant", "content": text_of(pair[1], f"history[{i}][1]")})
    return messages


def question(row: Row, name: str) -> Message:
    """The user's message. Alpaca's `input` follows its `instruction` on a line of its own."""
    text = text_of(row[name], name)
    extra = row.get("input") if name == "instruction" else None
    return {"role": "user", "content": f"{text}\n{text_of(extra, 'input')}" if extra else text}


def answered(messages: list[Message], place: str) -> list[Message]:
    """Return the messages. Raises BadRow where they do not end with an answer to learn."""
    if not messages:
        raise BadRow(place, "is empty")
    if all(message["role"] != "assistant" for message in messages):
        raise BadRow(place, "there is no message of the assistant to learn from")
    if messages[-1]["role"] != "assistant":
        raise BadRow(f"{place}[{len(messages) - 1}].role", "the last message must be the assistant's")
    if all(message.get("weight") == 0 for message in messages if message["role"] == "assistant"):
        raise BadRow(place, "every message of the assistant has weight 0: there is nothing to learn")
    return messages


def asked(messages: list[Message], place: str) -> list[Message]:
    """Return the messages. Raises BadRow where there is nothing to answer among them."""
    if not messages:
        raise BadRow(place, "is empty")
    if all(message["role"] in ("system", "developer") for message in messages):
        raise BadRow(place, "there is no message to answer")
    return messages
