"""The arguments of a call in tags, each as its part of the tool's schema allows, as rules of Lark."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from engines.errors import InvalidRequest
from engines.text.tool_syntax import Tags
from engines.text.written_calls import plain
from server.model.lark_writer import LarkWriter
from server.model.tools import Tool
from server.model.typed import types_of

ONLY_IN_JSON = ("pattern", "format")
"""Keywords of strings that hold where a string stands in JSON, and cannot where it stands in tags."""


class TaggedRules:
    """Rules for the arguments of one tool: those that the schema requires, and those that it allows, in its order."""

    def __init__(
        self, tool: Tool, tags: Tags, writer: LarkWriter, value_rule: Callable[[dict[str, Any]], str], name: str
    ) -> None:
        """`value_rule`: a schema as an expression for JSON that fits it; `name`: of the rule."""
        self._tool = tool
        self._tags = tags
        self._writer = writer
        self._value_rule = value_rule
        self._name = name
        self._rules: list[str] = []

    def rules(self) -> list[str]:
        try:
            return self._all()
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise InvalidRequest(f"Not a JSON schema: {error}", param=f"{self._tool.param}.parameters") from None

    def _all(self) -> list[str]:
        parameters = self._tool.parameters
        required = parameters.get("required", [])
        parts = []
        for index, (key, schema) in enumerate(parameters.get("properties", {}).items()):
            rule = f"{self._name}_{index}"
            begin = self._writer.text(self._tags.before + key + self._tags.between)
            self._rules.append(f"{rule}: {begin} ({' | '.join(self._values(schema, rule))})")
            parts.append(rule if key in required else f"{rule}?")
        end = self._writer.text(self._tags.end)
        return [f"{self._name}: {' '.join(parts)} {end}", *self._rules]

    def _values(self, schema: Any, rule: str) -> Iterator[str]:
        """The values that fit, each with the tag behind it."""
        types = types_of(schema, self._tool.parameters)
        schema = schema if isinstance(schema, Mapping) else {}
        branches = schema.get("anyOf") or schema.get("oneOf")
        if isinstance(branches, list) and "string" in types:
            for index, branch in enumerate(branches):
                yield from self._values(branch, f"{rule}_{index}")
        elif types and "string" not in types:
            yield f"{self._value_rule(self._with_definitions(schema))} {self._writer.text(self._tags.after)}"
        elif isinstance(schema.get("enum"), list):
            yield from (self._writer.text(plain(value) + self._tags.after) for value in schema["enum"])
        elif "const" in schema:
            yield self._writer.text(plain(schema["const"]) + self._tags.after)
        else:
            self._refuse_what_cannot_hold(schema)
            least, most = (schema.get(key) for key in ("minLength", "maxLength"))
            text, rules = self._writer.up_to(self._tags.after, rule=f"{rule}_text", least=least or 0, most=most)
            self._rules += rules
            yield text

    def _with_definitions(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """What references of the schema point to stands beside it."""
        parameters = self._tool.parameters
        return {**{key: parameters[key] for key in ("$defs", "definitions") if key in parameters}, **schema}

    def _refuse_what_cannot_hold(self, schema: Mapping[str, Any]) -> None:
        found = next((keyword for keyword in ONLY_IN_JSON if keyword in schema), None)
        if self._tool.strict and found is not None:
            message = f"The keyword {found!r} cannot be enforced in the form in which this model writes arguments"
            raise InvalidRequest(message, param=f"{self._tool.param}.parameters")
