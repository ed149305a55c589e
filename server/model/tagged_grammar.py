"""The arguments of a call in tags, each as its part of the tool's schema allows, as rules of Lark."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from engines.answers.typed import target, types_of
from engines.errors import InvalidRequest
from engines.text.tool_syntax import Tags
from engines.text.written_calls import plain
from server.model.lark_writer import LarkWriter
from server.model.tools import Tool, as_schema_of

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
        self._texts: dict[tuple[int, int | None], str] = {}

    def rules(self) -> list[str]:
        with as_schema_of(self._tool):
            return self._all()

    def _all(self) -> list[str]:
        parameters = self._tool.parameters
        required = parameters.get("required", [])
        parts = []
        for index, (key, schema) in enumerate(parameters.get("properties", {}).items()):
            rule = f"{self._name}_{index}"
            self._rules.append(f"{rule}: {' | '.join(self._argument(key, schema))}")
            parts.append(rule if key in required else f"{rule}?")
        end = self._writer.text(self._tags.end)
        return [f"{self._name}: {' '.join(parts)} {end}", *self._rules]

    def _argument(self, key: str, schema: Any) -> Iterator[str]:
        """An argument with its tags, of which those before a value may say whether it is a string."""
        values: dict[str, list[str]] = {}
        for string, value in self._values(schema, set()):
            values.setdefault(self._tags.begin(key, string=string), []).append(value)
        for begin, fitting in values.items():
            yield f"{self._writer.text(begin)} ({' | '.join(fitting)})"

    def _values(self, schema: Any, followed: set[str]) -> Iterator[tuple[bool, str]]:
        """The values that fit, each with the tag behind it, and whether it is a string. `followed`: references whose
        values are there."""
        while isinstance(schema, Mapping) and isinstance(reference := schema.get("$ref"), str):
            if reference in followed:
                return
            followed.add(reference)
            schema = target(reference, self._tool.parameters)
        schema = schema if isinstance(schema, Mapping) else {}
        types = types_of(schema, self._tool.parameters)
        branches = schema.get("anyOf") or schema.get("oneOf")
        if isinstance(branches, list) and "string" in types:
            for branch in branches:
                yield from self._values(branch, followed)
        elif types and "string" not in types:
            yield False, f"{self._value_rule(self._with_definitions(schema))} {self._writer.text(self._tags.after)}"
        elif isinstance(schema.get("enum"), list):
            yield from map(self._constant, schema["enum"])
        elif "const" in schema:
            yield self._constant(schema["const"])
        else:
            self._refuse_what_cannot_hold(schema)
            yield True, self._text(schema.get("minLength", 0), schema.get("maxLength"))

    def _constant(self, value: Any) -> tuple[bool, str]:
        return isinstance(value, str), self._writer.text(plain(value) + self._tags.after)

    def _text(self, least: int, most: int | None) -> str:
        """Any text of this many characters and the tag behind it: one rule for all arguments."""
        if (least, most) not in self._texts:
            rule = f"{self._name}_text_{len(self._texts)}"
            self._texts[least, most], rules = self._writer.up_to(self._tags.after, rule=rule, least=least, most=most)
            self._rules += rules
        return self._texts[least, most]

    def _with_definitions(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """What references of the schema point to stands beside it."""
        if '"$ref"' not in json.dumps(schema):
            return dict(schema)
        parameters = self._tool.parameters
        return {**{key: parameters[key] for key in ("$defs", "definitions") if key in parameters}, **schema}

    def _refuse_what_cannot_hold(self, schema: Mapping[str, Any]) -> None:
        found = next((keyword for keyword in ONLY_IN_JSON if keyword in schema), None)
        if self._tool.strict and found is not None:
            message = f"The keyword {found!r} cannot be enforced in the form in which this model writes arguments"
            raise InvalidRequest(message, param=f"{self._tool.param}.parameters")
