"""Messages about tools reach each kind of template in the shape it wants."""

import copy
from typing import Any

import pytest

from engines.text.tool_formats import find_tool_format
from engines.text.tool_messages import for_template
from engines.text.tool_prompts import with_tools_prompt
from server.model.tools import ToolRequest, read_tools
from tests.server.openai.chat_templates import LLAMA, MISTRAL, NO_SYSTEM, PLAIN, QWEN, UNKNOWN_FORM, render

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def call(call_id: str, city: str) -> dict[str, Any]:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": "get_weather", "arguments": f'{{"city": "{city}"}}'},
    }


HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather in Paris and Köln?"},
    {"role": "assistant", "content": None, "tool_calls": [call("call_a", "Paris"), call("call_b", "Köln")]},
    {"role": "tool", "tool_call_id": "call_b", "content": '{"sky": "grey"}'},
    {"role": "tool", "tool_call_id": "call_a", "content": '{"sky": "blue"}'},
    {"role": "assistant", "content": "Blue and grey."},
    {"role": "user", "content": "Thanks"},
]


def rendered(template: str, messages: list[dict[str, Any]], tools: ToolRequest | None = None) -> str:
    given = copy.deepcopy(messages)
    form = find_tool_format(template, {})
    offered = [tool.definition for tool in (tools or read_tools(TOOLS)).tools]
    shown, definitions = for_template(messages, offered, form, template)
    assert messages == given, "what was given is not changed"
    return render(template, shown, definitions)


def test_qwen_and_hermes_get_arguments_as_objects_and_both_calls_at_once() -> None:
    prompt = rendered(QWEN, HISTORY)
    assert '"description": "The weather in a city"' in prompt
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n<tool_call>' in prompt
    assert '{"city": "Köln"}' in prompt
    assert "<tool_response>\n{\"sky\": \"grey\"}\n</tool_response>" in prompt  # fmt: skip
    assert "None" not in prompt


def test_llama_gets_one_call_at_a_time_each_with_its_result_after_it() -> None:
    prompt = rendered(LLAMA, HISTORY)
    order = ['"parameters": {"city": "Paris"}', "blue", '"parameters": {"city": "Köln"}', "grey", "Blue and grey."]
    positions = [prompt.index(part) for part in order]
    assert positions == sorted(positions)


def test_mistral_gets_ids_of_nine_characters_that_still_match() -> None:
    prompt = rendered(MISTRAL, HISTORY)
    assert "[AVAILABLE_TOOLS]" in prompt
    assert '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "' in prompt
    call_id = prompt.split('"Paris"}, "id": "')[1][:9]
    assert f'{{"sky": "blue"}}, "call_id": "{call_id}"' in prompt


def test_a_result_gets_the_name_of_what_was_called() -> None:
    shown, _ = for_template(HISTORY, TOOLS, find_tool_format(QWEN, {}), QWEN)
    assert [message.get("name") for message in shown if message["role"] == "tool"] == ["get_weather", "get_weather"]


@pytest.mark.parametrize("template", [PLAIN, UNKNOWN_FORM])
def test_a_template_without_tools_gets_everything_as_text(template: str) -> None:
    prompt = rendered(template, HISTORY)
    assert '{"name": "get_weather", "description": "The weather in a city"' in prompt.split("<|im_start|>user")[0]
    assert '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n<tool_call>' in prompt
    assert (
        '<|im_start|>user\n<tool_response>\n{"sky": "grey"}\n</tool_response>\n<tool_response>\n{"sky": "blue"}'
        in prompt
    )


