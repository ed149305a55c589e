"""Messages as clients send them: roles, forms of content, and what else they carry."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.server.api import Api

USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SHOWN = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or () %}{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}"
    "{% if m.role == 'tool' %}[{{ m.name }}]{% endif %};{% endfor %}"
    "{# tools are called in <tool_call> #}"
)


@pytest.fixture
def shown(make_api: Callable[..., Api]) -> Callable[..., str]:
    """The prompt that a template makes, which shows every message with its role."""
    api = make_api(chat_template=SHOWN)

    def ask(*messages: dict[str, Any], **fields: Any) -> str:
        answer = api.chat(messages=list(messages), return_token_ids=True, **fields)
        return bytes(answer["prompt_token_ids"]).decode()

    return ask


@pytest.mark.parametrize("role", ["developer", "system", "user", "assistant", "tool"])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ([], ""),
        ("", ""),
        ([{"type": "text", "text": "a"}], "a"),
        (
            [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}],
            "a\nb",
        ),
    ],
    ids=["null", "none", "empty", "part", "parts"],
)
def test_every_role_may_say_nothing_or_several_parts(
    shown: Callable[..., str], role: str, content: Any, text: str
) -> None:
    extra = {"tool_call_id": "c1", "name": "f"} if role == "tool" else {}
    prompt = shown({"role": role, "content": content, **extra}, USER)
    assert prompt.partition(";")[0].partition(":")[2].removesuffix("[f]") == text


def test_an_assistant_may_have_neither_content_nor_calls(shown: Callable[..., str]) -> None:
    assert shown({"role": "assistant"}, USER) == "assistant:;user:hi;"


def test_other_roles_may_not_lack_their_content(api: Api) -> None:
    assert api.refused_chat(messages=[{"role": "user", "conten": "hi"}]).param == "messages[0]"


def test_unknown_fields_of_messages_parts_and_calls_are_ignored(shown: Callable[..., str]) -> None:
    odd: dict[str, Any] = {
        "id": "x",
        "provider_specific_fields": {},
        "thinking_blocks": [],
        "annotations": [],
        "index": 0,
    }
    call = {
        **CALL,
        **odd,
        "id": "c1",
        "function": {"name": "f", "arguments": "{}", "parsed_arguments": {}, "strict": True},
    }
    prompt = shown(
        {**USER, **odd, "content": [{"type": "text", "text": "hi", **odd}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "audio": None, "function_call": None, **odd},
        {"role": "tool", "tool_call_id": "c1", "content": "1", **odd},
        tools=[{"type": "function", "function": {"name": "f", "strict": None, **odd}, "cache_control": {}}],
    )
    assert prompt == "user:hi;assistant:f({});tool:1[f];"


def test_unknown_fields_of_tools_are_not_shown_to_the_model(make_api: Callable[..., Api]) -> None:
    api = make_api(chat_template="{{ tools | tojson }}{{ messages[0].content }}<tool_call>")
    tool = {"function": {"name": "f", "description": None, "cache": 1}, "type": "function", "cache_control": {}}
    answer = api.chat(tools=[tool], tool_choice="auto", return_token_ids=True)
    prompt = bytes(answer["prompt_token_ids"]).decode()
    assert prompt == '[{"function": {"name": "f"}, "type": "function"}]hello<tool_call>'


def test_empty_lists_of_calls_are_no_calls(shown: Callable[..., str]) -> None:
    assert shown({**USER, "tool_calls": []}) == "user:hi;"


def test_a_role_of_the_templates_own(shown: Callable[..., str]) -> None:
    assert shown({"role": "critic", "content": "bad"}, USER) == "critic:bad;user:hi;"


def test_a_role_that_the_template_loses_is_refused(make_api: Callable[..., Api]) -> None:
    api = make_api(chat_template="{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    refusal = api.refused_chat(messages=[{"role": "critic", "content": "bad"}, USER])
    assert (refusal.param, refusal.code) == ("messages[0].role", "unsupported_parameter")
    assert "'critic'" in refusal.message


def test_a_role_that_the_template_refuses_is_refused_in_its_words(make_api: Callable[..., Api]) -> None:
    template = (
        "{% for m in messages %}{{ raise_exception('no critics') if m.role == 'critic' }}{{ m.content }}{% endfor %}"
    )
    refusal = make_api(chat_template=template).refused_chat(messages=[{"role": "critic", "content": "bad"}, USER])
    assert (refusal.status, refusal.param) == (400, "messages") and "no critics" in refusal.message


def test_many_made_up_roles_are_forgotten_again(shown: Callable[..., str]) -> None:
    for start in (0, 150):
        messages = [{"role": f"r{start + number}", "content": "x"} for number in range(150)]
        assert shown(*messages).count("x") == 150
