"""JSON schemas as Lark rules, with white space between the parts: as much as people's JSON has, and no more.

The compiler's own white space may repeat without end, and a model that likes blanks then writes nothing else. What has
no rule here (patterns of keys, `allOf`, ...) is left to the compiler, with the separators of `json.dumps` alone.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

INDENT = 40
"""Most spaces of one line's indentation: ten levels of four."""
BLANK = rf"(\n {{0,{INDENT}}}|\n\t{{0,10}}| )?"
TERMINALS = rf"""
BEGIN: /\{{{BLANK}/
END: /{BLANK}\}}/
OPEN: /\[{BLANK}/
CLOSE: /{BLANK}\]/
COMMA: /,{BLANK}/
COLON: / ?: ?/
KEY: /"([^"\\\x00-\x1f\x7f]|\\["\\\/bfnrt])*"/
"""
ANY = (
    'any: any_object | any_array | %json {"type": ["string", "number", "boolean", "null"]}',
    "any_object: BEGIN (any_pair (COMMA any_pair)*)? END",
    "any_pair: KEY COLON any",
    "any_array: OPEN (any (COMMA any)*)? CLOSE",
)
UNENFORCED = frozenset(
    {
        "not", "if", "then", "else", "dependentSchemas", "dependentRequired", "dependencies", "propertyNames",
        "unevaluatedItems", "unevaluatedProperties", "contains", "minContains", "maxContains", "uniqueItems",
    }
)  # fmt: skip
"""Keywords that the compiler does not know: an error for it, unless it is told to be lenient."""
KEYWORDS = UNENFORCED | {
    "anyOf", "oneOf", "allOf", "$ref", "$dynamicRef", "$recursiveRef", "$anchor", "const", "enum", "type", "items",
    "additionalItems", "prefixItems", "minItems", "maxItems", "properties", "additionalProperties",
    "patternProperties", "required", "minProperties", "maxProperties", "minLength", "maxLength", "pattern", "format",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
}  # fmt: skip
"""All keywords that change what a schema describes. Every other one is a note."""
MAX_DEFINITIONS = 4096
"""Characters of definitions that are repeated for what the compiler is left with."""


class _Beyond(Exception):
    """A schema for which there are no rules."""


def json_rules(schema: dict[str, Any], options: Mapping[str, Any]) -> str | None:
    """A grammar in Lark for the JSON that a schema describes; None where there are no rules for it.

    `options`: the compiler's, for what is left to it. The compiler's word on the whole schema is still needed: what is
    wrong with it, or cannot be enforced, need not show here.
    """
    rules = _Rules(schema, options)
    try:
        start = rules.of(schema)
    except (_Beyond, RecursionError):
        return None
    return "\n".join([f"start: {start}", TERMINALS, *rules.lines])


