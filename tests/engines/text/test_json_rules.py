"""JSON with white space between its parts: what the schema describes, laid out as people do it, never without end."""

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from engines.errors import InvalidRequest
from engines.text.grammar import to_llguidance
from engines.text.grammar_check import validate
from engines.text.json_closing import closed
from engines.text.json_rules import INDENT
from engines.types import Structured
from tests.byte_tokenizer import accepts, sample

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "on": {"type": "boolean"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
}


def grammar(schema: Any, *, lenient: bool = False) -> str:
    return to_llguidance(validate(Structured(kind="json_schema", value=json.dumps(schema), lenient=lenient)))


def json_object() -> str:
    return to_llguidance(validate(Structured(kind="json_object", value="")))


SCHEMAS: dict[str, Any] = {
    "object": POINT,
    "optional first": {**POINT, "required": ["y"]},
    "all optional": {**POINT, "required": []},
    "open": {**POINT, "additionalProperties": {"type": "null"}},
    "map": {"type": "object", "additionalProperties": POINT},
    "free": {"type": "object"},
    "anything": {},
    "array": {"type": "array", "items": POINT, "minItems": 1, "maxItems": 3},
    "empty array": {"type": "array", "maxItems": 0},
    "bounds": {"type": "array", "items": {"type": "null"}, "minItems": 2},
    "tuple": {"type": "array", "prefixItems": [{"type": "null"}, POINT], "minItems": 2, "maxItems": 2},
    "nullable": {"type": ["object", "null"], "properties": {"a": {"type": "null"}}},
    "union": {"anyOf": [POINT, {"type": "array", "items": {"type": "boolean"}}, {"type": "string", "maxLength": 2}]},
    "defs": {"$defs": {"p": POINT}, "type": "object", "properties": {"p": {"$ref": "#/$defs/p"}}, "required": ["p"]},
    "tree": {
        "$defs": {"n": {"type": "object", "properties": {"l": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}}}},
        "$ref": "#/$defs/n",
    },
    "required only": {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["b"]},
    "names": {"type": "object", "properties": {'q"\\': {"type": "null"}, "ü\n": {"type": "null"}}},
    "inherited": {"allOf": [POINT, {"properties": {"x": {"minimum": 3}}}]},
    "patterned": {"type": "object", "patternProperties": {"^a+$": POINT}, "additionalProperties": False},
    "leaf with a reference": {"$defs": {"p": POINT}, "allOf": [{"$ref": "#/$defs/p"}, {"required": ["on"]}]},
    "enum": {"enum": [{"a": 1}, [1, 2], "x"]},
    "impossible member": {"type": "object", "properties": {"a": {"type": "object", "enum": ["x"]}, "b": {}}},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_drawn_is_what_the_schema_describes(name: str) -> None:
    text = grammar(SCHEMAS[name])
    for seed in range(15):
        jsonschema.validate(json.loads(sample(text, random.Random(seed))), SCHEMAS[name])


COMPACT = {"separators": (",", ":")}
LAYOUTS: list[dict[str, Any]] = [{}, COMPACT, {"indent": 2}, {"indent": 4}, {"indent": "\t"}]


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_json_may_be_laid_out_as_people_do(layout: dict[str, Any]) -> None:
    point = {"x": 1, "on": True, "y": -2}
    for schema, value in (
        (POINT, point),
        (SCHEMAS["map"], {"a": point, "b": {"x": 1, "y": 2}}),
        (SCHEMAS["array"], [point, point]),
        (SCHEMAS["union"], [True, False]),
        (SCHEMAS["anything"], {"a": [1, {"b": None}, "c"], "d": {}, "e": []}),
    ):
        assert accepts(grammar(schema), json.dumps(value, **layout))
    assert accepts(json_object(), json.dumps({"a": [1, {"b": "c"}]}, **layout))


def deep(levels: int) -> Any:
    return {"a": deep(levels - 1)} if levels else 1


