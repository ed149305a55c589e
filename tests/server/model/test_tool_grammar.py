"""Constrained answers: calls follow the tools' schemas in the model's own form, and what is sampled is read back."""

import contextlib
import itertools
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from engines.errors import InvalidRequest, UnsupportedParameter
from engines.params.parsers import ToolCallParser
from engines.text.grammar import to_llguidance
from engines.text.tool_families import NAMED
from server.model.output import OutputFormat, OutputPlan, find_output_format
from server.model.tools import read_tools
from tests.byte_tokenizer import TOKEN_IDS, accepts, sample
from tests.server.openai.chat_templates import LLAMA, MISTRAL, PLAIN, QWEN
from tests.server.openai.outputs import calls, content, cut, parse, read_structured, reasoning

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "unit": {"enum": ["°C", "°F"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {"node": {"type": "object", "properties": {"left": {
                       "anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                       "required": ["left"], "additionalProperties": False}},
    "type": "object", "properties": {"root": {"$ref": "#/$defs/node"}, "n": {"type": "integer"}},
    "required": ["root"], "additionalProperties": False,
}  # fmt: skip
SCHEMAS = {"get_weather": WEATHER, "plant": TREE}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
THINKS = "{%- if '</think>' in content %}{% endif %}"
MARKERS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<think>", "</think>", "<|python_tag|>")
OLD_MISTRAL = {"[TOOL_CALLS]": TOKEN_IDS["[TOOL_CALLS]"]}
MODELS: dict[str, tuple[str, Mapping[str, int]]] = {
    "hermes with tokens": (QWEN, TOKEN_IDS),
    "hermes as text": (QWEN, {}),
    "a template without tools": (PLAIN, {}),
    "llama": (LLAMA, TOKEN_IDS),
    "mistral": (MISTRAL, OLD_MISTRAL),
    "newer mistral": (MISTRAL, TOKEN_IDS),
    "mistral as text": (MISTRAL, {}),
}


def plan(
    model: str,
    choice: Any = "required",
    *,
    tools: Any = TOOLS,
    parallel: bool = True,
    response_format: Any = None,
    prompt: str = "<|im_start|>assistant\n",
    thinks: bool = False,
) -> OutputPlan:
    template, tokens = MODELS[model]
    form = find_output_format(template + (THINKS if thinks else ""), tokens)
    answer = form.plan(read_tools(tools, choice, parallel), read_structured(response_format), prompt)
    return answer if answer.unchecked is None else replace(answer, structured=answer.unchecked.checked().structured)


def grammar(answer: OutputPlan) -> str:
    assert answer.structured is not None
    return to_llguidance(answer.structured)


@pytest.mark.parametrize("model", MODELS)
def test_required_calls_are_calls_with_arguments_that_fit_their_schema(model: str) -> None:
    answer = plan(model)
    for seed in range(15):
        text = sample(grammar(answer), random.Random(seed))
        deltas = parse(answer.parser(), cut(text, seed))
        assert content(deltas) == ""
        assert calls(deltas)
        for name, arguments in calls(deltas):
            jsonschema.validate(json.loads(arguments), SCHEMAS[name])


CITY = {"type": "string", "minLength": 1, "maxLength": 5}
TYPES = {
    "type": "object",
    "properties": {
        "city": CITY,
        "unit": {"enum": ["°C", "°F"]},
        "n": {"type": "integer"},
        "mood": {"anyOf": [{"type": "string", "enum": ["a", "b"]}, {"type": "null"}]},
        "pool": {"type": "boolean"},
        "cities": {"type": "array", "items": {"$ref": "#/$defs/city"}, "minItems": 1, "maxItems": 2},
        "near": {"type": "object", "properties": {"x": {"type": "number"}, "of": CITY}, "required": ["x"]},
    },
    "$defs": {"city": CITY},
    "required": ["city", "unit"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("name", sorted(NAMED))
def test_required_calls_fit_their_schema_in_the_form_of_every_family(name: ToolCallParser) -> None:
    form = OutputFormat(reasoning=None, tools=NAMED[name])
    offered = [{"type": "function", "function": {"name": "look", "parameters": TYPES, "strict": True}},
               {"type": "function", "function": {"name": "now"}}]  # fmt: skip
    answer = form.plan(read_tools(offered, "required"), None, "")
    assert answer.unchecked is not None
    answer.unchecked.checked()
    found = []
    for seed in range(10):
        deltas = parse(answer.parser(), cut(sample(grammar(answer), random.Random(seed)), seed))
        assert content(deltas) == ""
        found += calls(deltas)
    for called, arguments in found:
        jsonschema.validate(json.loads(arguments), TYPES if called == "look" else {"maxProperties": 0})
    assert {called for called, _ in found} == {"look", "now"}


@pytest.mark.parametrize("name", ["qwen3_coder", "gemma4", "llama4_pythonic"])
def test_a_strict_schema_that_a_form_without_json_cannot_keep_to_is_refused(name: ToolCallParser) -> None:
    form = OutputFormat(reasoning=None, tools=NAMED[name])
    schema = {"properties": {"a": {"type": "string", "pattern": "^x"}}}
    with pytest.raises(InvalidRequest, match="'pattern' cannot be enforced") as refusal:
        form.plan(read_tools(tool(schema, strict=True), "required"), None, "")
    assert refusal.value.param == "tools[0].function.parameters"
    form.plan(read_tools(tool(schema, strict=False), "required"), None, "")


@pytest.mark.parametrize("name", ["qwen3_coder", "gemma4", "llama4_pythonic"])
@pytest.mark.parametrize(
    "schema",
    [{"minLength": "x"}, {"enum": 1}, {"type": "object", "required": 1}, {"type": "array", "items": 1}, {"type": [1]},
     {"properties": 1, "type": "object"}, {"$ref": "#/nowhere"}, {"$ref": "#/properties/a"}, {"anyOf": [1]}, 7],
)  # fmt: skip
def test_what_is_no_schema_never_raises_anything_but_a_refusal(name: ToolCallParser, schema: Any) -> None:
    form = OutputFormat(reasoning=None, tools=NAMED[name])
    offered = tool({"properties": {"a": {"type": "string", **schema} if isinstance(schema, dict) else schema}}, False)
    with contextlib.suppress(InvalidRequest):
        answer = form.plan(read_tools(offered, "required"), None, "")
        if answer.unchecked is not None:
            answer.unchecked.checked()


@pytest.mark.parametrize("name", ["qwen3_coder", "gemma4", "llama4_pythonic"])
def test_references_are_followed_once_however_often_they_are_made(name: ToolCallParser) -> None:
    defs: dict[str, Any] = {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 10} for i in range(15)}
    defs["a15"] = {"type": "string", "enum": ["one", "two"]}
    form = OutputFormat(reasoning=None, tools=NAMED[name])
    schema = {"$defs": defs, "properties": {"a": {"$ref": "#/$defs/a0"}}, "required": ["a"]}
    answer = form.plan(read_tools(tool(schema, strict=True), "required"), None, "")
    text = sample(grammar(answer), random.Random(1))
    assert {json.loads(arguments)["a"] for _, arguments in calls(parse(answer.parser(), [text]))} <= {"one", "two"}


@pytest.mark.parametrize("model", MODELS)
def test_a_named_tool_is_called_once_and_no_other_is(model: str) -> None:
    answer = plan(model, {"type": "function", "function": {"name": "get_weather"}})
    for seed in range(5):
        deltas = parse(answer.parser(), [sample(grammar(answer), random.Random(seed))])
        assert [name for name, _ in calls(deltas)] == ["get_weather"]


@pytest.mark.parametrize("model", MODELS)
def test_free_text_is_not_possible_where_a_call_is_required(model: str) -> None:
    assert not accepts(grammar(plan(model)), "It is sunny.")
    assert not accepts(grammar(plan(model)), "")


def test_a_call_is_written_with_the_models_own_tokens() -> None:
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "unit": "°C"}}\n</tool_call>'
    assert accepts(grammar(plan("hermes with tokens")), call, special=MARKERS)
    assert accepts(grammar(plan("hermes as text")), call)
    llama = '{"name": "get_weather", "parameters": {"city": "Rome", "unit": "°C"}}'
    assert accepts(grammar(plan("llama")), llama)
    mistral = '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Rome", "unit": "°C"}}]'
    assert accepts(grammar(plan("mistral")), mistral, special=MARKERS)
    newer = '[TOOL_CALLS]get_weather[ARGS]{"city": "Rome", "unit": "°C"}'
    assert accepts(grammar(plan("newer mistral")), newer, special=MARKERS)


def test_the_number_of_calls_is_that_which_was_asked_for_and_never_endless() -> None:
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "unit": "°C"}}\n</tool_call>'
    many, one = grammar(plan("hermes as text")), grammar(plan("hermes as text", parallel=False))
    assert accepts(many, "\n".join([call] * 3))
    assert accepts(many, "\n".join([call] * 16))
    assert not accepts(many, "\n".join([call] * 17))
    assert accepts(one, call)
    assert not accepts(one, "\n".join([call] * 2))


ONE = {"type": "function", "function": {"name": "get_weather"}}
COUNTS: list[tuple[Any, bool, set[int]]] = [("required", False, {1}), (ONE, True, {1}), (ONE, False, {1})]


@pytest.mark.parametrize("model", MODELS)
def test_just_one_call_is_made_where_one_is_asked_for_and_some_otherwise(model: str) -> None:
    for choice, parallel, expected in COUNTS:
        assert _numbers_of_calls(plan(model, choice, parallel=parallel)) == expected
    numbers = _numbers_of_calls(plan(model, "required"))
    assert 0 not in numbers
    assert model == "llama" or max(numbers) > 1


def _numbers_of_calls(answer: OutputPlan) -> set[int]:
    return {len(calls(parse(answer.parser(), [sample(grammar(answer), random.Random(seed))]))) for seed in range(12)}


OPEN: dict[str, Any] = {
    "type": "object",
    "properties": {
        "place": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 3}}, "required": ["city"]},
        "notes": {"type": "array", "items": {"type": "object", "properties": {"on": {"type": "boolean"}}}},
        "free": {"type": "object"},
    },
    "required": ["place"],
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_a_call_that_must_be_made_has_no_keys_but_those_of_its_schema(model: str, strict: bool) -> None:
    answer = plan(model, {"type": "function", "function": {"name": "f"}}, tools=tool(OPEN, strict))
    for seed in range(15):
        [(_, written)] = calls(parse(answer.parser(), [sample(grammar(answer), random.Random(seed))]))
        arguments = json.loads(written)
        assert arguments.keys() <= OPEN["properties"].keys()
        assert arguments["place"].keys() == {"city"}
        assert all(note.keys() <= {"on"} for note in arguments.get("notes", ()))