@pytest.mark.parametrize("template", [QWEN, LLAMA, MISTRAL, PLAIN, NO_SYSTEM])
@pytest.mark.parametrize(
    ("name", "told"),
    [("react_en", "Stop there."), ("react_zh", "写到这里请停下"), ("toolbench", "a call of the function Finish")],
)
def test_by_name_any_template_gets_tools_and_calls_as_react_has_them(template: str, name: str, told: str) -> None:
    said = {**HISTORY[1], "content": "Thought: I need both.", "tool_calls": [call("call_a", "Paris")]}
    prompt = rendered(with_tools_prompt(template, name), [HISTORY[0], said, HISTORY[3], *HISTORY[4:]])
    steps = [
        '{"name": "get_weather", "description": "The weather in a city"', "Action: ", "get_weather\n", told,
        "Thought: I need both.\nAction: get_weather\nAction Input: {\"city\": \"Paris\"}",
        'Observation: {"sky": "blue"}', "Blue and grey.",
    ]  # fmt: skip
    rest = prompt
    for step in steps:
        assert step in rest
        rest = rest.split(step, 1)[1]
    assert not any(mark in prompt for mark in ("[AVAILABLE_TOOLS]", "<tools>", "<tool_response>", "tools_prompt"))


@pytest.mark.parametrize("template", [QWEN, PLAIN, NO_SYSTEM])
def test_by_name_any_template_gets_tools_and_calls_as_glm_4_has_them(template: str) -> None:
    said = {**HISTORY[1], "content": "I look.", "tool_calls": [call("call_a", "Paris"), call("call_b", "Köln")]}
    told = with_tools_prompt(template, "glm4")
    prompt = rendered(told, [HISTORY[0], said, *HISTORY[2:]])
    steps = [
        "# 可用工具\n\n## get_weather\n\n{\"name\": \"get_weather\", ",
        "the function's name\n{\"argument\": \"value\"}\n",
        'I look.<|assistant|>get_weather\n{"city": "Paris"}<|assistant|>get_weather\n{"city": "Köln"}',
        '<|observation|>\n{"sky": "grey"}\n<|observation|>\n{"sky": "blue"}', "Blue and grey.",
    ]  # fmt: skip
    rest = prompt
    for step in steps:
        assert step in rest
        rest = rest.split(step, 1)[1]
    alone = rendered(told, [HISTORY[0], {**said, "content": ""}, *HISTORY[2:]])
    assert 'assistant\nget_weather\n{"city": "Paris"}' in alone
    assert not any(mark in prompt for mark in ("<tools>", "<tool_response>", "tools_prompt"))


def test_the_instructions_join_the_system_message_that_is_there() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    prompt = rendered(PLAIN, messages)
    assert prompt.count("<|im_start|>system") == 1
    assert prompt.index("Be brief.") < prompt.index("get_weather")


def test_where_there_can_be_no_system_message_the_first_of_the_user_has_them() -> None:
    prompt = rendered(NO_SYSTEM, HISTORY)
    assert prompt.index("get_weather") < prompt.index("Weather in Paris and Köln?")


def test_without_tools_a_plain_template_gets_no_instructions() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert (
        rendered(PLAIN, messages, read_tools(TOOLS, "none"))
        == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_arguments_that_are_no_object_are_shown_as_they_were_written() -> None:
    broken = call("call_a", "Paris")
    broken["function"]["arguments"] = "{'city': 'Paris'"
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [broken]},
    ]
    assert "{'city': 'Paris'" in rendered(QWEN, messages)
    assert "{'city': 'Paris'" in rendered(PLAIN, messages)


