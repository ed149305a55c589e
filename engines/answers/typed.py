"""A value written as plain text, as the JSON that its schema wants."""

import ast
import json
from collections.abc import Mapping
from typing import Any

LITERALS = {"True": "true", "False": "false", "None": "null"}
"""Python's words, which models write too."""
KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
ANYTHING: frozenset[str] = frozenset()


def types_of(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """The types of values that fit a schema, as far as it names them; empty where it names none. `root` is what its
    references point into."""
    found: set[str] = set()
    followed: set[str] = set()
    pending = [schema]
    while pending:
        node = pending.pop()
        if not isinstance(node, Mapping):
            return ANYTHING
        if isinstance(reference := node.get("$ref"), str):
            pending += [] if reference in followed else [target(reference, root)]
            followed.add(reference)
        elif branches := _branches(node):
            pending += branches
        elif kinds := _named(node):
            found |= kinds
        else:
            return ANYTHING
    return frozenset(found)


def _named(schema: Mapping[str, Any]) -> set[str]:
    if "type" in schema:
        named = schema["type"]
        return {kind for kind in (named if isinstance(named, list) else [named]) if isinstance(kind, str)}
    values = schema.get("enum") if isinstance(schema.get("enum"), list) else []
    return {_kind(value) for value in [*(values or []), *([schema["const"]] if "const" in schema else [])]}


def _branches(schema: Mapping[str, Any]) -> list[Any]:
    if "type" in schema:
        return []
    lists = (schema.get(key) for key in ("anyOf", "oneOf", "allOf"))
    return next((branches for branches in lists if isinstance(branches, list)), [])


def typed(text: str, types: frozenset[str]) -> str:
    """JSON for what the model wrote: a string where the schema wants one or the text is no other JSON value."""
    if types == {"string"}:
        return quoted(text)
    value = LITERALS.get(text.strip(), text.strip())
    kind = _json_kind(value)
    if kind is None and types & {"array", "object"} and (found := _literal(value)) is not None:
        return found
    if kind is None or kind == "string":
        return quoted(text)
    fits = not types or kind in types or (kind == "integer" and "number" in types)
    return value if fits or "string" not in types else quoted(text)


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=any("\ud800" <= character <= "\udfff" for character in text))


def _json_kind(text: str) -> str | None:
    """None where it is no JSON."""
    try:
        return _kind(json.loads(text, parse_constant=_refuse))
    except (ValueError, RecursionError):
        return None


def _literal(text: str) -> str | None:
    """A list or an object as Python writes it, as JSON; None where it is neither."""
    try:
        value = ast.literal_eval(text) if text[:1] in ("[", "{") else None
        return None if value is None else json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _refuse(word: str) -> None:
    raise ValueError(word)


def _kind(value: Any) -> str:
    return KINDS.get(type(value), "null")


def target(reference: str, root: Mapping[str, Any]) -> Any:
    """What a reference within a schema points to; None where there is no such thing."""
    value: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        if step:
            value = value.get(step) if isinstance(value, Mapping) else None
    return value
