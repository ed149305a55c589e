"""JSON schemas whose objects hold what they name and nothing else.

A schema that does not say `additionalProperties` allows any. A model that may invent members invents them, often
without end, and who asked for the object has no use for them. Whatever the closed schema describes, the open one does.
"""

from typing import Any

COMBINING = ("allOf", "anyOf", "oneOf")
OTHERS = frozenset({"$dynamicRef", "$recursiveRef", "not", "if", "then", "else", "dependentSchemas", "dependencies"})
"""More keywords by which several schemas describe one value. Their own schemas are left as they are."""
MEMBERS = frozenset({"properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "required"})
MAX_PASSES = 20


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, with `additionalProperties: false` wherever `properties` are said and this is not.

    Not where several schemas describe one object (`allOf`, `$ref` beside `properties`, ...): what one of them does not
    name, another may. What `required` alone names becomes one of the properties.
    """
    shared: set[str] = set()
    for _ in range(MAX_PASSES):
        closing = _Closing(shared)
        result: dict[str, Any] = closing.of(schema, "#", sole=True)
        if closing.met <= shared:
            return result
        if not all(pointer == "#" or pointer.startswith("#/") for pointer in closing.met):
            break
        shared |= closing.met
    return schema


class _Closing:
    """One pass over a schema."""

    def __init__(self, shared: set[str]) -> None:
        """`shared`: pointers to schemas that describe an object together with others."""
        self._shared = shared
        self.met: set[str] = set()
        """The references found where others describe the object, too."""

    def of(self, node: Any, pointer: str, *, sole: bool) -> Any:
        """The node, closed; `sole`: nothing else describes the same value."""
        if not isinstance(node, dict):
            return node
        sole = sole and pointer not in self._shared
        alone = sole and _is_alone(node)
        if not alone and isinstance(node.get("$ref"), str):
            self.met.add(node["$ref"])
        result = dict(node)
        for keyword in ("properties", "$defs", "definitions", "patternProperties"):
            own = keyword in ("$defs", "definitions") or (sole and keyword == "properties" and not _combines(node))
            if isinstance(node.get(keyword), dict):
                result[keyword] = {
                    name: self.of(child, f"{pointer}/{keyword}/{_escaped(name)}", sole=own)
                    for name, child in node[keyword].items()
                }
        for keyword in ("items", "prefixItems", "additionalProperties", *COMBINING):
            own = alone if keyword in COMBINING else sole and not _combines(node)
            result |= self._values(node, keyword, f"{pointer}/{keyword}", own)
        if sole and _is_open(node):
            more: dict[str, Any] = {name: {} for name in node.get("required", []) if name not in node["properties"]}
            result |= {"properties": {**result["properties"], **more}, "additionalProperties": False}
        return result

    def _values(self, node: dict[str, Any], keyword: str, pointer: str, sole: bool) -> dict[str, Any]:
        value = node.get(keyword)
        if isinstance(value, list):
            own = sole and (keyword != "allOf" or len(value) == 1)
            return {keyword: [self.of(child, f"{pointer}/{i}", sole=own) for i, child in enumerate(value)]}
        return {keyword: self.of(value, pointer, sole=sole)} if isinstance(value, dict) else {}


def _combines(node: dict[str, Any]) -> bool:
    return bool(node.keys() & {"$ref", *COMBINING, *OTHERS})


def _is_alone(node: dict[str, Any]) -> bool:
    """Whether what a node combines is all that it says of its value."""
    return len(node.keys() & {"$ref", *COMBINING, *OTHERS}) <= 1 and not node.keys() & (MEMBERS | OTHERS)


def _is_open(node: dict[str, Any]) -> bool:
    properties, required = node.get("properties"), node.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list) or _combines(node):
        return False
    return node.keys() & MEMBERS <= {"properties", "required"} and all(isinstance(name, str) for name in required)


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
