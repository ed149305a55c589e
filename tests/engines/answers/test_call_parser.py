"""Calls are found in a model's text, whatever their form and however the text is cut; the rest stays content."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.answers.call_parser import CallParser
from engines.answers.parser import OutputParser
from engines.text.tool_families import HERMES, LLAMA3_JSON, MISTRAL, MISTRAL_NAMED
from engines.text.tool_syntax import ToolFormat
from engines.text.written_calls import written_calls
from tests.server.openai.outputs import calls, content, cut, parse

FORMS = {"hermes": HERMES, "llama3": LLAMA3_JSON, "mistral": MISTRAL, "mistral_named": MISTRAL_NAMED}
SCHEMAS: dict[str, dict[str, object]] = {"get_weather": {}, "add": {}}


def parser(form: ToolFormat, *, parallel: bool = True) -> OutputParser:
    return OutputParser(tools=CallParser(form, SCHEMAS, parallel=parallel))


def read(form: ToolFormat, text: str) -> tuple[str, list[tuple[str, str]]]:
    deltas = parse(parser(form), [text])
    return content(deltas), calls(deltas)


CALL = '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}]\\""}]}}'
ARGUMENTS = '{"a": 1, "b": [2, {"c": "}]\\""}]}'

FOUND = [
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>", "", [("add", ARGUMENTS)]),
    ("hermes", f"<tool_call>{CALL}", "", [("add", ARGUMENTS)]),
    ("hermes", f"Let me add.\n\n<tool_call>\n{CALL}\n</tool_call>\n", "Let me add.", [("add", ARGUMENTS)]),
    ("hermes", f"<tool_call>\n{CALL}\n</tool_ca", "", [("add", ARGUMENTS)]),
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>\n<tool_", "", [("add", ARGUMENTS)]),
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n", "", [("add", ARGUMENTS)]),
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call> So <tool_", "So <tool_", [("add", ARGUMENTS)]),
    ("hermes", f"<tool_call>\n{CALL}\n<tool_", "", [("add", ARGUMENTS)]),
    ("mistral_named", "[TOOL_CALLS]add[ARGS]{}[TOOL", "", [("add", "{}")]),
    ("mistral_named", "[TOOL_CALLS]add[ARGS]{}[TOOL_CALLS]", "", [("add", "{}")]),
    ("hermes", f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>", "", [("add", ARGUMENTS)] * 2),
    ("hermes", f"<tool_call>\n{CALL}\n{CALL}\n</tool_call>", "", [("add", ARGUMENTS)] * 2),
    ("hermes", f"<tool_call>[{CALL}, {CALL}]</tool_call>", "", [("add", ARGUMENTS)] * 2),
    ("hermes", f"<tool_call>\n{CALL}}}\n</tool_call>", "", [("add", ARGUMENTS)]),
    ("hermes", f"<tool_call>{CALL}</tool_call> Done.", "Done.", [("add", ARGUMENTS)]),
    ("hermes", CALL, "", [("add", ARGUMENTS)]),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>', "", [("add", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("add", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "add"}</tool_call>', "", [("add", "{}")]),
    ("hermes", '<tool_call>{"name": "add", "arguments": null}</tool_call>', "", [("add", "{}")]),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": [-0.5e+10, 123456789, true, null]}, "id": 5}</tool_call>',
     "", [("add", '{"a": [-0.5e+10, 123456789, true, null]}')]),
    ("hermes", '<tool_call>{"id": 7, "type": "function", "name": "add", "arguments": {}}', "", [("add", "{}")]),
    ("hermes", '<tool_call>{"name": "unheard-of", "arguments": {}}</tool_call>', "", [("unheard-of", "{}")]),
    ("llama3", '{"name": "add", "parameters": {"a": 1}}', "", [("add", '{"a": 1}')]),
    ("llama3", '\n {"type": "function", "name": "add", "parameters": {}}', "", [("add", "{}")]),
    ("llama3", '<|python_tag|>{"name": "add", "parameters": {"a": 1}}', "", [("add", '{"a": 1}')]),
    ("llama3", '{"name": "add", "parameters": {}}; {"name": "get_weather", "parameters": {}}', "",
     [("add", "{}"), ("get_weather", "{}")]),
    ("mistral", f"[TOOL_CALLS] [{CALL}, {CALL}]", "", [("add", ARGUMENTS)] * 2),
    ("mistral", f"[TOOL_CALLS][{CALL}]", "", [("add", ARGUMENTS)]),
    ("mistral", '[TOOL_CALLS]add{"a": 1}', "", [("add", '{"a": 1}')]),
    ("mistral", '[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]get_weather[ARGS]{}', "",
     [("add", '{"a": 1}'), ("get_weather", "{}")]),
    ("mistral_named", '[TOOL_CALLS]add[CALL_ID]a1b2c3d4e[ARGS]{"a": 1}', "", [("add", '{"a": 1}')]),
    ("mistral_named", 'Sure. [TOOL_CALLS]add[ARGS]{}', "Sure.", [("add", "{}")]),
]  # fmt: skip

LEFT = [
    ("hermes", "Plain text, even with 1 < 2 and <tools>."),
    ("hermes", "  spaces around \n\n"),
    ("hermes", ""),
    ("hermes", "<tool_call>"),
    ("hermes", "<tool_call"),
    ("hermes", "a <tool_call>\n\n call me </tool_call>"),
    ("hermes", '<tool_call>\n{"name": "add", "arguments": {\'a\': 1}}\n</tool_call>'),
    ("hermes", '<tool_call>{"name": "add" "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"arguments": {"a": 1}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add", "arguments": "one"}</tool_call>'),
    ("hermes", '<tool_call>{"name": 12, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": ' + "9" * 5000 + ', "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add", "argu'),
    ("hermes", "<tool_call>[1, 2]</tool_call>"),
    ("hermes", '<tool_call>{"id": 1.2.3, "name": "add", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"id": 12345.e, "name": "add", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"id": 0123, "name": "add", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"id": tru, "name": "add", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"x": ' + "[" * 2000),
    ("hermes", '{"name": "Ada", "age": 36}'),
    ("hermes", '{"name": "unheard-of", "arguments": {}}'),
    ("hermes", '{"name": "add"}'),
    ("hermes", '{"city": "Paris"}'),
    ("llama3", '<|python_tag|>brave_search.call(query="weather")'),
    ("llama3", 'The call is {"name": "add", "parameters": {}}'),
    ("llama3", '[{"name": "add", "parameters": {}}]'),
    ("mistral", "[TOOL_CALLS] [oops]"),
    ("mistral", "[TOOL_CALLS]no arguments follow"),
    ("mistral", "[TOOL_CALLS]" + "a" * 300 + '{"a": 1}'),
    ("mistral", "[TOOL_CALLS]add[ARGS]"),
    ("mistral", '{"name": "add", "arguments": {}}'),
]


@pytest.mark.parametrize(("form", "text", "rest", "expected"), FOUND)
def test_a_call_is_found(form: str, text: str, rest: str, expected: list[tuple[str, str]]) -> None:
    assert read(FORMS[form], text) == (rest, expected)
    for _, arguments in expected:
        assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize(("form", "text"), LEFT)
def test_what_is_no_call_stays_as_it_is(form: str, text: str) -> None:
    assert read(FORMS[form], text) == (text, [])


EVERY_TEXT = [(form, text) for form, text, *_ in FOUND] + LEFT


@pytest.mark.parametrize(("form", "text"), EVERY_TEXT)
def test_the_result_does_not_depend_on_how_the_text_is_cut(form: str, text: str) -> None:
    whole = read(FORMS[form], text)
    for seed in range(30):
        deltas = parse(parser(FORMS[form]), cut(text, seed))
        assert (content(deltas), calls(deltas)) == whole


FRAGMENTS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<tool_", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", '{"name": "add"',
     ', "arguments": ', ', "parameters": ', '{"a": 1}', "{", "}", "[", "]", ";", ",", '"', "\\", "\n", " ", "text",
     "add", "1.5", "null", "é日"]
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(FRAGMENTS, max_size=14).map("".join), st.sampled_from(sorted(FORMS)), st.integers(0, 1000))
def test_any_mixture_of_markers_and_json_is_cut_safely_and_never_raises(text: str, form: str, seed: int) -> None:
    deltas = parse(parser(FORMS[form]), cut(text, seed))
    assert (content(deltas), calls(deltas)) == read(FORMS[form], text)


def test_plain_text_passes_at_once() -> None:
    output = parser(HERMES)
    assert [content(output.push(piece)) for piece in ("Hello", ", how", " are", " you?")] == [
        "Hello",
        ", how",
        " are",
        " you?",
    ]


def test_only_what_may_begin_a_marker_is_held_back() -> None:
    output = parser(HERMES)
    assert content(output.push("1 <")) == "1"
    assert content(output.push("tool")) == ""
    assert content(output.push("box>")) == " <toolbox>"


def test_arguments_are_sent_while_they_are_written() -> None:
    output = parser(HERMES)
    sent = []
    for piece in ("<tool_call>\n", '{"name": "add"', ', "arguments": {"a"', ": 1", ', "b": 2', "}", "}\n</tool_call>"):
        sent.append("".join(delta.tool_call.arguments for delta in output.push(piece) if delta.tool_call))
    assert sent == ["", "", '{"a"', ": 1", ', "b": 2', "}", ""]


def test_arguments_that_prove_to_be_no_json_are_passed_on_as_written() -> None:
    text = '<tool_call>{"name": "add", "arguments": {"a": one}}</tool_call> Done.'
    assert read(HERMES, text) == ("Done.", [("add", '{"a": one}}')])


def test_an_answer_cut_short_in_a_call_keeps_the_arguments_so_far() -> None:
    assert read(HERMES, '<tool_call>{"name": "add", "arguments": {"a": "b') == ("", [("add", '{"a": "b')])


def test_calls_have_ids_of_their_own() -> None:
    deltas = parse(parser(HERMES), [f"<tool_call>{CALL}</tool_call>" * 3])
    ids = [delta.tool_call.id for delta in deltas if delta.tool_call and delta.tool_call.id]
    assert len(set(ids)) == 3


def test_without_parallel_calls_the_answer_is_done_after_the_first() -> None:
    output = parser(HERMES, parallel=False)
    text = f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call> and more"
    deltas = [delta for piece in cut(text, 1) for delta in output.push(piece)] + output.finish()
    assert output.done
    assert calls(deltas) == [("add", ARGUMENTS)]
    assert content(deltas) == ""


def test_called_says_whether_there_was_a_call() -> None:
    for text, called in ((f"<tool_call>{CALL}</tool_call>", True), ("<tool_call>{}</tool_call>", False), ("Hi", False)):
        output = parser(HERMES)
        parse(output, [text])
        assert output.called is called


def test_a_call_written_in_a_form_is_read_back_in_it() -> None:
    for form in FORMS.values():
        text = written_calls(form, [("add", ARGUMENTS)])
        assert read(form, text) == ("", [("add", ARGUMENTS)])
        assert read(replace(form, native=False), text) == ("", [("add", ARGUMENTS)])
