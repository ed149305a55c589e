"""Every kind of constraint becomes a grammar that allows just what was asked, or is refused with a reason."""

import json
import random
from typing import Any

import jsonschema
import pytest

from engines.errors import InvalidRequest
from engines.text import grammar_check
from engines.text.grammar import to_llguidance
from engines.text.grammar_check import validate
from engines.types import Structured, StructuredKind
from tests.byte_tokenizer import accepts, sample

NESTED: list[dict[str, Any]] = [
    {"type": "object"},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
    {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3},
    {"enum": ["red", 'blue "quoted"', 3, None, True, "日本"]},
    {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 4}]},
    {"type": "integer", "minimum": -5, "maximum": 12},
    {"const": {"a": [1, "é"]}},
    {"type": "string", "pattern": "^[a-c]{2,3}$"},
    {"type": "string", "format": "date"},
    {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "boolean"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["value", "next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    {
        "type": "object",
        "properties": {"tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 2}},
        "additionalProperties": {"type": "integer"},
        "required": ["tags"],
    },
    {"type": ["string", "null"], "maxLength": 3},
    {"allOf": [{"type": "integer"}, {"minimum": 1}, {"maximum": 2}]},
]  # fmt: skip


def structured(kind: StructuredKind, value: Any) -> Structured:
    return Structured(kind=kind, value=value if isinstance(value, str) else json.dumps(value))


@pytest.mark.parametrize("schema", NESTED, ids=lambda schema: json.dumps(schema)[:40])
def test_whatever_is_sampled_under_a_schema_validates_against_it(schema: dict[str, Any]) -> None:
    constraint = structured("json_schema", schema)
    validate(constraint)
    for seed in range(10):
        text = sample(to_llguidance(constraint), random.Random(seed))
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("schema", NESTED, ids=lambda schema: json.dumps(schema)[:40])
def test_white_space_is_that_of_json_dumps_and_cannot_loop(schema: dict[str, Any]) -> None:
    grammar = to_llguidance(structured("json_schema", schema))
    text = sample(grammar, random.Random(1))
    # Re-dumping may change escapes and numbers but not the gaps between the parts, so compare without the strings.
    assert "\n" not in text
    assert "  " not in json.dumps(json.loads(text, parse_float=str, parse_int=str)).replace("\\u", "")
    assert not accepts(grammar, " " + text)
    assert not accepts(grammar, "\n" + text)


def test_a_gap_of_two_blanks_is_not_allowed_anywhere() -> None:
    grammar = to_llguidance(structured("json_object", ""))
    assert accepts(grammar, '{"a": 1, "b": [1, {"c": "é"}]}')
    for text in ('{ "a": 1}', '{"a":  1}', '{"a": 1,  "b": 2}', '{"a": 1 }', '{"a" : 1}', '{"a": [ 1]}', '{\n"a": 1}'):
        assert not accepts(grammar, text), text


def test_json_object_wants_an_object() -> None:
    grammar = to_llguidance(structured("json_object", ""))
    assert not accepts(grammar, "[1]")
    assert not accepts(grammar, '"a"')


def test_a_schema_of_true_allows_any_json() -> None:
    grammar = to_llguidance(structured("json_schema", "true"))
    assert accepts(grammar, "[1, null]")


def test_a_regex_matches_as_a_whole() -> None:
    grammar = to_llguidance(structured("regex", r"[a-z]+/\d{2}"))
    assert accepts(grammar, "ab/42")
    assert not accepts(grammar, "ab/4")
    assert not accepts(grammar, "ab/421")


@pytest.mark.parametrize("choices", [["yes", "no"], ['say "hi"\n', "日本", "back\\slash"], ["a", "ab"], ["", "x"]])
def test_choices_are_taken_literally(choices: list[str]) -> None:
    constraint = structured("choice", choices)
    validate(constraint)
    assert all(accepts(to_llguidance(constraint), choice) for choice in choices)
    assert not accepts(to_llguidance(constraint), "other")


def test_grammars_may_be_lark_or_gbnf() -> None:
    lark = structured("grammar", 'start: "a" digit+\ndigit: /[0-9]/')
    gbnf = structured("grammar", 'root ::= "a" digit+\ndigit ::= [0-9]')
    for constraint in (lark, gbnf):
        validate(constraint)
        assert accepts(to_llguidance(constraint), "a12")
        assert not accepts(to_llguidance(constraint), "a")


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("json_schema", {"type": "text"}, "Invalid type: text"),
        ("json_schema", {"properties": {"a": {"uniqueItems": True}}}, "cannot be enforced"),
        ("json_schema", {"not": {"type": "string"}}, "not"),
        ("json_schema", {"type": "string", "format": "shoe-size"}, "shoe-size"),
        ("json_schema", {"$ref": "#/$defs/missing"}, "missing"),
        ("json_schema", {"$ref": "https://example.com/schema"}, "example.com"),
        ("json_schema", {"$ref": "#"}, "no text can match"),
        ("json_schema", {"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ("json_schema", {"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
        ("json_schema", {"enum": []}, "Unsatisfiable"),
        ("json_schema", {"x-guidance": {"whitespace_flexible": True}}, "x-guidance"),
        ("json_schema", "[1]", "expected an object"),
        ("json_schema", "false", "expected an object"),
        ("json_schema", "{", "Invalid JSON schema"),
        ("json_schema", '{"minimum": NaN}', "NaN"),
        ("json_schema", '{"minimum": 1e999}', "Invalid JSON schema"),
        ("json_schema", '{"const": "\\ud800"}', "Invalid JSON schema"),
        ("regex", "(a", "unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", "\ud800", "surrogate"),
        ("choice", [], "1 to"),
        ("grammar", "hello", "Invalid grammar"),
        ("grammar", "", "Invalid grammar"),
        ("grammar", 'start: start "a"', "no text can match"),
        ("grammar", 'root ::= "a', "Invalid GBNF grammar"),
        ("grammar", 'root ::= "a\\', "Invalid GBNF grammar"),
    ],
)
def test_what_cannot_be_enforced_is_refused_and_says_why(kind: StructuredKind, value: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        validate(structured(kind, value), "the.field")
    assert reason in refusal.value.message
    assert refusal.value.param == "the.field"
    assert len(refusal.value.message) < 500


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("json_schema", deep(200), "nested deeper"),
        ("json_schema", "[" * 100_000, "Invalid JSON schema"),
        ("json_schema", {"maxItems": 10**9}, "maxItems"),
        ("json_schema", {"minItems": 1e300}, "minItems"),
        ("json_schema", {"properties": {f"p{i}": {} for i in range(5000)}}, "5000 members"),
        ("json_schema", {"enum": list(range(30_000))}, "more than"),
        ("json_schema", {"title": "x" * 300_000}, "characters"),
        ("regex", "a" * 20_000, "characters"),
        ("regex", "(" * 5000 + "a" + ")" * 5000, "Invalid regular expression"),
        ("regex", "((a{1000}){1000}){1000}", "too complex"),
        ("grammar", "root ::= " + "(" * 5000, "Invalid GBNF grammar"),
        ("grammar", "start: " + "(" * 20_000 + '"a"' + ")" * 20_000, "nested"),
        ("grammar", 'start: "a"' + ' "a"' * 60_000, "characters"),
    ],
)
def test_what_is_too_big_is_refused_before_it_costs_anything(kind: StructuredKind, value: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        validate(structured(kind, value))


PATTERNS = {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}, "phone": {"type": "string", "pattern": "^[+][0-9 ]+$"}}


def test_several_patterns_are_checked_in_a_process_of_its_own_and_accepted() -> None:
    validate(structured("json_schema", {"type": "object", "properties": PATTERNS}))
    with pytest.raises(InvalidRequest, match="look-ahead"):
        validate(structured("json_schema", {"properties": {**PATTERNS, "bad": {"type": "string", "pattern": "(?!a)"}}}))


def test_a_check_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_check, "WALL_SECONDS", 300)  # by its processor time alone, however busy the machine
    endless: dict[str, Any] = {"patternProperties": {f"^a{i}b": {} for i in range(300)}}
    with pytest.raises(InvalidRequest, match="too complex"):
        validate(structured("json_schema", endless))


def test_a_grammar_may_name_the_models_special_tokens() -> None:
    validate(structured("grammar", 'start: <|python_tag|> "a" <[12]>'))