def test_an_object_without_properties_stays_free_in_a_call() -> None:
    text = grammar(plan("llama", tools=tool(OPEN, False)))
    assert accepts(text, '{"name": "f", "parameters": {"place": {"city": "ab"}, "free": {"any": [1, {}]}}}')
    assert not accepts(text, '{"name": "f", "parameters": {"place": {"city": "ab", "any": 1}}}')


def test_a_tool_without_parameters_is_called_with_none() -> None:
    for parameters in (None, {"type": "object", "properties": {}}):
        text = grammar(plan("llama", tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}]))
        assert accepts(text, '{"name": "f", "parameters": {}}')
        assert not accepts(text, '{"name": "f", "parameters": {"a": 1}}')


def test_arguments_may_be_laid_out_in_lines_and_cannot_loop_on_white_space() -> None:
    text = grammar(plan("hermes as text"))

    def call(arguments: str) -> str:
        return f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'

    assert accepts(text, call('{\n  "city": "Rome",\n  "unit": "°C"\n}'))
    assert accepts(text, call('{"city":"Rome","unit":"°C"}'))
    assert not accepts(text, call('{"city":  "Rome", "unit": "°C"}'))
    assert not accepts(text, call('{\n\n"city": "Rome", "unit": "°C"}'))
    assert not accepts(text, call("{\n" + 41 * " " + '"city": "Rome", "unit": "°C"}'))


