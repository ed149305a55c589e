"""Deltas in the words of OpenAI's API: each as a chunk's delta, or all of them as one message."""

from typing import Any

from engines.answers.deltas import Delta, ToolCallDelta


def delta_to_wire(delta: Delta) -> dict[str, Any]:
    if delta.content is not None:
        return {"content": delta.content}
    if delta.tool_call is not None:
        return {"tool_calls": [_call_to_wire(delta.tool_call)]}
    return reasoning_to_wire(delta.reasoning_content or "")


def reasoning_to_wire(text: str) -> dict[str, str]:
    """Under both names: vLLM renamed `reasoning_content` to `reasoning`, and clients read one or the other."""
    return {"reasoning": text, "reasoning_content": text}


def _call_to_wire(call: ToolCallDelta) -> dict[str, Any]:
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


class Message:
    """The assistant's message while it grows."""

    def __init__(self, content: str = "") -> None:
        self._content = [content]
        self._reasoning: list[str] = []
        self._calls: list[dict[str, str]] = []
        self._arguments: list[list[str]] = []  # of each call

    def add(self, delta: Delta) -> None:
        if delta.content is not None:
            self._content.append(delta.content)
        if delta.reasoning_content is not None:
            self._reasoning.append(delta.reasoning_content)
        if delta.tool_call is not None:
            self._add_call(delta.tool_call)

    def _add_call(self, call: ToolCallDelta) -> None:
        if call.id is not None:
            self._calls.append({"id": call.id, "name": call.name or ""})
            self._arguments.append([])
        self._arguments[call.index].append(call.arguments)

    def to_wire(self) -> dict[str, Any]:
        """Without content there is null where tools are called, else an empty text."""
        content = "".join(self._content)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self._calls:
            message["content"] = content or None
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": "".join(arguments)},
                }
                for call, arguments in zip(self._calls, self._arguments, strict=True)
            ]
        if self._reasoning:
            message |= reasoning_to_wire("".join(self._reasoning))
        return message
