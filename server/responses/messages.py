"""Items become the messages of a chat: what one turn of the assistant says, thinks and calls is one message."""

from collections.abc import Callable
from typing import Any

from engines.errors import InvalidRequest
from server.responses.context import Context
from server.responses.items import Call, CallOutput, Content, Item, Message, Reasoning, Reference

Unseal = Callable[[str], str]
"""Reads `encrypted_content`. Raises InvalidRequest for what this server has not sealed."""


def to_messages(instructions: str | None, context: Context, unseal: Unseal) -> list[dict[str, Any]]:
    """The messages of a `ChatRequest`. `instructions` stand before all others.

    Raises InvalidRequest for reasoning that cannot be read.
    """
    chat = _Chat(unseal)
    if instructions is not None:
        chat.messages.append({"role": "system", "content": instructions})
    for item in context.before:
        chat.add(item, "previous_response_id")
    for position, item in enumerate(context.own):
        chat.add(item, f"input[{position}]")
    return [_complete(message) for message in chat.messages]


class _Chat:
    def __init__(self, unseal: Unseal) -> None:
        self.messages: list[dict[str, Any]] = []
        self._turn: dict[str, Any] | None = None  # the assistant's, while it goes on
        self._unseal = unseal

    def add(self, item: Item, param: str) -> None:
        match item:
            case Message(role="assistant"):
                self._assistant(began=("content", "tool_calls"))["content"] = _content(item.content)
            case Message():
                self._other({"role": item.role, "content": _content(item.content)})
            case Call():
                calls = self._assistant(began=()).setdefault("tool_calls", [])
                function = {"name": item.name, "arguments": item.arguments}
                calls.append({"id": item.call_id, "type": "function", "function": function})
            case CallOutput():
                content = _content(item.output)
                self._other({"role": "tool", "tool_call_id": item.call_id, "content": content})
            case Reasoning():
                if text := self._reasoning(item, param):
                    self._assistant(began=("reasoning_content", "content", "tool_calls"))["reasoning_content"] = text
            case Reference():
                raise AssertionError("references are resolved before")

    def _assistant(self, *, began: tuple[str, ...]) -> dict[str, Any]:
        """The assistant's turn that goes on, or a new one where it has one of `began` already."""
        if self._turn is None or any(key in self._turn for key in began):
            self._turn = {"role": "assistant"}
            self.messages.append(self._turn)
        return self._turn

    def _other(self, message: dict[str, Any]) -> None:
        self._turn = None
        self.messages.append(message)

    def _reasoning(self, item: Reasoning, param: str) -> str:
        """Its text, which this server also tells as the summary."""
        if item.content:
            return "\n".join(part.text for part in item.content)
        if item.encrypted_content:
            try:
                return self._unseal(item.encrypted_content)
            except InvalidRequest as error:
                raise InvalidRequest(error.message, param=f"{param}.encrypted_content") from None
        return "\n".join(part.text for part in item.summary)


def _complete(message: dict[str, Any]) -> dict[str, Any]:
    """A turn may have ended while the model was thinking."""
    return message if "content" in message or "tool_calls" in message else {**message, "content": ""}


def _content(content: Content) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    return [
        {"type": "refusal", "refusal": part.refusal} if part.type == "refusal" else {"type": "text", "text": part.text}
        for part in content
    ]
