"""Requests of Anthropic's API as those of chat completions."""

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import Any

import orjson

from engines.errors import InvalidRequest, UnsupportedParameter
from server.http.body import validate
from server.messages.schema import (
    AnyBlock,
    CountRequest,
    Message,
    MessageRequest,
    OutputFormat,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolBody,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
)
from server.messages.signatures import find_thinking
from server.model.effort import SWITCHES
from server.openai.schema import ChatRequest

BLOCKS_OF_ROLES: dict[str, tuple[type, ...]] = {
    "user": (TextBlock, ToolResultBlock),
    "assistant": (TextBlock, ThinkingBlock, RedactedThinkingBlock, ToolUseBlock),
    "system": (TextBlock,),
}
WITHOUT_EFFECT = (
    "context_management",
    "diagnostics",
    "speed",
    "inference_geo",
    "fallbacks",
    "fallback_credit_token",
    "billing_policy",
)
UNSUPPORTED = {
    "container": "There are no containers here.",
    "mcp_servers": "This server calls no MCP servers; call them from the client, and give their tools as 'tools'.",
    "compaction": "Conversations are not summarized here.",
}


def to_chat(body: CountRequest) -> ChatRequest:
    """The request with the same prompt and the same constraints. Raises InvalidRequest."""
    _check_supported(body)
    messages = [message for turn in _turns(body.messages) for message in _to_messages(*turn)]
    if body.system:
        messages.insert(0, {"role": "system", "content": _text(body.system)})
    fields: dict[str, Any] = {"model": body.model, "messages": messages, **_tools(body), **_reasoning(body)}
    if messages[-1]["role"] == "assistant":
        _check_prefill(messages[-1])
        fields["continue_final_message"] = True
    if (wanted := _format(body)) is not None:
        schema = {"name": "output", "schema": wanted.schema_, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    if isinstance(body, MessageRequest):
        fields |= _sampling(body)
    chat = validate(ChatRequest, fields, refuse_unknown=False, long=body.is_long)
    chat.ignored.add(*(name for name in WITHOUT_EFFECT if getattr(body, name) is not None))
    return chat


def _check_supported(body: CountRequest) -> None:
    for name, reason in UNSUPPORTED.items():
        if getattr(body, name):
            raise UnsupportedParameter(f"{name!r} is not supported. {reason}", param=name)
    if body.thread is not None:  # by this code Anthropic's clients know to send whole conversations
        raise UnsupportedParameter(
            "'thread' is not supported: conversations are not kept here.",
            param="thread",
            code="thread_unsupported_request",
        )
    if any(str(kind).startswith("compact") for kind in _edits(body.context_management or {})):
        raise UnsupportedParameter("Conversations are not summarized here.", param="context_management.edits")
    if body.output_format is not None and body.output_config is not None and body.output_config.format is not None:
        raise InvalidRequest("'output_format' is the former name of 'output_config.format'.", param="output_format")


def _edits(context_management: dict[str, Any]) -> list[Any]:
    """Types of the edits of a conversation that are asked for."""
    edits = context_management.get("edits")
    return [edit.get("type") for edit in edits if isinstance(edit, dict)] if isinstance(edits, list) else []


def _format(body: CountRequest) -> OutputFormat | None:
    return body.output_format or (body.output_config.format if body.output_config is not None else None)


def _sampling(body: MessageRequest) -> dict[str, Any]:
    given = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k, "stop": body.stop_sequences}
    return {name: value for name, value in given.items() if value not in (None, [])} | {"stream": body.stream}


# --- messages


def _turns(messages: Iterable[Message]) -> Iterator[tuple[str, list[AnyBlock]]]:
    """Roles, and what each says until another does."""
    said = ((message.role, block) for number, message in enumerate(messages) for block in _blocks(message, number))
    for role, turn in groupby(said, key=itemgetter(0)):
        yield role, [block for _, block in turn]