def test_deeply_nested_arguments_do_not_raise() -> None:
    deep = call("call_a", "Paris")
    deep["function"]["arguments"] = '{"a": ' + "[" * 5000
    assert "[[[[" in rendered(PLAIN, [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [deep]}])
    assert "[[[[" in rendered(QWEN, [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": [deep]}])


def test_only_allowed_tools_are_shown() -> None:
    other = {"type": "function", "function": {"name": "add"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [other]}}
    tools = read_tools([*TOOLS, other], allowed)
    messages = [{"role": "user", "content": "Hi"}]
    for template in (QWEN, PLAIN, MISTRAL, LLAMA):
        prompt = rendered(template, messages, tools)
        assert '"add"' in prompt
        assert "get_weather" not in prompt


def test_kimi_sees_the_ids_that_it_gives_itself() -> None:
    template = """{% for m in messages %}{% for call in m.tool_calls %}<|tool_call_begin|>{{ call.id }}
<|tool_call_argument_begin|>{{ call.function.arguments | tojson }}{% endfor %}{% if m.role == "tool" %}
## Return of {{ m.tool_call_id }}: {{ m.content }}{% endif %}{% endfor %}{{ tools }}"""
    prompt = rendered(template, HISTORY)
    assert '<|tool_call_begin|>functions.get_weather:0\n<|tool_call_argument_begin|>{"city": "Paris"}' in prompt
    assert '## Return of functions.get_weather:1: {"sky": "grey"}' in prompt
    assert '## Return of functions.get_weather:0: {"sky": "blue"}' in prompt


def test_deepseek_gets_arguments_as_text_and_is_told_of_the_tools_in_its_own_form() -> None:
    template = """{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% endif %}
{% for call in m['tool_calls'] %}{{ '<｜tool▁call▁begin｜>' + call['function']['name'] + '<｜tool▁sep｜>'
+ call['function']['arguments'] + '<｜tool▁call▁end｜>' }}{% endfor %}{% if m['content'] is none %}NONE{% endif %}
{% endfor %}"""
    prompt = rendered(template, HISTORY)
    assert '<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>' in prompt
    assert prompt.count("NONE") == 1
    assert '{"name": "get_weather", "description"' in prompt
    assert '<｜tool▁sep｜>{"argument": "value"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>' in prompt


def test_harmony_gets_each_call_alone_and_what_was_said_before_it_as_reasoning() -> None:
    template = """{% for m in messages %}{% if m.tool_calls %}{% if m.content and m.thinking %}
{{- raise_exception("both") }}{% endif %}<|channel|>analysis<|message|>{{ m.content or m.thinking }}<|end|>
{{- m.tool_calls[0].function.arguments | tojson }}{% else %}{{ m.content }}{% endif %}{% endfor %}{{ tools }}"""
    spoken = {**HISTORY[1], "content": "I look.", "thinking": "Hm."}
    prompt = rendered(template, [HISTORY[0], spoken, *HISTORY[2:]])
    order = ['Hm.\n\nI look.<|end|>{"city": "Paris"}', "blue", '{"city": "Köln"}', "grey"]
    positions = [prompt.index(part) for part in order]
    assert positions == sorted(positions)
    assert prompt.count("Hm.") == 1


def test_granite_which_shows_tools_but_no_calls_sees_them_as_it_writes_them() -> None:
    template = """{% for tool in tools %}<tool>{{ tool | tojson }}{% endfor %}respond only with <|tool_call|>
{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"""
    prompt = rendered(template, HISTORY)
    assert '<tool>{"type": "function", "function": {"name": "get_weather"' in prompt
    assert '<assistant><|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name"' in prompt
    assert '<tool>{"sky": "grey"}' in prompt  # the result, as a message of that role


def test_phi_is_told_of_the_tools_in_the_system_message_and_shown_calls_in_its_own_form() -> None:
    template = """{% for m in messages %}{% if m['role'] == 'system' and 'tools' in m and m['tools'] is not none %}
<|system|>{{ m['content'] }}<|tool|>{{ m['tools'] }}<|/tool|><|end|>
{% else %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endif %}{% endfor %}"""
    template = template.replace("m[", "message[").replace("in m ", "in message ").replace("for m in", "for message in")
    prompt = rendered(template, HISTORY)
    assert '<|tool|>[{"name": "get_weather", "description": "The weather in a city"' in prompt
    assert '<|assistant|><|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name"' in prompt
    with_system = rendered(template, [{"role": "system", "content": "Be brief."}, *HISTORY])
    assert with_system.count("<|system|>") == 1
    assert "<|system|>Be brief.<|tool|>[" in with_system


def test_a_family_that_is_set_for_a_plain_template_is_asked_for_calls_in_its_form() -> None:
    form = find_tool_format(PLAIN, {}, "qwen3_coder")
    shown, definitions = for_template(HISTORY, TOOLS, form, PLAIN)
    assert definitions is None
    assert "<parameter=argument>\nvalue\n</parameter>" in shown[0]["content"]
    assert shown[2]["content"].startswith("<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>")