def test_ten_levels_of_four_spaces_fit() -> None:
    assert accepts(json_object(), json.dumps(deep(10), indent=4))


@pytest.mark.parametrize("blank", [" ", "\n", "\t", "\r"])
def test_white_space_cannot_go_on(blank: str) -> None:
    """From wherever it may begin, a model that writes nothing but blanks is soon made to write something else."""
    for text in (grammar(POINT), grammar(SCHEMAS["anything"]), json_object()):
        written = '{"x": 1, "y": [{}, 2]}' if text != grammar(POINT) else '{"x": 1, "on": true, "y": 2}'
        for end in range(len(written) + 1):
            if written[:end].count('"') % 2:
                continue  # within a string
            longest = 0
            while _goes_on(text, written[:end] + blank * (longest + 1)):
                longest += 1
            assert longest <= INDENT + 1


def test_lines_and_indents_cannot_take_turns() -> None:
    assert accepts(grammar(POINT), '{\n  "x": 1, "y": 2}')
    assert not accepts(grammar(POINT), '{\n  \n  "x": 1, "y": 2}')
    assert not accepts(grammar(POINT), '{"x": 1,\n\n"y": 2}')
    assert not accepts(grammar(POINT), '\n{"x": 1, "y": 2}')


def _goes_on(text: str, written: str) -> bool:
    from tests.byte_tokenizer import tokenizer

    return bool(LLMatcher(tokenizer(), text, log_level=0).consume_tokens(list(written.encode())))


def test_no_member_comes_twice_nor_unasked() -> None:
    assert not accepts(grammar(POINT), '{"x": 1, "y": 2, "z": 3}')
    assert not accepts(grammar(SCHEMAS["open"]), '{"x": 1, "y": 2, "x": null}')
    assert accepts(grammar(SCHEMAS["open"]), '{"x": 1, "y": 2, "z": null}')


def test_what_cannot_be_enforced_is_refused_or_left_out_as_asked() -> None:
    schema = {"type": "array", "items": POINT, "uniqueItems": True}
    with pytest.raises(InvalidRequest, match="uniqueItems"):
        grammar(schema)
    assert accepts(grammar(schema, lenient=True), '[\n  {"x": 1, "y": 2}\n]')
    assert not accepts(grammar(schema, lenient=True), "[1]")
    with pytest.raises(InvalidRequest, match="Unknown format"):
        grammar({"type": "string", "format": "path"})
    assert accepts(grammar({"type": "string", "format": "path"}, lenient=True), '"/etc"')


NAMES = st.sampled_from(["a", "b", 'c"', "ü"])
LEAVES = st.sampled_from(
    [{"type": "null"}, {"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 9}, {"enum": ["x", 1, None]}]
)


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    properties = st.dictionaries(NAMES, inner, max_size=4)
    return st.fixed_dictionaries(
        {"type": st.just("object"), "properties": properties, "required": st.lists(NAMES, unique=True, max_size=2)},
        optional={"additionalProperties": st.one_of(st.booleans(), LEAVES), "description": st.text(max_size=3)},
    )


def _arrays(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    bounds = st.tuples(st.integers(0, 2), st.integers(0, 2))
    return st.builds(
        lambda items, bound: {"type": "array", "items": items, "minItems": bound[0], "maxItems": sum(bound)},
        inner,
        bounds,
    )


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    st.recursive(
        LEAVES,
        lambda inner: st.one_of(
            _objects(inner), _arrays(inner), st.builds(lambda o: {"anyOf": o}, st.lists(inner, min_size=1, max_size=3))
        ),
        max_leaves=8,
    )
)
def test_whatever_the_schema_what_is_drawn_is_valid(schema: Any) -> None:
    try:
        text = grammar(schema)
    except InvalidRequest:  # nothing is described by it
        with pytest.raises(InvalidRequest):
            validate(Structured(kind="json_schema", value=json.dumps(closed(schema))))
        return
    for seed in range(3):
        jsonschema.validate(json.loads(sample(text, random.Random(seed))), schema)