def _blocks(message: Message, number: int) -> list[AnyBlock]:
    if isinstance(message.content, str):
        return [TextBlock(type="text", text=message.content)]
    if not message.content:
        return [TextBlock(type="text", text="")]
    for position, block in enumerate(message.content):
        if not isinstance(block, BLOCKS_OF_ROLES[message.role]):
            raise InvalidRequest(
                f"A message of role {message.role!r} cannot have blocks of type {block.type!r}.",
                param=f"messages[{number}].content[{position}].type",
            )
    return message.content


def _to_messages(role: str, blocks: list[AnyBlock]) -> Iterator[dict[str, Any]]:
    """A turn as OpenAI has it: each result of a tool is a message of its own, before what the user says."""
    results = [block for block in blocks if isinstance(block, ToolResultBlock)]
    for result in results:
        yield {"role": "tool", "tool_call_id": result.tool_use_id, "content": _result(result)}
    texts = [block for block in blocks if isinstance(block, TextBlock)]
    if role == "assistant":
        yield {"role": role, "content": _text(texts), **_reasoning_and_calls(blocks)}
    elif texts or not results:
        yield {"role": role, "content": _text(texts)}


def _text(content: str | list[TextBlock]) -> str:
    """Blocks of text become lines of one, as parts do in chat completions."""
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def _result(block: ToolResultBlock) -> str:
    """What the tool said. Templates know no errors, so the text says that it is one."""
    said = _text(block.content)
    return f"Error: {said}" if block.is_error and not said.lower().startswith("error") else said


def _reasoning_and_calls(blocks: list[AnyBlock]) -> dict[str, Any]:
    thought = [find_thinking(b.thinking, b.signature) for b in blocks if isinstance(b, ThinkingBlock)]
    calls = [_call(block) for block in blocks if isinstance(block, ToolUseBlock)]
    reasoning = "\n".join(filter(None, thought))
    return ({"reasoning_content": reasoning} if reasoning else {}) | ({"tool_calls": calls} if calls else {})


def _call(block: ToolUseBlock) -> dict[str, Any]:
    function = {"name": block.name, "arguments": orjson.dumps(block.input).decode()}
    return {"id": block.id, "type": "function", "function": function}


def _check_prefill(final: dict[str, Any]) -> None:
    """The answer continues a final message of the assistant, which so must have begun to say something."""
    if "tool_calls" in final:
        raise InvalidRequest(
            "The final message has 'tool_use' blocks without their 'tool_result' blocks after them.", param="messages"
        )
    if not final["content"]:
        raise InvalidRequest("A final message of role 'assistant' must have a text to continue.", param="messages")


# --- tools


def _tools(body: CountRequest) -> dict[str, Any]:
    if not body.tools:
        return {} if body.tool_choice is None else {"tool_choice": _choice(body.tool_choice)}
    fields: dict[str, Any] = {"tools": [_tool(tool) for tool in body.tools]}
    if body.tool_choice is not None:
        fields["tool_choice"] = _choice(body.tool_choice)
        if body.tool_choice.disable_parallel_tool_use:
            fields["parallel_tool_calls"] = False
    return fields


def _tool(tool: ToolBody) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema, "strict": tool.strict}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _choice(choice: ToolChoice) -> Any:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type


# --- thinking


def _reasoning(body: CountRequest) -> dict[str, Any]:
    """Whether and how much to reason, in variables of templates that know them."""
    thinking, effort = body.thinking, body.output_config.effort if body.output_config is not None else None
    if thinking is not None and thinking.is_off:
        return {"reasoning_effort": "none"}
    fields: dict[str, Any] = {} if effort is None else {"reasoning_effort": effort}
    if thinking is not None:
        fields["chat_template_kwargs"] = dict.fromkeys(SWITCHES, True)
    if thinking is not None and thinking.budget_tokens is not None:
        fields["thinking_token_budget"] = thinking.budget_tokens
    return fields