def test_free_text_and_lax_tools_leave_the_answer_unconstrained() -> None:
    assert plan("hermes with tokens", "auto").structured is None
    assert plan("hermes with tokens", "none").structured is None
    assert plan("hermes with tokens", None, tools=None).structured is None


STRICT = [{"type": "function", "function": {"name": "get_weather", "parameters": WEATHER, "strict": True}}]


@pytest.mark.parametrize("model", ["hermes with tokens", "llama", "newer mistral", "mistral"])
def test_strict_tools_bind_the_calls_that_may_be_made(model: str) -> None:
    answer = plan(model, "auto", tools=STRICT)
    assert accepts(grammar(answer), "It is sunny.\n")
    assert accepts(grammar(answer), "")
    found = [calls(parse(answer.parser(), [sample(grammar(answer), random.Random(seed))])) for seed in range(15)]
    assert any(found)
    for _, arguments in itertools.chain.from_iterable(found):
        jsonschema.validate(json.loads(arguments), WEATHER)


def test_a_response_format_binds_the_content_and_calls_stay_possible() -> None:
    answer = plan("hermes as text", "auto", response_format={"type": "json_object"})
    assert accepts(grammar(answer), '{"sky": "blue"}')
    assert not accepts(grammar(answer), "It is sunny.")
    assert accepts(
        grammar(answer),
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "unit": "°C"}}\n</tool_call>',
    )


def test_a_response_format_alone_is_left_as_it_is() -> None:
    alone = {"type": "json_object"}
    assert plan("llama", None, tools=None, response_format=alone).structured == read_structured(alone)


CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome", "unit": "°C"}}\n</tool_call>'


