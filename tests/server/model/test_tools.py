"""What a request says about tools is checked before anything else happens."""

from typing import Any

import pytest

from engines.errors import InvalidRequest, UnsupportedParameter
from server.model.tools import NO_TOOLS, read_tools


def function(name: Any = "add", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def named(name: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: Any, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


def test_without_tools_there_is_nothing_to_call() -> None:
    for choice in (None, "none", "auto"):
        assert read_tools(None, choice).mode == "none"


def test_tools_may_be_called_unless_the_choice_says_otherwise() -> None:
    tools = [function("add"), function("sub")]
    assert read_tools(tools).mode == "auto"
    assert read_tools(tools, "auto", True).parallel
    assert not read_tools(tools, "auto", False).parallel
    assert read_tools(tools, "required").mode == "required"
    assert read_tools(tools, "none").tools == ()


def test_a_named_tool_must_be_called_once() -> None:
    request = read_tools([function("add"), function("sub")], named("sub"))
    assert (request.mode, request.named, request.parallel) == ("required", "sub", False)
    assert [tool.name for tool in request.tools] == ["add", "sub"]
    assert [tool.name for tool in request.callable] == ["sub"]


def test_allowed_tools_leave_the_others_out() -> None:
    request = read_tools([function("add"), function("sub"), function("mul")], allowed("required", "mul", "add"))
    assert request.mode == "required"
    assert [tool.name for tool in request.tools] == ["add", "mul"]


def test_parameters_may_be_left_out() -> None:
    (tool,) = read_tools([function()]).tools
    assert tool.parameters == {"type": "object", "properties": {}, "additionalProperties": False}


def test_the_definition_is_kept_as_it_was_sent() -> None:
    definition = function(description="Adds", parameters={"type": "object"}, strict=True)
    (tool,) = read_tools([definition]).tools
    assert tool.definition == definition
    assert tool.strict


def test_what_is_not_known_is_not_shown_to_the_model() -> None:
    (tool,) = read_tools([{**function(surprise=1), "cache_control": {"type": "ephemeral"}}]).tools
    assert tool.definition == function()
    assert read_tools([function("add")], {**named("add"), "more": 1}).named == "add"


def test_an_empty_list_is_no_tools() -> None:
    assert read_tools([]) == NO_TOOLS


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ("add", None, "tools"),
        ([function(f"f{i}") for i in range(129)], None, "tools"),
        (["add"], None, "tools[0]"),
        ([{"type": "function"}], None, "tools[0].function"),
        ([function("has space")], None, "tools[0].function.name"),
        ([function("")], None, "tools[0].function.name"),
        ([function("a" * 129)], None, "tools[0].function.name"),
        ([function("né")], None, "tools[0].function.name"),
        ([function(None)], None, "tools[0].function.name"),
        ([function(), function()], None, "tools[1].function.name"),
        ([function(description=5)], None, "tools[0].function.description"),
        ([function(strict="yes")], None, "tools[0].function.strict"),
        ([function(parameters=[])], None, "tools[0].function.parameters"),
        ([function(parameters={"type": "array"})], None, "tools[0].function.parameters"),
        ([function(parameters={"properties": []})], None, "tools[0].function.parameters.properties"),
        ([function(parameters={"required": "a"})], None, "tools[0].function.parameters.required"),
        ([function(parameters={"properties": {"a": deep(300)}})], None, "tools[0].function.parameters"),
        (None, "required", "tool_choice"),
        (None, named("add"), "tool_choice"),
        ([function()], "always", "tool_choice"),
        ([function()], 5, "tool_choice"),
        ([function()], ["auto"], "tool_choice"),
        ([function()], {"type": "custom"}, "tool_choice.type"),
        ([function()], named("sub"), "tool_choice.function.name"),
        ([function()], named(["add"]), "tool_choice.function.name"),
        ([function()], {"type": "function"}, "tool_choice.function"),
        ([function()], {"type": "allowed_tools"}, "tool_choice.allowed_tools"),
        ([function()], allowed("maybe", "add"), "tool_choice.allowed_tools.mode"),
        ([function()], allowed("auto"), "tool_choice.allowed_tools.tools"),
        ([function()], allowed("auto", "sub"), "tool_choice.allowed_tools.tools[0].function.name"),
    ],
)
def test_what_is_malformed_is_refused_with_the_name_of_the_field(tools: Any, choice: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        read_tools(tools, choice)
    assert refusal.value.param == param
    assert len(refusal.value.message) < 1000


def test_tools_of_other_types_are_not_supported() -> None:
    with pytest.raises(UnsupportedParameter, match="custom") as refusal:
        read_tools([{"type": "custom", "custom": {"name": "add"}}])
    assert refusal.value.param == "tools[0].type"
