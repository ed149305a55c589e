"""The tools of a request, checked: those it offers, and those that the model may or must call."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from engines.errors import InvalidRequest, UnsupportedParameter
from engines.text.grammar import check_schema_size
from server.model.fields import as_flag, as_name, check_description, known_of, shown

MAX_TOOLS = 128
"""OpenAI's."""
CHOICES = "'none', 'auto', 'required', or an object that names a function or allowed tools"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    name: str
    parameters: dict[str, Any]
    """The JSON schema of the arguments."""
    strict: bool
    definition: dict[str, Any]
    """The tool as in the request, without what is not known: chat templates show it to the model so."""
    param: str
    """Its place in the request, for error messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRequest:
    tools: tuple[Tool, ...]
    """Tools that the model is shown and may call: none, all, or the allowed ones."""
    mode: Literal["none", "auto", "required"]
    named: str | None = None
    """Name of the one tool that must be called."""
    parallel: bool = True
    """Whether one answer may hold more than one call."""

    @property
    def callable(self) -> tuple[Tool, ...]:
        return tuple(tool for tool in self.tools if self.named in (None, tool.name))


@contextmanager
def as_schema_of(tool: Tool) -> Iterator[None]:
    """What reads a tool's parameters may find that they are no schema: InvalidRequest."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise InvalidRequest(f"Not a JSON schema: {error}", param=f"{tool.param}.parameters") from None


NO_TOOLS = ToolRequest(tools=(), mode="none")


def read_tools(tools: Any, tool_choice: Any = None, parallel_tool_calls: bool | None = None) -> ToolRequest:
    """Check the three fields of a request, each as parsed JSON or None where it is not given."""
    if tools in (None, []):
        if tool_choice not in (None, "none", "auto"):
            raise InvalidRequest("'tool_choice' is only allowed when 'tools' are specified", param="tool_choice")
        return NO_TOOLS
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"'tools' must be a list of at most {MAX_TOOLS} tools", param="tools")
    offered = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools))
    _refuse_duplicates(offered)
    return _choose(offered, tool_choice, parallel_tool_calls is not False)


def _tool(value: Any, param: str) -> Tool:
    if isinstance(value, dict) and value.get("type") != "function":
        message = f"Tools of type {shown(value.get('type'))} are not supported, only 'function'"
        raise UnsupportedParameter(message, param=f"{param}.type")
    definition = known_of(value, {"type", "function"}, param)
    param = f"{param}.function"
    function = known_of(definition.get("function"), {"name", "description", "parameters", "strict"}, param)
    check_description(function.get("description"), f"{param}.description")
    return Tool(
        name=as_name(function.get("name"), f"{param}.name"),
        parameters=_parameters(function.get("parameters"), f"{param}.parameters"),
        strict=as_flag(function.get("strict"), f"{param}.strict"),
        definition=definition | {"function": function},
        param=param,
    )


def _parameters(schema: Any, param: str) -> dict[str, Any]:
    if schema is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(schema, dict):
        raise InvalidRequest(f"Expected a JSON schema, got {shown(schema)}", param=param)
    if schema.get("type", "object") != "object":
        message = f"Expected a JSON schema of type 'object', got type {shown(schema['type'])}"
        raise InvalidRequest(message, param=param)
    if not isinstance(schema.get("properties", {}), dict):
        raise InvalidRequest("Expected an object of schemas", param=f"{param}.properties")
    if not isinstance(schema.get("required", []), list):
        raise InvalidRequest("Expected a list of property names", param=f"{param}.required")
    check_schema_size(schema, param)
    return {"type": "object", **schema}


def _refuse_duplicates(tools: tuple[Tool, ...]) -> None:
    seen: set[str] = set()
    for tool in tools:
        if tool.name in seen:
            raise InvalidRequest(f"Two tools have the name {tool.name!r}", param=f"{tool.param}.name")
        seen.add(tool.name)


def _choose(offered: tuple[Tool, ...], choice: Any, parallel: bool) -> ToolRequest:
    if choice == "none":
        return NO_TOOLS
    if choice is None or choice in ("auto", "required"):
        mode: Literal["auto", "required"] = "required" if choice == "required" else "auto"
        return ToolRequest(tools=offered, mode=mode, parallel=parallel)
    if not isinstance(choice, dict):
        raise InvalidRequest(f"Expected {CHOICES}, got {shown(choice)}", param="tool_choice")
    if choice.get("type") == "function":
        name = _named(choice, offered, "tool_choice")
        return ToolRequest(tools=offered, mode="required", named=name, parallel=False)
    if choice.get("type") == "allowed_tools":
        return _allowed(choice, offered, parallel)
    raise InvalidRequest(f"Expected {CHOICES}, got type {shown(choice.get('type'))}", param="tool_choice.type")


def _allowed(choice: dict[str, Any], offered: tuple[Tool, ...], parallel: bool) -> ToolRequest:
    param = "tool_choice.allowed_tools"
    allowed = known_of(choice.get("allowed_tools"), {"mode", "tools"}, param)
    mode, tools = allowed.get("mode"), allowed.get("tools")
    if mode not in ("auto", "required"):
        raise InvalidRequest(f"Expected 'auto' or 'required', got {shown(mode)}", param=f"{param}.mode")
    if not isinstance(tools, list) or not tools:
        raise InvalidRequest("Expected a list of tools", param=f"{param}.tools")
    names = {_named(tool, offered, f"{param}.tools[{index}]") for index, tool in enumerate(tools)}
    kept = tuple(tool for tool in offered if tool.name in names)
    return ToolRequest(tools=kept, mode=mode, parallel=parallel)


def _named(value: Any, offered: tuple[Tool, ...], param: str) -> str:
    """Return the name in `{"type": "function", "function": {"name": ...}}`."""
    tool = known_of(value, {"type", "function"}, param)
    if tool.get("type") != "function":
        raise InvalidRequest(f"Expected 'function', got {shown(tool.get('type'))}", param=f"{param}.type")
    name = known_of(tool.get("function"), {"name"}, f"{param}.function").get("name")
    if any(tool.name == name for tool in offered):
        return str(name)
    choices = ", ".join(repr(tool.name) for tool in offered[:20])
    raise InvalidRequest(f"{shown(name)} is not one of 'tools': {choices}", param=f"{param}.function.name")
