"""`response_format` and `structured_outputs` become a constraint, or a refusal that names the field."""

import json
from typing import Any

import pytest

from engines.errors import InvalidRequest
from engines.types import Structured
from tests.server.openai.outputs import read_structured

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


VLLM_DEFAULTS = {
    "json": None, "regex": None, "choice": None, "grammar": None, "json_object": None, "disable_any_whitespace": False,
    "disable_additional_properties": False, "whitespace_pattern": None, "structural_tag": None,
}  # fmt: skip


def test_the_defaults_that_a_client_of_vllm_may_send_along_ask_for_nothing() -> None:
    assert read_structured(None, {**VLLM_DEFAULTS, "regex": "a+"}) == Structured(kind="regex", value="a+")


def json_schema(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, **fields}}


def test_nothing_asked_is_nothing_constrained() -> None:
    assert read_structured(None) is None
    assert read_structured({"type": "text"}) is None


def test_each_way_to_ask_has_its_constraint() -> None:
    free = read_structured({"type": "json_object"})
    assert (free.kind, free.value) == ("json_object", "")
    schema = read_structured(json_schema(strict=True, description="An answer"))
    assert (schema.kind, json.loads(schema.value)) == ("json_schema", SCHEMA)
    assert read_structured({"type": "json_object", "schema": SCHEMA}) == read_structured(json_schema())
    assert read_structured({"type": "json_object", "schema": None}) == free
    assert read_structured(None, {"json": SCHEMA}) == schema
    assert read_structured(None, {"json": json.dumps(SCHEMA)}) == schema
    assert read_structured(None, {"regex": "a+"}) == Structured(kind="regex", value="a+")
    assert read_structured(None, {"choice": ["a", "b"]}) == Structured(kind="choice", value='["a", "b"]')
    assert read_structured(None, {"grammar": 'start: "a"'}) == Structured(kind="grammar", value='start: "a"')
    assert read_structured(None, {"json_object": True}) == free
    assert read_structured({"type": "text"}, {"regex": "a+", "json": None}) == Structured(kind="regex", value="a+")


@pytest.mark.parametrize("strict", [{}, {"strict": None}, {"strict": False}])
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        {"type": "object", "properties": {"path": {"type": "string", "format": "path"}}, "title": "A title"},
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"type": "object", "propertyNames": {"pattern": "^a"}, "default": {}},
    ],
)
def test_without_strict_what_cannot_be_enforced_is_left_out(strict: dict[str, Any], schema: dict[str, Any]) -> None:
    assert read_structured(json_schema(schema=schema, **strict)) is not None


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("response_format", "structured_outputs", "param"),
    [
        ("json", None, "response_format"),
        ({}, None, "response_format.type"),
        ({"type": "xml"}, None, "response_format.type"),
        ({"type": ["text"]}, None, "response_format.type"),
        ({"type": "json_object", "schema": []}, None, "response_format.schema"),
        ({"type": "json_object", "json_schema": {}}, None, "response_format.json_schema"),
        ({"type": "text", "schema": SCHEMA}, None, "response_format.schema"),
        ({**json_schema(), "schema": SCHEMA}, None, "response_format.schema"),
        ({"type": "text", "json_schema": {}}, None, "response_format.json_schema"),
        ({"type": "json_schema"}, None, "response_format.json_schema"),
        (json_schema(name="has space"), None, "response_format.json_schema.name"),
        (json_schema(name=None), None, "response_format.json_schema.name"),
        (json_schema(description=1), None, "response_format.json_schema.description"),
        (json_schema(strict="yes"), None, "response_format.json_schema.strict"),
        (json_schema(schema=None), None, "response_format.json_schema.schema"),
        (json_schema(schema={"type": "text"}), None, "response_format.json_schema.schema"),
        (json_schema(schema={"enum": nested(2000)}), None, "response_format.json_schema.schema"),
        (json_schema(schema={"minimum": float("nan")}), None, "response_format.json_schema.schema"),
        (json_schema(extra=1), None, "response_format.json_schema.extra"),
        (None, [], "structured_outputs"),
        (None, {}, "structured_outputs"),
        (None, {"regex": "a", "choice": ["a"]}, "structured_outputs"),
        (None, {"structural_tag": {}}, "structured_outputs.structural_tag"),
        (None, {"regex": "a", "whitespace_pattern": " "}, "structured_outputs.whitespace_pattern"),
        (None, {"json": {}, "disable_any_whitespace": True}, "structured_outputs.disable_any_whitespace"),
        (None, {"json_object": False}, "structured_outputs.json_object"),
        (None, {"json": 5}, "structured_outputs.json"),
        (None, {"regex": "(a"}, "structured_outputs.regex"),
        (None, {"regex": 5}, "structured_outputs.regex"),
        (None, {"choice": []}, "structured_outputs.choice"),
        (None, {"choice": "a"}, "structured_outputs.choice"),
        (None, {"choice": ["a", 1]}, "structured_outputs.choice"),
        (None, {"choice": ["\ud800"]}, "structured_outputs.choice"),
        (None, {"grammar": "root ::= ("}, "structured_outputs.grammar"),
        (None, {"grammar": "root ::= selct"}, "structured_outputs.grammar"),
        (None, {"json": {"not": {"type": "null"}}}, "structured_outputs.json"),
        (json_schema(strict=True, schema={"not": {"type": "null"}}), None, "response_format.json_schema.schema"),
        (
            json_schema(strict=True, schema={"type": "string", "format": "path"}),
            None,
            "response_format.json_schema.schema",
        ),
        ({"type": "json_object"}, {"regex": "a"}, "structured_outputs"),
    ],
)
def test_what_is_malformed_is_refused_with_the_name_of_the_field(
    response_format: Any, structured_outputs: Any, param: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        read_structured(response_format, structured_outputs)
    assert refusal.value.param == param