@pytest.mark.parametrize("model", ["hermes with tokens", "hermes as text"])
def test_reasoning_may_come_before_a_required_call(model: str) -> None:
    answer = plan(model, thinks=True)
    special = MARKERS if model == "hermes with tokens" else ()
    for text in (CALL, f"<think>\nHm, {{}} and\nmore.\n</think>\n\n{CALL}"):
        assert accepts(grammar(answer), text, special=special)
        assert calls(parse(answer.parser(), [text]))
    assert not accepts(grammar(answer), "<think>Hm.</think>\n\nNo.", special=special)
    assert not accepts(grammar(answer), f"Hm.\n{CALL}", special=special)


@pytest.mark.parametrize("model", ["hermes with tokens", "hermes as text"])
def test_reasoning_that_the_prompt_opened_comes_first(model: str) -> None:
    answer = plan(model, thinks=True, prompt="<|im_start|>assistant\n<think>\n")
    special = MARKERS if model == "hermes with tokens" else ()
    text = f"Hm.\n</think>\n\n{CALL}"
    assert accepts(grammar(answer), text, special=special)
    deltas = parse(answer.parser(), cut(text, 1))
    assert reasoning(deltas) == "Hm."
    assert [name for name, _ in calls(deltas)] == ["get_weather"]


def test_reasoning_that_was_turned_off_does_not_come() -> None:
    answer = plan("hermes with tokens", thinks=True, prompt="<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert accepts(grammar(answer), CALL, special=MARKERS)
    assert not accepts(grammar(answer), f"<think>\nHm.\n</think>\n\n{CALL}", special=MARKERS)


@pytest.mark.parametrize(
    ("structured_outputs", "good"),
    [
        ({"regex": r"[a-z]{2}/\}"}, "ab/}"),
        ({"choice": ["yes", 'no "}'], }, 'no "}'),
        ({"grammar": 'start: "a" b\nb: "}"'}, "a}"),
        ({"grammar": 'root ::= "a" b\nb ::= "}"'}, "a}"),
        ({"json": {"type": "integer"}}, "12"),
    ],
)  # fmt: skip
def test_reasoning_may_come_before_any_constrained_content(structured_outputs: Any, good: str) -> None:
    form = find_output_format(QWEN + THINKS, TOKEN_IDS)
    answer = form.plan(read_tools(None), read_structured(None, structured_outputs), "assistant\n")
    assert accepts(grammar(answer), good)
    assert accepts(grammar(answer), f"<think>\nHm.\n</think>\n\n{good}", special=MARKERS)
    assert not accepts(grammar(answer), "<think>\nHm.\n</think>\n\nother", special=MARKERS)


def tool(schema: dict[str, Any], strict: bool) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", "parameters": schema, "strict": strict}}]


BEYOND = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}}}


def test_a_strict_tool_whose_schema_cannot_be_enforced_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="uniqueItems") as refusal:
        plan("hermes as text", tools=tool(BEYOND, strict=True))
    assert refusal.value.param == "tools[0].function.parameters"


def test_an_optional_argument_that_nothing_fits_is_left_out() -> None:
    impossible = {"type": "object", "properties": {"a": {"type": "object", "enum": ["x"]}, "b": {"type": "boolean"}}}
    text = grammar(plan("llama", tools=tool(impossible, strict=False)))
    assert accepts(text, '{"name": "f", "parameters": {"b": true}}')
    assert not accepts(text, '{"name": "f", "parameters": {"a": "x"}}')


def test_a_lax_tool_is_bound_by_the_rest_of_its_schema() -> None:
    text = grammar(plan("llama", tools=tool(BEYOND, strict=False)))
    assert accepts(text, '{"name": "f", "parameters": {"a": [1, 1]}}')
    assert not accepts(text, '{"name": "f", "parameters": {"a": ["x"]}}')


def test_a_tool_whose_schema_is_none_is_refused_where_it_must_be_called() -> None:
    with pytest.raises(InvalidRequest, match="Invalid type: text") as refusal:
        plan("hermes as text", tools=tool({"properties": {"a": {"type": "text"}}}, strict=False))
    assert refusal.value.param == "tools[0].function.parameters"


def test_calls_cannot_be_required_of_a_server_that_leaves_them_in_the_text() -> None:
    form = find_output_format(QWEN, {}, tool_call_parser="none")
    with pytest.raises(UnsupportedParameter) as refusal:
        form.plan(read_tools(TOOLS, "required"), None, "")
    assert refusal.value.param == "tool_choice"
    answer = form.plan(read_tools(TOOLS), None, "")
    assert content(parse(answer.parser(), [CALL])) == CALL


def test_the_special_tokens_that_the_parser_needs_are_named() -> None:
    answer = plan("hermes with tokens", thinks=True)
    assert answer.marker_ids == {TOKEN_IDS[m] for m in ("<tool_call>", "</tool_call>", "<think>", "</think>")}
    assert plan("hermes with tokens", "none").marker_ids == frozenset()
