"""OpenAI's deprecated `functions`: read as tools, and answered with the `function_call` that went with them."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from engines.errors import InvalidRequest
from server.model.tools import ToolRequest, read_tools
from server.openai.schema import ChatRequest

OLD_NAMES = (
    (re.compile(r"\btools(\[\d+\])(\.function)?"), r"functions\1"),
    (re.compile(r"\btools\b"), "functions"),
    (re.compile(r"\btool_choice(\.function)?"), "function_call"),
)


def check_functions(body: ChatRequest) -> None:
    """Refuse both kinds of fields in one request."""
    for old, new in (("functions", "tools"), ("function_call", "tool_choice")):
        if getattr(body, old) is not None and getattr(body, new) is not None:
            raise InvalidRequest(f"{old!r} is the deprecated form of {new!r}: give one of the two.", param=old)


def read_tool_fields(body: ChatRequest) -> ToolRequest:
    """The tools that the request names by either kind of fields."""
    if body.functions is None and body.function_call is None:
        return read_tools(body.tools, body.tool_choice, body.parallel_tool_calls)
    tools = [{"type": "function", "function": function} for function in body.functions or ()] or body.tools
    choice = body.function_call
    if isinstance(choice, dict):
        choice = {"type": "function", "function": choice}
    try:
        return read_tools(tools, choice or body.tool_choice, parallel_tool_calls=False)
    except InvalidRequest as error:
        error.message = _with_old_names(error.message)
        error.param = _with_old_names(error.param or "") or None
        raise


def _with_old_names(text: str) -> str:
    for new, old in OLD_NAMES:
        text = new.sub(old, text)
    return text


def with_tool_calls(messages: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The messages with each `function_call` as a tool call, and what role `function` says as its result."""
    call_id = "call_0"
    for position, message in enumerate(messages):
        if call := message.pop("function_call", None):
            call_id = f"call_{position}"
            message["tool_calls"] = [{"id": call_id, "type": "function", "function": call}]
        if message["role"] == "function":
            message |= {"role": "tool", "tool_call_id": call_id}
        yield message


def with_function_call(message: dict[str, Any]) -> dict[str, Any]:
    """A message of an answer, or the delta of one, whose tool call is a `function_call`."""
    calls = message.pop("tool_calls", None)
    return message | {"function_call": calls[0]["function"]} if calls else message
