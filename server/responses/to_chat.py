"""The request of a response becomes the request of a chat, which the same pipeline answers."""

from collections.abc import Mapping
from typing import Any

from engines.errors import InvalidRequest, UnsupportedParameter
from server.http.body import validate
from server.model.fields import as_object, shown
from server.openai.schema import ChatRequest
from server.responses.context import Context
from server.responses.messages import Unseal, to_messages
from server.responses.schema import PromptFields, ResponsesRequest
from server.responses.words import LOGPROBS

SAME = (
    "model",
    "temperature",
    "top_p",
    "stream",
    "stream_options",
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "service_tier",
    "moderation",
    "chat_template_kwargs",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "stop",
    "min_tokens",
    "ignore_eos",
    "structured_outputs",
    "priority",
    "cache_salt",
)
"""Fields that a chat has too, and that mean the same there."""


def to_chat(body: PromptFields, context: Context, unseal: Unseal) -> ChatRequest:
    """Raises InvalidRequest, in the words of a chat where a chat refuses it too."""
    given = body.model_dump(include=body.model_fields_set & set(SAME), exclude_unset=True)
    messages = to_messages(body.instructions, context, unseal)
    if not messages:
        raise InvalidRequest("'input' has nothing to answer.", param="input")
    chat: dict[str, Any] = {"model": "", **given, "messages": messages, **_tools(body)}
    if body.text.format is not None:
        chat["response_format"] = _response_format(body.text.format)
    if body.text.verbosity is not None:
        chat["verbosity"] = body.text.verbosity
    if body.reasoning.effort is not None:
        chat["reasoning_effort"] = body.reasoning.effort
    if isinstance(body, ResponsesRequest):
        chat |= _output(body)
    return validate(ChatRequest, chat, refuse_unknown=False, long=context.is_long)


def _output(body: ResponsesRequest) -> dict[str, Any]:
    output: dict[str, Any] = {}
    if body.max_output_tokens is not None:
        output["max_completion_tokens"] = body.max_output_tokens
    if LOGPROBS in body.include or body.top_logprobs:
        output |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    return output


def _response_format(value: Any) -> Any:
    """OpenAI's chat has name, schema and the like one level deeper."""
    if isinstance(value, Mapping) and value.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {key: each for key, each in value.items() if key != "type"}}
    return value


# --- tools


def _tools(body: PromptFields) -> dict[str, Any]:
    if not body.tools:
        if body.tool_choice not in (None, "auto", "none"):
            raise InvalidRequest("'tool_choice' asks for a tool, and 'tools' has none.", param="tool_choice")
        return {}
    if not isinstance(body.tools, list):
        raise InvalidRequest(f"Expected a list of tools, got {shown(body.tools)}", param="tools")
    tools: dict[str, Any] = {"tools": [_tool(tool, f"tools[{position}]") for position, tool in enumerate(body.tools)]}
    if body.tool_choice is not None:
        tools["tool_choice"] = _tool_choice(body.tool_choice)
    if body.parallel_tool_calls is not None:
        tools["parallel_tool_calls"] = body.parallel_tool_calls
    return tools


FUNCTION = ("name", "description", "parameters", "strict")


def _tool(value: Any, param: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"Expected a tool, got {shown(value)}", param=param)
    if value.get("type") != "function":
        raise UnsupportedParameter(
            f"Tools of type {shown(value.get('type'))} are not supported, only 'function'", param=f"{param}.type"
        )
    if value.get("defer_loading"):
        raise UnsupportedParameter("There is no search for tools here.", param=f"{param}.defer_loading")
    return {"type": "function", "function": {key: value[key] for key in FUNCTION if value.get(key) is not None}}


def _tool_choice(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if value.get("type") == "function":
        return _named(value, "tool_choice")
    if value.get("type") == "allowed_tools":
        choice = as_object(value, {"type", "mode", "tools"}, "tool_choice")
        tools = choice.get("tools")
        if isinstance(tools, list):
            tools = [_named(tool, f"tool_choice.tools[{position}]") for position, tool in enumerate(tools)]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": tools}}
    raise UnsupportedParameter(
        f"'tool_choice' of type {shown(value.get('type'))} is not supported, only 'function' and 'allowed_tools'",
        param="tool_choice.type",
    )


def _named(value: Any, param: str) -> Any:
    if not isinstance(value, Mapping) or value.get("type") != "function":
        return value  # a chat refuses it too
    return {"type": "function", "function": {"name": as_object(value, {"type", "name"}, param).get("name")}}
