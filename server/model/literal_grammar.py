"""The arguments of a call as literals, each as its part of the tool's schema allows, as rules of Lark."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engines.answers.typed import target
from engines.errors import InvalidRequest
from engines.text.tool_syntax import Literals
from engines.text.written_calls import literal, literal_key
from server.model.lark_writer import LarkWriter
from server.model.tools import Tool, as_schema_of

BINDING = {"anyOf", "const", "enum", "items", "oneOf", "properties", "required", "type", "additionalProperties"}
BINDING |= {"maxItems", "maxLength", "minItems", "minLength", "$ref", "$defs", "definitions"}
TELLING = {"$schema", "default", "description", "examples", "title"}
ENFORCED = BINDING | TELLING
"""Keywords of schemas that the rules keep, or that bind nothing."""
ESCAPED = r"[^\x22\\\x00-\x1f]|\\[\x22\\nt]"
"""A character of a string in double quotes."""
SCALARS = ("string", "number", "boolean", "null")


class LiteralRules:
    """Rules for the arguments of one tool. A schema that names no type allows any single value."""

    def __init__(self, tool: Tool, syntax: Literals, writer: LarkWriter, name: str) -> None:
        """`name`: of the rule."""
        self._tool = tool
        self._syntax = syntax
        self._writer = writer
        self._name = name
        self._rules: dict[str, str] = {}
        self._references: dict[str, str] = {}

    def rules(self) -> list[str]:
        with as_schema_of(self._tool):
            return self._all()

    def _all(self) -> list[str]:
        members = self._members(self._tool.parameters, self._syntax.assign, quoted=False)
        self._rules = {self._name: f"{members} {self._writer.text(self._syntax.close)}", **self._rules}
        return [f"{name}: {body}" for name, body in self._rules.items()]

    def _members(self, schema: Mapping[str, Any], assign: str, *, quoted: bool) -> str:
        """Those that the schema requires, and those that it allows, in its order, with commas between them."""
        required = schema.get("required", [])
        members = []
        for key, value in schema.get("properties", {}).items():
            begin = literal_key(self._syntax, key) if quoted else key
            members.append((f"{self._writer.text(begin + assign)} {self._value(value)}", key in required))
        return self._joined(members)

    def _joined(self, members: Sequence[tuple[str, bool]]) -> str:
        """Members in their order, with commas between them; those that are not required may be left out."""
        comma, rest = self._writer.text(self._syntax.comma), ""
        firsts: list[str] = []
        for member, required in reversed(members):
            firsts = [f"{member} {rest}", *([] if required else firsts)]
            name = f"{self._name}_{len(self._rules)}"
            self._rules[name] = f"{comma} {member} {rest}" if required else f"({comma} {member})? {rest}"
            rest = name
        if not firsts:
            return ""
        return f"({' | '.join(firsts)}){'' if any(required for _, required in members) else '?'}"

    def _value(self, schema: Any) -> str:
        """The name of a rule for values that fit the schema."""
        name = f"{self._name}_{len(self._rules)}"
        self._rules[name] = ""
        self._rules[name] = " | ".join(self._alternatives(schema if isinstance(schema, Mapping) else {}, name))
        return name

    def _alternatives(self, schema: Mapping[str, Any], name: str) -> Iterator[str]:
        self._refuse_what_cannot_hold(schema)
        if isinstance(reference := schema.get("$ref"), str):
            if reference not in self._references:
                self._references[reference] = name
                schema = target(reference, self._tool.parameters)
                yield from self._alternatives(schema if isinstance(schema, Mapping) else {}, name)
            else:
                yield self._references[reference]
        elif isinstance(branches := schema.get("anyOf") or schema.get("oneOf"), list):
            yield from map(self._value, branches)
        elif "enum" in schema or "const" in schema:
            values = schema["enum"] if "enum" in schema else [schema["const"]]
            yield from (self._writer.text(literal(self._syntax, value)) for value in values)
        else:
            named = schema.get("type", SCALARS)
            for kind in [named] if isinstance(named, str) else named:
                yield self._kind(kind, schema, name)

    def _kind(self, kind: str, schema: Mapping[str, Any], name: str) -> str:
        true, false, null = self._syntax.words
        match kind:
            case "string":
                return self._string(schema, name)
            case "integer":
                return "/-?(0|[1-9][0-9]{0,15})/"
            case "number":
                return r"/-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,15})?/"
            case "boolean":
                return f'"{true}" | "{false}"'
            case "null":
                return f'"{null}"'
            case "array":
                return self._array(schema)
            case "object":
                return f'"{{" {self._members(schema, self._syntax.colon, quoted=True)} "}}"'
        raise InvalidRequest(f"Invalid type: {kind}", param=f"{self._tool.param}.parameters")

    def _string(self, schema: Mapping[str, Any], name: str) -> str:
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        if self._syntax.escapes:
            return f'/"({ESCAPED}){{{least},{"" if most is None else most}}}"/'
        quote = self._syntax.quotes[0]
        text, rules = self._writer.up_to(quote, rule=f"{name}_text", least=least, most=most)
        for rule in rules:
            head, _, body = rule.partition(": ")
            self._rules[head] = body
        return f"{self._writer.text(quote)} {text}"

    def _array(self, schema: Mapping[str, Any]) -> str:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return '"[" "]"'
        item = self._value(schema.get("items"))
        times = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        items = f"{item} ({self._writer.text(self._syntax.comma)} {item}){times}"
        return f'"[" {items} "]"' if least else f'"[" ({items})? "]"'

    def _refuse_what_cannot_hold(self, schema: Mapping[str, Any]) -> None:
        found = next((keyword for keyword in schema if keyword not in ENFORCED), None)
        if self._tool.strict and found is not None:
            message = f"The keyword {found!r} cannot be enforced in the form in which this model writes arguments"
            raise InvalidRequest(message, param=f"{self._tool.param}.parameters")