class _Rules:
    def __init__(self, root: dict[str, Any], options: Mapping[str, Any]) -> None:
        self._root = root
        self._options = options
        self._names: dict[str, str] = {}
        self._count = 0
        self.lines: list[str] = []

    def of(self, node: Any) -> str:
        """The name of the rule for a schema."""
        if node is True or node == {}:
            return self._any()
        if not isinstance(node, dict):
            raise _Beyond
        key = json.dumps({keyword: value for keyword, value in node.items() if keyword in KEYWORDS})
        if key not in self._names:
            self._names[key] = self._new()
            self._add(self._names[key], self._body(node))
        return self._names[key]

    def _body(self, node: dict[str, Any]) -> str:
        said = node.keys() & KEYWORDS
        if self._options.get("lenient"):
            said -= UNENFORCED
        match sorted(said):
            case []:
                return self._any()
            case ["$ref"]:
                return self._reference(node["$ref"])
            case ["anyOf"]:
                return self._either(node["anyOf"])
            case ["oneOf"] if self._options.get("coerce_one_of"):
                return self._either(node["oneOf"])
            case ["allOf"] if isinstance(node["allOf"], list) and len(node["allOf"]) == 1:
                return self.of(node["allOf"][0])
        kinds = node.get("type")
        if isinstance(kinds, list) and kinds and {"object", "array"} & set(map(str, kinds)) and "enum" not in said:
            return self._either([{**node, "type": kind} for kind in kinds])
        if kinds == "object" and said <= {"type", "properties", "required", "additionalProperties"}:
            return self._object(node)
        if kinds == "array" and said <= {"type", "items", "prefixItems", "minItems", "maxItems"}:
            return self._array(node)
        return self._left(node)

    # ---- what has rules

    def _any(self) -> str:
        if "any" not in self._names:
            self._names["any"] = "any"
            self.lines.extend(ANY)
        return "any"

    def _reference(self, pointer: Any) -> str:
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise _Beyond
        node: Any = self._root
        for part in pointer.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(node, dict) or part not in node:
                raise _Beyond
            node = node[part]
        return self.of(node)

    def _either(self, options: Any) -> str:
        if not isinstance(options, list) or not options:
            raise _Beyond
        return " | ".join(map(self.of, options))

    def _object(self, node: dict[str, Any]) -> str:
        properties, required = node.get("properties", {}), node.get("required", [])
        more = node.get("additionalProperties", True)
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise _Beyond
        schemas = {**properties, **{name: more for name in map(str, required) if name not in properties}}
        pairs = [(self._pair(name, schema), name in required) for name, schema in schemas.items()]
        members = self._members(pairs, None if more is False else self._extra(list(schemas), more))
        return f"BEGIN {members} END"

    def _pair(self, name: str, schema: Any) -> str:
        return f"{_literal(json.dumps(name, ensure_ascii=False))} COLON {self.of(schema)}"

    def _extra(self, taken: list[str], schema: Any) -> str:
        """One more member, of a name that is not taken."""
        value = self.of(schema)
        if not taken:
            return f"KEY COLON {value}"
        self._count += 1
        names = " | ".join(_literal(json.dumps(name, ensure_ascii=False)) for name in taken)
        self.lines.append(f"KEY_{self._count}: KEY & ~({names})")
        return f"KEY_{self._count} COLON {value}"

    def _members(self, pairs: list[tuple[str, bool]], extra: str | None) -> str:
        """The members in their order. A rule for each, from the last one on: what may follow it."""
        later = "" if extra is None else f"(COMMA {extra})*"
        first = "" if extra is None else f"({extra} {later})?"
        for pair, is_required in reversed(pairs):
            here = self._named(f"{pair} {later}")
            later, first = (
                (f"COMMA {here}", here)
                if is_required
                else (self._named(f"COMMA {here} | {later}"), f"{here} | {first}")
            )
            first = self._named(first)
        return first

    def _array(self, node: dict[str, Any]) -> str:
        least, most, prefix = node.get("minItems", 0), node.get("maxItems"), node.get("prefixItems")
        if prefix is not None:
            if not isinstance(prefix, list) or not prefix or not least == most == len(prefix):
                raise _Beyond
            return f"OPEN {' COMMA '.join(map(self.of, prefix))} CLOSE"
        if not all(isinstance(bound, int) for bound in (least, 0 if most is None else most)):
            raise _Beyond
        if most is not None and not 0 < max(least, 1) <= most:
            return self._left(node)
        item = self.of(node.get("items", True))
        upper = "" if most is None else str(most - 1)
        items = f"{item} (COMMA {item}){{{max(least, 1) - 1},{upper}}}"
        return f"OPEN {items} CLOSE" if least > 0 else f"OPEN ({items})? CLOSE"

    # ---- what has none

    def _left(self, node: dict[str, Any]) -> str:
        schema = {key: value for key, value in node.items() if key in KEYWORDS}
        schema |= {key: self._root[key] for key in ("$schema",) if key in self._root}
        references = re.findall(r'"\$ref": "(.*?)"', json.dumps(node))
        if references:
            definitions: dict[str, Any] = {
                key: self._root[key] for key in ("$defs", "definitions") if key in self._root
            }
            if len(json.dumps(definitions)) > MAX_DEFINITIONS or not all(
                reference.startswith(("#/$defs/", "#/definitions/")) for reference in references
            ):
                raise _Beyond
            schema |= definitions
        return f"%json {json.dumps({**schema, 'x-guidance': self._options}, allow_nan=False)}"

    # ---- rules

    def _new(self) -> str:
        self._count += 1
        return f"r{self._count}"

    def _add(self, name: str, body: str) -> None:
        self.lines.append(f"{name}: {body}")

    def _named(self, body: str) -> str:
        if body and " " not in body.strip():
            return body.strip()
        name = self._new()
        self._add(name, body or '""')
        return name


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
