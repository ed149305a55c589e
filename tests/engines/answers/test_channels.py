"""gpt-oss's answers are split into reasoning, content and calls, as OpenAI's own library splits them."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.answers.channels import MARKERS, ChannelParser
from engines.text.grammar import to_llguidance
from engines.text.reasoning_formats import find_reasoning_format
from server.model.output import OutputPlan, find_output_format
from server.model.tools import read_tools
from tests.byte_tokenizer import accepts
from tests.server.openai.outputs import calls, content, cut, parse, read_structured, reasoning

TEMPLATE = "{{ tools }}<|start|>assistant<|channel|>analysis<|message|>{{ message.thinking }}"
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}},
]  # fmt: skip
Read = tuple[str, str, list[tuple[str, str]]]
ADD = "<|channel|>commentary to=functions.add <|constrain|>json<|message|>"
FINAL = "<|channel|>final<|message|>"
NEXT = "<|end|><|start|>assistant"
HM = "<|channel|>analysis<|message|>Hm."
AT_LENGTH = "What I think, at length " + "and so on " * 30

ANSWERS: list[tuple[str, Read]] = [
    (f"{HM}{NEXT}{FINAL}Four.<|return|>", ("Hm.", "Four.", [])),
    (f"{FINAL}Four.", ("", "Four.", [])),
    (f"{FINAL}1 < 2 <|not a marker|>", ("", "1 < 2 <|not a marker|>", [])),
    (f'{HM}{NEXT}{ADD}{{"a": 1}}<|call|>', ("Hm.", "", [("add", '{"a": 1}')])),
    (f'{HM}{NEXT} to=functions.add<|channel|>commentary json<|message|>{{"a": 1}}<|call|>',
     ("Hm.", "", [("add", '{"a": 1}')])),
    (f"{ADD}<|call|>", ("", "", [("add", "{}")])),
    (f'{ADD}{{"a": 1}}{NEXT}{ADD}{{"a": 2}}<|call|>', ("", "", [("add", '{"a": 1}'), ("add", '{"a": 2}')])),
    (f'<|channel|>commentary<|message|>I will add.{NEXT}{ADD}{{"a": 1}}', ("", "I will add.", [("add", '{"a": 1}')])),
    (f"{HM}{NEXT}<|channel|>analysis<|message|>Yes.{NEXT}{FINAL}Four.", ("Hm.\nYes.", "Four.", [])),
    (f"<|channel|>analysis to=add<|message|>{{}}{NEXT}{FINAL}Four.", ("", "Four.", [("add", "{}")])),
    ("<|channel|>analysis to=python code<|message|>1 + 1<|call|>", ("1 + 1", "", [])),
    (f"{HM}<|start|>assistant{FINAL}Four.", ("Hm.", "Four.", [])),
    ("Four.", ("", "Four.", [])),
    ("to be or not to be", ("", "to be or not to be", [])),
    ("", ("", "", [])),
    (f"{ADD}not JSON", ("", "", [("add", "not JSON")])),
    ("<|channel|>analy", ("", "", [])),
    (f"{HM}{NEXT}<|channel|>commentary to=functions.a", ("Hm.", "", [])),
    ("<|channel|>" + AT_LENGTH, ("", AT_LENGTH, [])),
    (f"<|channel|>final<|end|><|start|>assistant{FINAL}Four.", ("", "final\nFour.", [])),
]  # fmt: skip


def read(text: str, seed: int | None = None, **more: Any) -> Read:
    deltas = parse(ChannelParser(more.pop("schemas", {"add": {}}), **more), [text] if seed is None else cut(text, seed))
    return reasoning(deltas), content(deltas), calls(deltas)


@pytest.mark.parametrize(("text", "expected"), ANSWERS)
def test_an_answer_is_split_by_its_channels_however_it_is_cut(text: str, expected: Read) -> None:
    assert read(text) == expected
    for seed in range(30):
        assert read(text, seed) == expected


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.sampled_from([*MARKERS, *(m[:-2] for m in MARKERS), "assistant", "analysis", "commentary", "final", " to=",
                         "functions.add", "add", "json", '{"a": 1}', "text", " ", "\n", "é日"]),
        max_size=16,
    ).map("".join),
    st.integers(0, 1000),
)  # fmt: skip
def test_any_mixture_of_markers_is_cut_safely_and_never_raises(text: str, seed: int) -> None:
    assert read(text, seed) == read(text)


def test_every_part_is_sent_as_it_comes() -> None:
    output = ChannelParser({"add": {}})
    assert [reasoning(output.push(piece)) for piece in (HM[:-3], "Let", " me", " see")] == ["", "Let", " me", " see"]
    assert [content(output.push(piece)) for piece in (NEXT, FINAL, "It", " is", " <")] == ["", "", "It", " is", " "]


def test_without_tools_a_message_to_a_function_is_content_and_without_parser_reasoning_is() -> None:
    assert read(f"{HM}{NEXT}{ADD}{{}}", schemas=None) == ("Hm.", "{}", [])
    assert read(f"{HM}{NEXT}{FINAL}Four.", reasons=False) == ("", "Hm.\nFour.", [])


def test_the_answer_is_done_after_the_one_call_that_is_wanted() -> None:
    output = ChannelParser({"add": {}}, parallel=False)
    deltas = parse(output, [f"{ADD}{{}}{NEXT}{ADD}{{}}"])
    assert output.done and output.called
    assert calls(deltas) == [("add", "{}")]


TOKENS = {marker: 200_000 + number for number, marker in enumerate(MARKERS)}


@pytest.mark.parametrize("parsers", [{}, {"reasoning_parser": "none"}, {"tool_call_parser": "none"}])
def test_the_special_tokens_reach_the_parser_with_tools_and_without(parsers: Any) -> None:
    form = find_output_format(TEMPLATE, TOKENS, **parsers)
    for tools in (None, TOOLS):
        plan = form.plan(read_tools(tools), None, "<|start|>assistant")
        assert plan.marker_ids == frozenset(TOKENS.values())
        assert isinstance(plan.parser(), ChannelParser)


def planned(choice: Any = None, response_format: Any = None, *, tools: Any = TOOLS) -> OutputPlan:
    form = find_output_format(TEMPLATE, {})
    plan = form.plan(read_tools(tools, choice), read_structured(response_format), "<|start|>assistant")
    assert plan.unchecked is not None
    plan.unchecked.checked()
    return plan


def grammar(plan: OutputPlan) -> str:
    assert plan.structured is not None
    return to_llguidance(plan.structured)


def test_a_required_call_comes_after_reasoning_or_at_once() -> None:
    required = grammar(planned("required"))
    for text in (f'{ADD}{{"a": 1}}', f'{HM}{NEXT}{ADD}{{"a": 1}}'):
        assert accepts(required, text)
        assert read(text)[2] == [("add", '{"a": 1}')]
    assert not accepts(required, f'{HM}{NEXT}{ADD}{{"a": "x"}}')
    assert not accepts(required, f"{HM}{NEXT}{FINAL}Four.")


def test_a_response_format_binds_what_is_in_the_final_channel() -> None:
    bound = grammar(planned(response_format={"type": "json_object"}, tools=None))
    assert accepts(bound, f'{HM}{NEXT}{FINAL}{{"a": 1}}')
    assert accepts(bound, f'{FINAL}{{"a": 1}}')
    assert not accepts(bound, f"{HM}{NEXT}{FINAL}Four.")
    assert not accepts(bound, '{"a": 1}')


def test_reasoning_is_written_as_it_is_read() -> None:
    form = find_reasoning_format(TEMPLATE, {})
    assert form is not None
    assert read(form.block("Hm.", is_open=False) + form.answer + "Four.") == ("Hm.", "Four.", [])


def test_openais_library_reads_the_same() -> None:
    harmony = pytest.importorskip("openai_harmony")
    try:
        encoding = harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)
    except harmony.HarmonyError:  # its vocabulary comes over the network
        pytest.skip("openai_harmony cannot fetch its vocabulary here")
    arguments = json.dumps({"a": 1})
    assistant = harmony.Role.ASSISTANT

    def message(channel: str, text: str) -> Any:
        return harmony.Message.from_role_and_content(assistant, text).with_channel(channel)

    call = message("commentary", arguments).with_recipient("functions.add").with_content_type("<|constrain|>json")
    spoken = [message("analysis", "Hm."), message("commentary", "I will add."), call]
    text = encoding.decode_utf8(encoding.render_conversation(harmony.Conversation.from_messages(spoken)))
    text = text.removeprefix("<|start|>assistant")
    assert read(text) == ("Hm.", "I will add.", [("add", arguments)])
    for text, (thought, answer, found) in ANSWERS[:9]:
        tokens = encoding.encode(text, allowed_special="all")
        read_by_it = encoding.parse_messages_from_completion_tokens(tokens, assistant, strict=False)
        of_channel: dict[str, list[str]] = {"analysis": [], "content": [], "calls": []}
        for part in read_by_it:
            kind = "calls" if part.recipient else "analysis" if part.channel == "analysis" else "content"
            of_channel[kind].append(part.content[0].text)
        assert "\n".join(of_channel["analysis"]) == thought
        assert "\n".join(of_channel["content"]) == answer
        assert [arguments or "{}" for arguments in of_channel["calls"]] == [arguments for _, arguments in found]
