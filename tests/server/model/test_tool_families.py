"""Answers as models of each family write them: their calls are found, however the text is cut, and nothing is lost."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.answers.parser import AnswerParser
from engines.params.parsers import ToolCallParser
from engines.text.tool_families import NAMED
from engines.text.tool_syntax import Literals, Tags
from engines.text.written_calls import written_calls
from server.model.output import OutputFormat
from server.model.tools import ToolRequest, read_tools
from tests.server.openai.outputs import calls, content, cut, parse

TRIP = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "stops": {"type": "array", "items": {"type": "string"}},
        "hotel": {"type": "object", "properties": {"stars": {"type": "number"}, "pool": {"type": "boolean"}}},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "zip": {"$ref": "#/$defs/zip"},
    },
    "$defs": {"zip": {"type": "string"}},
}
TOOLS = [
    {"type": "function", "function": {"name": "plan_trip", "parameters": TRIP}},
    {"type": "function", "function": {"name": "now"}},
]
ROME = {"city": "Rome", "days": 3, "stops": ["Forum", "Monti"], "hotel": {"stars": 4.5, "pool": True}, "zip": "00184"}
NOW: dict[str, Any] = {}

RECORDED: list[tuple[ToolCallParser, str, str, list[tuple[str, dict[str, Any]]]]] = [
    ("openai",
     ("<|channel|>analysis<|message|>They want a trip.<|end|><|start|>assistant<|channel|>commentary "
     'to=functions.plan_trip <|constrain|>json<|message|>{"city":"Rome","days":3}<|call|>'),
     "They want a trip.", [("plan_trip", {"city": "Rome", "days": 3})]),
    ("deepseek_v3",
     ("I will look.\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>plan_trip\n```json\n"
     '{"city": "Rome", "note": "a ``` in it"}\n```<｜tool▁call▁end｜>\n'
     "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
     "I will look.", [("plan_trip", {"city": "Rome", "note": "a ``` in it"}), ("now", NOW)]),
    ("deepseek_v31",
     ('<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>plan_trip<｜tool▁sep｜>{"city": "Rome"}<｜tool▁call▁end｜>'
     "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
     "", [("plan_trip", {"city": "Rome"}), ("now", NOW)]),
    ("deepseek_v32",
     ('I will look.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="plan_trip">\n'
     '<｜DSML｜parameter name="city" string="true">Rome</｜DSML｜parameter>\n'
     '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
     '<｜DSML｜parameter name="note" string="true">7</｜DSML｜parameter>\n'
     '<｜DSML｜parameter name="zip" string="true">00184</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
     '<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>'),
     "I will look.", [("plan_trip", {"city": "Rome", "days": 3, "note": "7", "zip": "00184"}), ("now", NOW)]),
    ("deepseek_v4",
     ('<｜DSML｜tool_calls>\n<｜DSML｜invoke name="plan_trip">\n'
     '<｜DSML｜parameter name="stops" string="false">["Forum", "Monti"]</｜DSML｜parameter>\n'
     "</｜DSML｜invoke>\n</｜DSML｜tool_calls>"),
     "", [("plan_trip", {"stops": ["Forum", "Monti"]})]),
    ("qwen3_coder",
     ("Let me plan.\n\n<tool_call>\n<function=plan_trip>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n3"
     '\n</parameter>\n<parameter=stops>\n["Forum", "Monti"]\n</parameter>\n'
     '<parameter=hotel>\n{"stars": 4.5, "pool": true}'
     "\n</parameter>\n<parameter=zip>\n00184\n</parameter>\n</function>\n</tool_call>"),
     "Let me plan.", [("plan_trip", ROME)]),
    ("qwen3_coder",
     ('<function=plan_trip>\n<parameter=note>\nfirst line\n  second <b> "line"\n\n</parameter>\n'
      "</function>\n</tool_call>"),
     "", [("plan_trip", {"note": 'first line\n  second <b> "line"\n'})]),
    ("qwen3_coder",
     ("<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call>\n<function=plan_trip>\n<parameter=note>\nnull\n"
     "</parameter>\n<parameter=other>\n[1]\n</parameter>\n</function>\n</tool_call>"),
     "", [("now", NOW), ("plan_trip", {"note": None, "other": [1]})]),
    ("seed_oss",
     ("<seed:tool_call>\n<function=plan_trip>\n<parameter=city>Rome</parameter>\n<parameter=days>3</parameter>\n"
     "</function>\n</seed:tool_call>"),
     "", [("plan_trip", {"city": "Rome", "days": 3})]),
    ("seed_oss",
     ("<seed:tool_call>\n<function=plan_trip>\n<parameter=stops>['Forum, at noon', 'Monti']</parameter>\n"
     "<parameter=hotel>{'stars': 4.5, 'pool': True}</parameter>\n</function>\n</seed:tool_call>"),
     "", [("plan_trip", {"stops": ["Forum, at noon", "Monti"], "hotel": {"stars": 4.5, "pool": True}})]),
    ("glm45",
     ("Sure.\n<tool_call>plan_trip\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value>\n<arg_key>hotel</arg_key>\n"
     '<arg_value>{"stars": 4.5, "pool": true}</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>'),
     "Sure.", [("plan_trip", {"city": "Rome", "hotel": {"stars": 4.5, "pool": True}}), ("now", NOW)]),
    ("glm47",
     ("<tool_call>plan_trip\n<arg_key>city</arg_key>\n<arg_value>Rome</arg_value><arg_key>days</arg_key>\n<arg_value>3"
     "</arg_value>\n</tool_call>"),
     "", [("plan_trip", {"city": "Rome", "days": 3})]),
    ("glm47",
     ("<tool_call>plan_trip<arg_key>city</arg_key><arg_value>Rome</arg_value><arg_key>zip</arg_key><arg_value>00184"
     "</arg_value></tool_call><tool_call>now</tool_call>"),
     "", [("plan_trip", {"city": "Rome", "zip": "00184"}), ("now", NOW)]),
    ("kimi_k2",
     ("One moment.<|tool_calls_section_begin|><|tool_call_begin|>functions.plan_trip:0<|tool_call_argument_begin|>"
     '{"city": "Rome"}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}'
     "<|tool_call_end|><|tool_calls_section_end|>"),
     "One moment.", [("plan_trip", {"city": "Rome"}), ("now", NOW)]),
    ("functionary",
     'I will.<function=plan_trip>{"city": "Rome", "days": 3}</function><function=now>{}</function>',
     "I will.", [("plan_trip", {"city": "Rome", "days": 3}), ("now", NOW)]),
    ("react",
     ('Thought: They want a trip.\nAction: plan_trip\nAction Input: {"city": "Rome", "days": 3}\n'
      "Observation: booked\nThought: I can answer.\nFinal Answer: Done."),
     "Thought: They want a trip.", [("plan_trip", {"city": "Rome", "days": 3})]),
    ("glm4",
     ('\nplan_trip\n{"city": "Rome", "days": 3}<|assistant|>now\n{}\nnow\n{"zip": "1"}<|observation|>\nbooked'),
     "", [("plan_trip", {"city": "Rome", "days": 3}), ("now", NOW), ("now", {"zip": "1"})]),
    ("glm4",
     'I plan the trip now.\n<|assistant|>plan_trip\n{"city": "Rome"}',
     "I plan the trip now.", [("plan_trip", {"city": "Rome"})]),
    ("minimax_m2",
     ('\n<minimax:tool_call>\n<invoke name="plan_trip">\n<parameter name="city">Rome</parameter>\n'
     '<parameter name="stops">'
     '["Forum", "Monti"]</parameter>\n</invoke>\n<invoke name="now">\n</invoke>\n</minimax:tool_call>'),
     "", [("plan_trip", {"city": "Rome", "stops": ["Forum", "Monti"]}), ("now", NOW)]),
    ("minimax",
     ('<tool_calls>\n{"name": "plan_trip", "arguments": {"city": "Rome"}}\n'
      '{"name": "now", "arguments": {}}\n</tool_calls>'),
     "", [("plan_trip", {"city": "Rome"}), ("now", NOW)]),
    ("granite",
     '<|tool_call|>[{"name": "plan_trip", "arguments": {"city": "Rome"}}, {"name": "now", "arguments": {}}]',
     "", [("plan_trip", {"city": "Rome"}), ("now", NOW)]),
    ("granite", '<tool_call>[{"name": "now", "arguments": {}}]', "", [("now", NOW)]),
    ("granite4", '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', "", [("now", NOW)]),
    ("gemma4",
     ('<|tool_call>call:plan_trip{city:<|"|>Rome<|"|>,days:3,stops:[<|"|>Forum, {}<|"|>,<|"|>Monti<|"|>],'
     'hotel:{pool:true,stars:4.5}}<tool_call|><|tool_call>call:now{}<tool_call|>'),
     "", [("plan_trip", {"city": "Rome", "days": 3, "stops": ["Forum, {}", "Monti"],
                         "hotel": {"pool": True, "stars": 4.5}}), ("now", NOW)]),
    ("functiongemma",
     ("<start_function_call>call:plan_trip{city:<escape>Rome<escape>,days:<escape>3<escape>,zip:<escape>00184<escape>}"
     "<end_function_call>"),
     "", [("plan_trip", {"city": "Rome", "days": 3, "zip": "00184"})]),
    ("phi4_mini_json",
     '<|tool_call|>[{"name": "plan_trip", "arguments": {"city": "Rome"}}]<|/tool_call|>',
     "", [("plan_trip", {"city": "Rome"})]),
    ("phi4_mini_json",
     'functools[{"name": "plan_trip", "arguments": {"city": "Rome"}}]', "", [("plan_trip", {"city": "Rome"})]),
    ("jamba",
     '<tool_calls>[\n    {"name": "plan_trip", "arguments": {"city": "Rome"}}\n]</tool_calls>',
     "", [("plan_trip", {"city": "Rome"})]),
    ("hunyuan_a13b",
     '<tool_calls>[{"name": "plan_trip", "arguments": {"city": "Rome"}}]</tool_calls>',
     "", [("plan_trip", {"city": "Rome"})]),
    ("xlam",
     '[{"name": "plan_trip", "arguments": {"city": "Rome"}}, {"name": "now", "arguments": {}}]',
     "", [("plan_trip", {"city": "Rome"}), ("now", NOW)]),
    ("llama4_pythonic",
     ("[plan_trip(city=\"Rome\", stops=['Forum', \"St. Peter's\"], hotel={\"stars\": 4.5, 'pool': True}, note=None)"
      ", now()]"),
     "", [("plan_trip", {"city": "Rome", "stops": ["Forum", "St. Peter's"], "hotel": {"stars": 4.5, "pool": True},
                         "note": None}), ("now", NOW)]),
    ("llama4_pythonic",
     '<|python_start|>[plan_trip(city="Rome\\n(\\"old\\")", days=-3)]<|python_end|>',
     "", [("plan_trip", {"city": 'Rome\n("old")', "days": -3})]),
    ("pythonic", "[now()]", "", [("now", NOW)]),
    ("olmo3",
     '<function_calls>\nplan_trip(city="Rome", note=null)\nnow()\n</function_calls>',
     "", [("plan_trip", {"city": "Rome", "note": None}), ("now", NOW)]),
    ("lfm2",
     'Hm. <|tool_call_start|>[plan_trip(city="Rome"), now()]<|tool_call_end|>Wait for it.',
     "Hm.Wait for it.", [("plan_trip", {"city": "Rome"}), ("now", NOW)]),
]  # fmt: skip

LEFT: list[tuple[ToolCallParser, str]] = [
    ("deepseek_v31", "<｜tool▁calls▁begin｜> none"),
    ("deepseek_v31", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>two words<｜tool▁sep｜>{}"),
    ("deepseek_v3", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\nnothing\n```"),
    ("kimi_k2", "<|tool_call_begin|>functions.now:0 {}"),
    ("qwen3_coder", "<tool_call>\nI should call a function.\n</tool_call>"),
    ("qwen3_coder", "<function=now>\nand nothing more"),
    ("qwen3_coder", "<tool_call>\n<function=now"),
    ("qwen3_coder", "a <function is a mapping = b"),
    ("glm45", "<tool_call>now and then</tool_call>"),
    ("glm45", "<tool_call>now\n<arg_key>city</arg_key>\nRome"),
    ("react", "Thought: I can answer.\nFinal Answer: Action: none. Action Input: {}"),
    ("react", "Action: plan a trip\nAction Input: {}"),
    ("react", "Action: now\nAction Input: at once"),
    ("glm4", "now\nI will plan the trip."),
    ("glm4", "now {}"),
    ("glm4", 'tomorrow\n{"city": "Rome"}'),
    ("glm4", 'I call it.\nnow\n{"city": "Rome"}'),
    ("glm4", "Hello.<|assistant|>Hello again."),
    ("minimax_m2", '<invoke name="now"></invoke>'),
    ("minimax_m2", "<minimax:tool_call>\n<invoke now>"),
    ("gemma4", "<|tool_call>call:now{"),
    ("gemma4", '<|tool_call>call:plan_trip{city<|"|>Rome<|"|>}<tool_call|>'),
    ("functiongemma", "<start_function_call>now<end_function_call>"),
    ("phi4_mini_json", "functools is a module."),
    ("granite", "<|tool_call|> nothing"),
    ("llama4_pythonic", "[see](https://example.com) (there)"),
    ("llama4_pythonic", "[1, 2, now()]"),
    ("llama4_pythonic", "[unheard_of(a=1)]"),
    ("llama4_pythonic", '[plan_trip("Rome")]'),
    ("llama4_pythonic", "[plan_trip(city=Rome)]"),
    ("llama4_pythonic", "[plan_trip(city=[1)]"),
    ("llama4_pythonic", '[plan_trip(city="Rome"'),
    ("llama4_pythonic", "[plan_trip(city=" + "[" * 500 + "]" * 500 + ")]"),
    ("olmo3", "<function_calls>none</function_calls>"),
    ("xlam", '["a", "b"]'),
    ("xlam", '[{"city": "Rome"}]'),
]


def request(choice: Any = None, **more: Any) -> ToolRequest:
    return read_tools(TOOLS, choice, **more)


def parser(name: ToolCallParser, *, parallel: bool = True) -> AnswerParser:
    form = OutputFormat(reasoning=None, tools=NAMED[name])
    return form.plan(request(parallel_tool_calls=parallel), None, "").parser()


def read(name: ToolCallParser, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    deltas = parse(parser(name), pieces)
    return content(deltas), calls(deltas)


def test_every_family_has_an_answer_here() -> None:
    others = {"hermes", "llama3_json", "mistral"}  # in test_call_parser
    assert {name for name, *_ in RECORDED} | others == set(NAMED)


@pytest.mark.parametrize(("name", "text", "rest", "expected"), RECORDED)
def test_calls_are_found_with_arguments_of_the_types_that_the_tool_wants(
    name: ToolCallParser, text: str, rest: str, expected: list[tuple[str, dict[str, Any]]]
) -> None:
    for pieces in ([text], list(text), *(cut(text, seed) for seed in range(20))):
        left, found = read(name, pieces)
        assert (left, [(called, json.loads(arguments)) for called, arguments in found]) == (rest, expected)
        for called, arguments in found:
            jsonschema.validate(json.loads(arguments), TRIP if called == "plan_trip" else {})


@pytest.mark.parametrize(("name", "text"), LEFT)
def test_what_is_no_call_stays_as_it_is(name: ToolCallParser, text: str) -> None:
    for pieces in ([text], list(text), *(cut(text, seed) for seed in range(20))):
        assert read(name, pieces) == (text, [])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([entry[:2] for entry in RECORDED] + LEFT), st.data())
def test_an_answer_that_ends_anywhere_is_read_alike_however_it_is_cut(
    answer: tuple[ToolCallParser, str], data: st.DataObject
) -> None:
    name, text = answer
    text = text[: data.draw(st.integers(0, len(text)))]
    assert read(name, cut(text, data.draw(st.integers(0, 1000)))) == read(name, [text])


def fragments(name: ToolCallParser) -> list[str]:
    """What answers of a family are made of, and parts of it."""
    form = NAMED[name]
    parts = [
        *form.markers,
        form.before,
        form.between,
        form.after,
        "now",
        "plan_trip",
        "city",
        "days",
        "3",
        "Rome",
        "\n",
    ]
    if isinstance(form.arguments, Tags):
        parts += [form.arguments.before, form.arguments.between, form.arguments.after, form.arguments.end]
    if isinstance(form.arguments, Literals):
        parts += [*form.arguments.quotes, form.arguments.assign, form.arguments.close, "(", "{", "[", "\\"]
    parts += [part[:-1] for part in parts if len(part) > 1]
    return [*parts, "{}", '{"city": "Rome"}', '{"name": "now", "arguments": {}}', "[", "]", "}", ",", " ", "é日"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("pythonic", "[now()<|python_start|>"), ("olmo3", "<function_calls>\nnow()\n<function_calls>now")],
)
def test_a_marker_behind_a_call_is_no_call_however_it_is_cut(name: ToolCallParser, text: str) -> None:
    for pieces in (list(text), *(cut(text, seed) for seed in range(20))):
        assert read(name, pieces) == read(name, [text])


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(sorted(NAMED)), st.data())
def test_any_mixture_of_markers_and_arguments_is_cut_safely_and_never_raises(
    name: ToolCallParser, data: st.DataObject
) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(fragments(name)), max_size=14)))
    assert read(name, cut(text, data.draw(st.integers(0, 1000)))) == read(name, [text])


@pytest.mark.parametrize("name", sorted(NAMED))
def test_plain_text_passes_at_once(name: ToolCallParser) -> None:
    output = parser(name)
    pieces = ("Hello", ", how", " are", " you?", " 1 + 1 = 2.")
    assert [content(output.push(piece)) for piece in pieces] == list(pieces)


@pytest.mark.parametrize("name", sorted(set(NAMED) - {"openai"}))
def test_calls_written_in_a_form_are_read_back_in_it(name: ToolCallParser) -> None:
    arguments = {**ROME, "note": 'a "quote", <tags> and [brackets]', "hotel": {"stars": -1e3, "pool": False}}
    text = written_calls(NAMED[name], [("plan_trip", json.dumps(arguments)), ("now", "{}")])
    left, found = read(name, [text])
    assert (left, [(called, json.loads(text)) for called, text in found]) == (
        "",
        [("plan_trip", arguments), ("now", NOW)],
    )


TRIP_BEGINS = "<tool_call>\n<function=plan_trip>\n<parameter="
SENT: list[tuple[ToolCallParser, list[str], list[str]]] = [
    ("qwen3_coder", [TRIP_BEGINS + "city>\n", "One", ' "two"', "\n", "three\n</para"],
     ['{"city": "', "One", ' \\"two\\"', "", "\\nthree"]),
    ("qwen3_coder", [TRIP_BEGINS + "days>\n", "1", "2\n", "</parameter>"], ['{"days": ', "", "", "12"]),
    ("glm45", ["<tool_call>plan_trip\n<arg_key>city</arg_key>\n<arg_value>", "One", " <", "b>", "</arg_value>"],
     ['{"city": "', "One", " ", "<b>", '"']),
    ("deepseek_v31", ['<｜tool▁call▁begin｜>plan_trip<｜tool▁sep｜>{"ci', 'ty": "', "One", '"}'],
     ['{"ci', 'ty": "', "One", '"}']),
    ("openai", ["<|channel|>commentary to=functions.now<|message|>", '{"a"', ": 1", "}<|call|>"],
     ["", '{"a"', ": 1", "}"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "pieces", "sent"), SENT)
def test_text_is_sent_while_it_is_written(name: ToolCallParser, pieces: list[str], sent: list[str]) -> None:
    output = parser(name)
    steps = [[delta.tool_call for delta in output.push(piece) if delta.tool_call] for piece in pieces]
    assert ["".join(call.arguments for call in step) for step in steps] == sent


def test_arguments_stay_whole_where_what_follows_is_none() -> None:
    text = "<tool_call>\n<function=plan_trip>\n<parameter=days>\n3\n</parameter>\nand so on"
    assert read("qwen3_coder", [text]) == ("and so on", [("plan_trip", '{"days": 3}')])


def test_an_answer_cut_short_in_a_value_keeps_what_came_of_it() -> None:
    assert read("qwen3_coder", [TRIP_BEGINS + "city>\nRo"]) == ("", [("plan_trip", '{"city": "Ro')])
    assert read("qwen3_coder", [TRIP_BEGINS + "stops>\n[1, "]) == ("", [("plan_trip", '{"stops": [1, ')])


@pytest.mark.parametrize("name", ["deepseek_v31", "kimi_k2", "qwen3_coder", "glm45", "minimax_m2", "gemma4", "openai"])
def test_without_parallel_calls_the_answer_is_done_after_the_first(name: ToolCallParser) -> None:
    text = next(text for family, text, _, found in RECORDED if family == name and (len(found) > 1 or name == "openai"))
    output = parser(name, parallel=False)
    deltas = parse(output, cut(text + text, 1))
    assert output.done
    assert len(calls(deltas)) == 1
