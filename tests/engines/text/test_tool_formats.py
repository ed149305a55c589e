"""The form of calls is found from the template and the vocabulary."""

import pytest

from engines.text.tool_formats import find_tool_format
from engines.text.tool_prompts import with_tools_prompt
from tests.server.openai.chat_templates import LLAMA, MISTRAL, NO_SYSTEM, PLAIN, QWEN, QWEN3, UNKNOWN_FORM


@pytest.mark.parametrize(
    ("template", "name", "native"),
    [
        (QWEN, "hermes", True),
        (QWEN3, "hermes", True),
        (LLAMA, "llama3_json", True),
        ("{{ tools }} <|python_tag|>", "llama3_json", True),
        (MISTRAL, "mistral", True),
        (PLAIN, "hermes", False),
        (NO_SYSTEM, "hermes", False),
        (UNKNOWN_FORM, "hermes", False),
        (None, "hermes", False),
    ],
)
def test_the_template_tells_the_form(template: str | None, name: str, native: bool) -> None:
    form = find_tool_format(template, {})
    assert form is not None
    assert (form.name, form.native) == (name, native)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("to=functions.{{ name }}<|channel|>commentary json<|message|>", "openai"),
        ("<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ name }}\n```json\n", "deepseek_v3"),
        ("<｜tool▁call▁begin｜>{{ name }}<｜tool▁sep｜>", "deepseek_v31"),
        ("{{ '<' + dsml_token + 'function_calls>' }}", "deepseek_v32"),
        ("<｜DSML｜tool_calls>\n<｜DSML｜invoke name=", "deepseek_v4"),
        ("<tool_call>\n<function={{ name }}>\n<parameter={{ key }}>", "qwen3_coder"),
        ('<function=example>{\\"key\\": 1}</function> {{ "<|python_tag|>" + code }}', "functionary"),
        ("<seed:tool_call>\n<function={{ name }}>", "seed_oss"),
        ("<tool_call>{{ name }}\n<arg_key>{{ key }}</arg_key>\n<arg_value>", "glm45"),
        ("<tool_call>{{ name }}<arg_key>{{ key }}</arg_key><arg_value>", "glm47"),
        ("<|tool_call_begin|>{{ id }}<|tool_call_argument_begin|>", "kimi_k2"),
        ('<minimax:tool_call>\n<invoke name="{{ name }}">', "minimax_m2"),
        ("within <tool_calls></tool_calls> tags", "minimax"),
        ("write <tool_calls>[{{ call }}]</tool_calls>", "jamba"),
        ("write <|tool_call|> followed by a list", "granite"),
        ("<|tool_call|>{{ call }}<|/tool_call|>", "phi4_mini_json"),
        ("<|tool_call>call:{{ name }}", "gemma4"),
        ("<start_function_call>call:{{ name }}", "functiongemma"),
        ("[func_name1(params_name1=params_value1)]", "llama4_pythonic"),
        ("<|tool_call_start|>[", "lfm2"),
        ("<function_calls>", "olmo3"),
    ],
)
def test_each_family_is_known_by_how_its_template_writes_calls(written: str, name: str) -> None:
    form = find_tool_format("{{ tools }}{{ message.tool_calls }}" + written, {})
    assert form is not None
    assert (form.name, form.native, form.shows_tools) == (name, True, True)


def test_a_template_may_show_calls_and_leave_the_tools_to_the_system_message() -> None:
    form = find_tool_format("{{ message['tool_calls'] }}<｜tool▁sep｜>", {})
    assert form is not None
    assert (form.name, form.native, form.shows_tools) == ("deepseek_v31", True, False)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("react_en", "react"),
        ("react_zh", "react"),
        ("toolbench", "react"),
        ("hermes", "hermes"),
        ("glm4", "glm4"),
    ],
)
@pytest.mark.parametrize("template", [QWEN, LLAMA, PLAIN])
def test_a_template_that_holds_how_tools_are_told_of_is_not_asked_for_its_own_way(
    template: str, name: str, form: str
) -> None:
    found = find_tool_format(with_tools_prompt(template, name), {"<tool_call>": 7})
    assert found is not None
    assert (found.name, found.prompt, found.native) == (form, name, False)
    assert found.token_ids == ({"<tool_call>": 7} if form == "hermes" else {})
    other = find_tool_format(with_tools_prompt(template, name), {}, "mistral")
    assert other is not None
    assert (other.name, other.prompt) == ("mistral", None)


def test_newer_mistral_models_write_the_name_before_the_arguments() -> None:
    by_template = find_tool_format("{{ tools }}[TOOL_CALLS]name[ARGS]{}", {})
    by_vocabulary = find_tool_format(MISTRAL, {"[TOOL_CALLS]": 9, "[ARGS]": 32})
    older = find_tool_format(MISTRAL, {"[TOOL_CALLS]": 5})
    assert by_template is not None and by_template.before == "[TOOL_CALLS]"
    assert by_vocabulary is not None and by_vocabulary.token_ids == {"[TOOL_CALLS]": 9, "[ARGS]": 32}
    assert older is not None and older.first == "[TOOL_CALLS] ["


def test_markers_in_the_vocabulary_are_known_as_tokens() -> None:
    form = find_tool_format(QWEN, {"<tool_call>": 7, "</tool_call>": 8, "<|im_end|>": 2})
    assert form is not None
    assert form.token_ids == {"<tool_call>": 7, "</tool_call>": 8}


def test_a_setting_goes_before_the_template() -> None:
    llama = find_tool_format(QWEN, {}, "llama3_json")
    assert llama is not None
    assert (llama.name, llama.native) == ("llama3_json", True)
    on_a_plain_template = find_tool_format(PLAIN, {}, "hermes")
    assert on_a_plain_template is not None
    assert not on_a_plain_template.native
    assert find_tool_format(QWEN, {}, "none") is None
