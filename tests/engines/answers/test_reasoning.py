"""Reasoning is split from the answer."""

import pytest

from engines.answers.call_parser import CallParser
from engines.answers.parser import OutputParser
from engines.answers.reasoning import ReasoningParser
from engines.params.parsers import ReasoningParserName
from engines.text.reasoning_formats import find_reasoning_format
from engines.text.tool_families import HERMES
from server.model.output import find_output_format
from server.model.tools import read_tools
from tests.server.openai.outputs import calls, content, cut, parse, reasoning

QWEN3 = "{%- if '</think>' in content %}...{% endif %}<|im_start|>assistant\n"


def parser(*, is_open: bool = False, tools: bool = False) -> OutputParser:
    form = find_reasoning_format(QWEN3, {})
    assert form is not None
    schemas: dict[str, dict[str, object]] = {"add": {}}
    return OutputParser(ReasoningParser(form, is_open=is_open), CallParser(HERMES, schemas) if tools else None)


TEXTS = [
    (False, "<think>\nHm.\n\nYes.\n</think>\n\nFour.", "Hm.\n\nYes.", "Four."),
    (True, "Hm.\n</think>\n\nFour.\n", "Hm.", "Four.\n"),
    (True, "\nHm. </thin </think>Four.", "Hm. </thin ", "Four."),
    (False, "\n<think>\n\n</think>\n\nFour.", "", "Four."),
    (False, "Four. <think>no</think>", "", "Four. <think>no</think>"),
    (False, "  Four.", "", "  Four."),
    (False, "<thin", "", "<thin"),
    (False, "", "", ""),
    (True, "Cut short in the mid", "Cut short in the mid", ""),
    (True, "Cut short in the tag\n</th", "Cut short in the tag\n</th", ""),
    (True, "a</think>\n\n", "a", ""),
    (True, "a</think>b</think>c", "a", "b</think>c"),
]


@pytest.mark.parametrize(("is_open", "text", "thought", "answer"), TEXTS)
def test_reasoning_and_answer_are_told_apart_however_the_text_is_cut(
    is_open: bool, text: str, thought: str, answer: str
) -> None:
    for pieces in ([text], *(cut(text, seed) for seed in range(30))):
        deltas = parse(parser(is_open=is_open), pieces)
        assert (reasoning(deltas), content(deltas)) == (thought, answer)


FAMILIES = [
    ("deepseek_r1", "<think>\nHm.\n</think>\n\nFour."),
    ("mistral", "[THINK]Hm.[/THINK]Four."),
    ("seed_oss", "<seed:think>Hm.</seed:think>Four."),
    ("gemma4", "<|channel>thought\nHm.\n<channel|>Four."),
    ("granite", "Here is my thought process:\n\nHm.\n\nHere is my response:\n\nFour."),
]


@pytest.mark.parametrize(("name", "text"), FAMILIES)
def test_each_family_marks_its_reasoning_in_its_own_way(name: ReasoningParserName, text: str) -> None:
    form = find_reasoning_format(None, {}, name)
    assert form is not None
    assert find_reasoning_format(f"{{{{ x }}}}{form.start} {form.end}", {}) == form
    written = form.block("Hm.", is_open=False) + "Four."
    for pieces in ([text], [written], *(cut(text, seed) for seed in range(20))):
        deltas = parse(OutputParser(ReasoningParser(form, is_open=False)), pieces)
        assert (reasoning(deltas), content(deltas)) == ("Hm.", "Four.")


def test_a_tag_of_a_token_and_a_word_is_known_by_its_token() -> None:
    form = find_reasoning_format(None, {"<|channel>": 5, "<channel|>": 6}, "gemma4")
    assert form is not None
    assert form.token_ids == {"<|channel>": 5, "<channel|>": 6}
    assert form.is_over("<|turn>model\n<|channel>thought\n<channel|>")
    assert form.is_open("<|turn>model\n<|channel>thought\n")


def test_reasoning_is_given_as_it_comes() -> None:
    output = parser(is_open=True)
    assert [reasoning(output.push(piece)) for piece in ("Let", " me", " think")] == ["Let", " me", " think"]
    assert reasoning(output.push("</thi")) == ""
    deltas = output.push("nk>\n\nFour")
    assert (reasoning(deltas), content(deltas)) == ("", "Four")
    assert content(output.push(" it is")) == " it is"


def test_calls_come_after_reasoning_and_calls_within_it_are_no_calls() -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    text = f"<think>\nI could write {call}.\n</think>\n\n{call}"
    for pieces in ([text], *(cut(text, seed) for seed in range(30))):
        deltas = parse(parser(tools=True), pieces)
        assert reasoning(deltas) == f"I could write {call}."
        assert calls(deltas) == [("add", '{"a": 1}')]
        assert content(deltas) == ""


def test_kimi_may_call_in_the_midst_of_its_reasoning() -> None:
    call = (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
    )
    form = find_output_format(QWEN3, {}, tool_call_parser="kimi_k2")
    plan = form.plan(read_tools([{"type": "function", "function": {"name": "add"}}]), None, "<think>")
    for pieces in ([f"I add.\n{call}"], *(cut(f"I add.\n{call}", seed) for seed in range(20))):
        deltas = parse(plan.parser(), pieces)
        assert (reasoning(deltas), content(deltas), calls(deltas)) == ("I add.", "", [("add", "{}")])


def test_a_parser_for_neither_hands_the_text_through() -> None:
    output = OutputParser()
    deltas = parse(output, ["<think>", "x</think>", "<tool_call>{}"])
    assert [delta.content for delta in deltas] == ["<think>", "x</think>", "<tool_call>{}"]
    assert not output.called
    assert not output.done


def test_the_format_is_found_from_the_template_or_set() -> None:
    assert find_reasoning_format("{{ messages }}", {}) is None
    assert find_reasoning_format(None, {}) is None
    assert find_reasoning_format(QWEN3, {}, "none") is None
    set_by_hand = find_reasoning_format("{{ messages }}", {"<think>": 5, "</think>": 6, "<x>": 7}, "deepseek_r1")
    assert set_by_hand is not None
    assert set_by_hand.token_ids == {"<think>": 5, "</think>": 6}
    magistral = find_reasoning_format("[SYSTEM_PROMPT]...[THINK]...[/THINK]", {})
    assert magistral is not None
    assert magistral.start == "[THINK]"


def test_the_end_of_the_prompt_says_whether_reasoning_is_open_or_over() -> None:
    form = find_reasoning_format(QWEN3, {})
    assert form is not None
    assert form.is_open("<|im_start|>assistant\n<think>\n")
    assert not form.is_open("What does <think> mean?<|im_end|>\n<|im_start|>assistant\n")
    assert form.is_over("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not form.is_over("<|im_start|>assistant\n")
