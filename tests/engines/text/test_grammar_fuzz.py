"""Whatever a client sends as a constraint, it is taken or refused with a reason: nothing else comes of it."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import InvalidRequest
from engines.text import grammar_check
from engines.text.grammar_check import is_quick, validate
from engines.text.grammar_problem import verdict_of
from engines.types import Structured, StructuredKind


def nested(levels: int, more: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema, **more}
    return schema


MALFORMED: dict[StructuredKind, list[str]] = {
    "json_schema": [
        "", "nul", "[]", "false", '"a"', "[" * 100_000, '{"a":' * 20_000, '{"const": NaN}', '{"const": 1e400}',
        '{"type": "text"}', '{"type": []}', '{"type": ["object", null]}', '{"type": "object", "required": "a"}',
        '{"type": "object", "properties": []}', '{"type": "object", "properties": {"a": 5}}',
        '{"type": "array", "items": 5}', '{"type": "array", "prefixItems": 5}', '{"type": "array", "minItems": "x"}',
        '{"type": "array", "minItems": -3}', '{"$ref": 5}', '{"$ref": "#/a/b/0"}', '{"$ref": "http://a/b"}',
        '{"$ref": "#"}', '{"allOf": 5}', '{"anyOf": {"a": 1}}', '{"anyOf": []}', '{"enum": 5}', '{"enum": []}',
        '{"$defs": 5, "$ref": "#/$defs/a"}', '{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}',
        '{"type": "string", "pattern": "("}', '{"type": "string", "minLength": -1}', '{"title": "\\ud800"}',
        '{"type": "integer", "minimum": 5, "maximum": 4}', '{"type": "integer", "multipleOf": 0}',
        json.dumps(nested(101, {})), json.dumps(nested(3, {"minItems": 10_001})),
    ],
    "regex": ["(a", "(?<=a)b", "(?=a)", "\\1", "[b-a]", "a{2,1}", "\\p{Nothing}", "(" * 5000, "a{1000000}",
              "\ud800"],
    "choice": ["[]", '["\\ud800"]', json.dumps(["a"] * 10_001)],
    "grammar": [
        "", "start: start", "start: A\nA: A", "start: (", "start: b", 'start: "a', "start: /(/", "a: /b/",
        "%import x.y",
        'start: %json {"type": "x"}', "start: %json {", "start: <[99999999999]>", 'start: "\\x"', "start: a::",
        'start: ("a"{9999} "b"){9999}', "start: " + "(" * 20_000,
        "root ::= selct", "root ::= root", "root ::= (", 'root ::= "a', "root ::= [a", 'root ::= "\\x"',
        'root ::= "\\uZZZZ"', "root ::= \U0001f600", 'root ::= "a"{1,', 'root ::= "a"{100000}', 'a ::= "b"',
        "root ::= " + "(" * 3000, "::= a", 'root ::= "a" "\\',
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_malformed_or_cannot_be_is_refused_with_a_reason(kind: StructuredKind) -> None:
    for value in MALFORMED[kind]:
        with pytest.raises(InvalidRequest, match=r"\w") as refusal:
            validate(Structured(kind=kind, value=value), "field")
        assert refusal.value.param == "field", value[:80]


COSTLY: list[tuple[StructuredKind, str]] = [
    ("json_schema", json.dumps({"anyOf": [{"type": "integer", "multipleOf": 99_991 + i} for i in range(4)]})),
    ("json_schema", json.dumps({"properties": {"p": nested(30, {"minItems": 9999})}})),
    ("json_schema", '{"multiple\\u004ff": 7, "type": "integer"}'),
    ("regex", "((a{1,100}){1,1000}){1,1000}"),
    ("grammar", 'start: %json {"type": "integer", "multipleOf": 7}'),
    ("grammar", 'start: "a"{1000}'),
    ("grammar", 'root ::= "a"'),
]


@pytest.mark.parametrize(("kind", "value"), COSTLY)
def test_what_may_cost_much_is_checked_in_a_process_that_can_be_ended(
    kind: StructuredKind, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    constraint = Structured(kind=kind, value=value)
    assert not is_quick(constraint)
    monkeypatch.setattr(grammar_check, "WALL_SECONDS", 300)  # by its processor time alone, however busy the machine
    try:
        validate(constraint)
    except InvalidRequest as refusal:
        assert "too complex" in refusal.message


def holds(constraint: Structured) -> None:
    """The check of a constraint, where it is no more than a verdict."""
    verdict = verdict_of(constraint)
    assert verdict.refusal is None or verdict.refusal.startswith("Invalid")


GBNF = st.lists(
    st.sampled_from(["root", "::=", "a", '"b"', "[a-z]", "[^", "]", "(", ")", "|", "*", "+", "?", "{2,3}", "{", '"',
                     "\\", "\\x4", "\\u", "#", ".", "\n", " ", "é", "-", "\U0001f600", "\x00"]),
    max_size=14,
)  # fmt: skip
LARK = st.lists(
    st.sampled_from(["start", ":", "A", "a", '"b"', "/c/", "/(/", "(", ")", "|", "*", "+", "?", "{2,3}", "%json", "{}",
                     "{", "}", "%lark", "%ignore", "&", "~", "[stop=", "]", "<[1]>", "<think>", "\n", " ", "é", "\\",
                     "::", "<[a]>"]),
    max_size=14,
)  # fmt: skip
REGEX = st.text(alphabet="ab()[]{}|*+?\\^$.,-09pPdDé&~:<=!", max_size=16)
KEYWORDS = [
    "type", "items", "properties", "required", "additionalProperties", "anyOf", "oneOf", "allOf", "not", "$ref", "enum",
    "const", "minItems", "maxItems", "minLength", "pattern", "format", "minimum", "maximum", "multipleOf",
    "prefixItems", "$defs", "title", "patternProperties", "minProperties", "uniqueItems",
]  # fmt: skip
SCALARS = st.sampled_from(
    [
        "object",
        "array",
        "string",
        "integer",
        "null",
        "a",
        "#",
        "#/$defs/a",
        "^a$",
        "(",
        "date",
        0,
        1,
        3,
        -1,
        1.5,
        True,
        None,
    ]
)
SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from([*KEYWORDS, "a"]), inner, max_size=4)
    ),
    max_leaves=8,
)
FUZZ = settings(max_examples=150, derandomize=True, deadline=None)


@FUZZ
@given(GBNF)
def test_any_gbnf_is_taken_or_refused(parts: list[str]) -> None:
    holds(Structured(kind="grammar", value="root ::= " + " ".join(parts)))


@FUZZ
@given(LARK)
def test_any_lark_is_taken_or_refused(parts: list[str]) -> None:
    holds(Structured(kind="grammar", value="start: " + " ".join(parts)))


@FUZZ
@given(REGEX)
def test_any_regular_expression_is_taken_or_refused(value: str) -> None:
    holds(Structured(kind="regex", value=value))


@FUZZ
@given(st.lists(st.text(max_size=5), max_size=5))
def test_any_choice_is_taken_or_refused(choices: list[str]) -> None:
    holds(Structured(kind="choice", value=json.dumps(choices)))


@FUZZ
@given(SCHEMAS, st.booleans())
def test_any_schema_is_taken_or_refused(schema: Any, lenient: bool) -> None:
    holds(Structured(kind="json_schema", value=json.dumps(schema), lenient=lenient))
