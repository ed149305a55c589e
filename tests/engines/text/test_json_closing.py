"""Objects hold what their schema names, wherever that cannot make what it describes impossible."""

from typing import Any

import pytest

from engines.text.json_closing import closed

A: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
B: dict[str, Any] = {"type": "object", "properties": {"b": {"type": "integer"}}}
CLOSED_A = {**A, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (A, CLOSED_A),
        ({"type": "array", "items": A}, {"type": "array", "items": CLOSED_A}),
        ({"anyOf": [A, {"type": "null"}]}, {"anyOf": [CLOSED_A, {"type": "null"}]}),
        ({"allOf": [A], "description": "the only one"}, {"allOf": [CLOSED_A], "description": "the only one"}),
        ({"$defs": {"a": A}, "$ref": "#/$defs/a"}, {"$defs": {"a": CLOSED_A}, "$ref": "#/$defs/a"}),
        ({"additionalProperties": A}, {"additionalProperties": CLOSED_A}),
        (
            {"properties": {"inner": A}, "required": ["inner", "c"]},
            {
                "properties": {"inner": CLOSED_A, "c": {}},
                "required": ["inner", "c"],
                "additionalProperties": False,
            },
        ),
        ({"type": "object", "properties": {}}, {"type": "object", "properties": {}, "additionalProperties": False}),
    ],
)
def test_an_object_that_names_its_properties_is_closed(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    assert closed(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {**A, "additionalProperties": True},
        {**A, "additionalProperties": {"type": "string"}},
        {**A, "patternProperties": {"^b": {}}},
        {**A, "unevaluatedProperties": False},
        {"allOf": [A, B]},
        {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {"a": A, "b": {"anyOf": [B]}}},
        {"allOf": [{"$ref": "#/definitions/a~1b"}, B], "definitions": {"a/b": A}},
        {**A, "$ref": "#/$defs/b", "$defs": {"b": B}},
        {**A, "anyOf": [{"required": ["a"]}, B]},
        {"allOf": [{"properties": {"same": A}}, {"properties": {"same": B}}]},
        {"allOf": [{"$ref": "#somewhere"}, B], "$defs": {"c": {**A, "$anchor": "somewhere"}}},
        {"if": A, "then": B},
        {"not": A},
        {"enum": [A]},
        {"const": {"properties": {}}},
    ],
)
def test_it_is_left_open_where_that_is_said_or_another_schema_may_name_more(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    schema = {"properties": {"properties": {"type": "string"}, "items": A, "enum": {"type": "string"}}}
    assert closed(schema)["properties"] == {**schema["properties"], "items": CLOSED_A}


def test_a_chain_of_references_without_end_is_left_as_it_is() -> None:
    links = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(200)}
    schema = {"allOf": [{"$ref": "#/$defs/d0"}, B], "$defs": {**links, "d200": A}}
    assert closed(schema) == schema
