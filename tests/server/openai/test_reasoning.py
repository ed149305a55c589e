"""Reasoning in messages and answers, under both of its names, and what asks for more or less of it."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.server.api import Api, Response

TEXT = "<think>\nhm, well\n</think>\n\nHello."
USER = {"role": "user", "content": "hi"}


def ask(api: Api, **body: Any) -> Response:
    return api.post("/v1/chat/completions", model="echo", messages=[USER], **body)


def prompt_of(answer: dict[str, Any]) -> str:
    return bytes(answer["prompt_token_ids"]).decode()


def deltas(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def joined(chunks: list[dict[str, Any]], name: str) -> str:
    return "".join(delta.get(name) or "" for delta in deltas(chunks))


@pytest.fixture
def api(make_api: Callable[..., Api]) -> Api:
    return make_api(reasoning_parser="deepseek_r1")


def test_reasoning_is_sent_under_both_names(api: Api) -> None:
    message = api.chat(TEXT)["choices"][0]["message"]
    assert (message["reasoning"], message["reasoning_content"]) == ("hm, well", "hm, well")
    chunks = api.chat_chunks(TEXT)
    assert (joined(chunks, "reasoning"), joined(chunks, "reasoning_content")) == ("hm, well", "hm, well")


@pytest.mark.parametrize("names", [("reasoning",), ("reasoning_content",), ("reasoning", "reasoning_content")])
@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_of_messages_is_read_under_both_names(
    make_api: Callable[..., Api], names: tuple[str, ...], field: str
) -> None:
    api = make_api(chat_template="{%% for m in messages %%}{{ m.%s }}|{{ m.content }}{%% endfor %%}" % field)  # noqa: UP031  # braces are Jinja's
    said = {"role": "assistant", "content": "Four.", **dict.fromkeys(names, "2 + 2")}
    assert prompt_of(api.chat(messages=[said, USER], return_token_ids=True)) == "2 + 2|Four.|hi"


def test_an_answer_can_be_sent_back_as_it_came(api: Api) -> None:
    message = api.chat(TEXT)["choices"][0]["message"]
    assert api.chat(messages=[USER, message, USER])["choices"][0]["message"]["content"] == "hi"


def test_one_name_may_be_empty_where_the_other_is_not(api: Api) -> None:
    said = {"role": "assistant", "content": "Four.", "reasoning": None, "reasoning_content": ""}
    api.chat(messages=[USER, said, USER])
    api.chat(messages=[USER, {**said, "reasoning": "2 + 2"}, USER])


def test_two_different_reasonings_are_refused(api: Api) -> None:
    said = {"role": "assistant", "content": "Four.", "reasoning": "2 + 2", "reasoning_content": "1 + 3"}
    refusal = api.refused_chat(messages=[USER, said, USER])
    assert refusal.status == 400 and "differ" in refusal.message


@pytest.mark.parametrize("role", ["user", "system"])
def test_only_an_assistant_reasons(api: Api, role: str) -> None:
    said = {"role": role, "content": "x", "reasoning": "y"}
    assert "'reasoning'" in api.refused_chat(messages=[said, USER]).message


def test_reasoning_is_left_out_where_the_client_wants_none(api: Api) -> None:
    asked = {"include_reasoning": False, "logprobs": True, "return_token_ids": True}
    whole = api.chat(TEXT, **asked)
    (choice,) = whole["choices"]
    assert choice["message"]["content"] == "Hello." and "reasoning" not in choice["message"]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == list("Hello.")
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    chunks = api.chat_chunks(TEXT, stream_options={"include_usage": True}, **asked)
    assert joined(chunks, "content") == "Hello."
    assert not any("reasoning" in delta or "reasoning_content" in delta for delta in deltas(chunks))
    assert "hm" not in str([chunk["choices"] for chunk in chunks])
    assert chunks[-1]["usage"] == whole["usage"]


def test_what_ends_the_reasoning_and_begins_the_answer_at_once_is_told_by_the_answers_tokens_alone(api: Api) -> None:
    """The beginning of a stop string is held back until another character follows: then all of it comes at once."""
    asked = {"include_reasoning": False, "logprobs": True, "stop": "l\n</think>\n\nHe!"}
    (choice,) = api.chat(TEXT, **asked)["choices"]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == list("Hello.")
    chunks = api.chat_chunks(TEXT, **asked)
    told = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice.get("logprobs")]
    assert [entry["token"] for each in told for entry in each["content"]] == list("Hello.")


def test_a_model_that_does_not_reason_leaves_nothing_out(make_api: Callable[..., Api]) -> None:
    (choice,) = make_api().chat(TEXT, include_reasoning=False, logprobs=True)["choices"]
    assert choice["message"]["content"] == TEXT
    assert len(choice["logprobs"]["content"]) == len(TEXT)


# --- how much a model thinks and says

NEVER_NONE = """
{%- if reasoning_effort is defined and reasoning_effort not in ["low", "high"] %}
{{- raise_exception("no such effort") }}{% endif %}{{ messages[0].content }} {{ reasoning_effort }}"""


@pytest.mark.parametrize(
    ("template", "effort", "shown"),
    [
        ("{{ reasoning_effort }}", "high", "high"),
        ("{{ reasoning_effort }}", "none", "none"),
        (NEVER_NONE, "high", "hi high"),
        (NEVER_NONE, "none", "hi low"),
        (NEVER_NONE, "max", "hi high"),
        ("{{ enable_thinking }}", "none", "False"),
        ("{{ enable_thinking }}", "minimal", "True"),
        ("{{ enable_thinking }}", "max", "True"),
        ("{{ thinking }}", "none", "False"),
        ("{{ thinking }}", "low", "True"),
        ("{{ enable_thinking }} {{ reasoning_effort }}", "low", "True low"),
        ("{{ thinking_budget }}", "none", "0"),
        ("{{ thinking_budget }}", "low", "1024"),
        ("{{ thinking_budget | default('free') }}", "max", "free"),
    ],
)
def test_reasoning_effort_is_what_the_template_knows_of_it(
    make_api: Callable[..., Api], template: str, effort: str, shown: str
) -> None:
    api = make_api(chat_template=template)
    reply = ask(api, reasoning_effort=effort, return_token_ids=True)
    assert prompt_of(reply.json()) == shown
    assert "x-ignored-fields" not in reply.headers


def test_verbosity_is_a_variable_of_templates_that_know_it(make_api: Callable[..., Api]) -> None:
    api = make_api(chat_template="{{ messages[0].content }} {{ verbosity }}")
    assert prompt_of(api.chat("hi", verbosity="low", return_token_ids=True)) == "hi low"


def test_variables_that_the_client_names_win(make_api: Callable[..., Api]) -> None:
    api = make_api(chat_template="{{ reasoning_effort }} {{ verbosity }} {{ thinking_budget }}")
    given = {"reasoning_effort": "odd", "verbosity": "odd", "thinking_budget": 7}
    asked = {"reasoning_effort": "low", "verbosity": "low", "thinking_token_budget": 9}
    assert prompt_of(api.chat("hi", **asked, return_token_ids=True)) == "low low 9"
    assert prompt_of(api.chat("hi", chat_template_kwargs=given, **asked, return_token_ids=True)) == "odd odd 7"


@pytest.mark.parametrize(
    "asked", [{"reasoning_effort": "high"}, {"reasoning_effort": "none"}, {"verbosity": "low"}], ids=str
)
@pytest.mark.parametrize("template", ["{{ messages[0].content }}", "{{ messages[0].content }} 'thinking'"])
def test_a_template_that_knows_neither_effort_nor_verbosity_says_so(
    make_api: Callable[..., Api], template: str, asked: dict[str, Any]
) -> None:
    api = make_api(chat_template=template)
    reply = ask(api, **asked)
    assert (reply.status_code, reply.headers["x-ignored-fields"]) == (200, *asked)


def test_no_other_effort_is_known(api: Api) -> None:
    assert api.refused_chat(reasoning_effort="extreme").param == "reasoning_effort"


# --- the budget


@pytest.mark.parametrize(
    ("budget", "thought", "answer"),
    [(4, "hm,", " well\n</think>\n\nHello."), (0, "", "hm, well\n</think>\n\nHello."), (-1, "hm, well", "Hello.")],
)
def test_reasoning_ends_after_its_budget(api: Api, budget: int, thought: str, answer: str) -> None:
    whole = api.chat(TEXT, thinking_token_budget=budget)
    message = whole["choices"][0]["message"]
    assert (message.get("reasoning", ""), message["content"].lstrip("\n")) == (thought, answer)
    chunks = api.chat_chunks(TEXT, thinking_token_budget=budget)
    assert (joined(chunks, "reasoning"), joined(chunks, "content").lstrip("\n")) == (thought, answer)


def test_a_budget_counts_from_the_first_token_where_the_prompt_opened_the_reasoning(
    make_api: Callable[..., Api],
) -> None:
    opened = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<think>\n"
    api = make_api(chat_template=opened, reasoning_parser="deepseek_r1")
    choices = api.chat("so it is.", thinking_token_budget=2, n=2)["choices"]
    assert [(c["message"]["reasoning"], c["message"]["content"]) for c in choices] == [("so", " it is.")] * 2


def test_a_model_that_does_not_reason_has_no_use_for_a_budget(make_api: Callable[..., Api]) -> None:
    api = make_api()
    reply = ask(api, thinking_token_budget=3)
    assert (reply.status_code, reply.headers["x-ignored-fields"]) == (200, "thinking_token_budget")
    assert "x-ignored-fields" not in ask(api, thinking_token_budget=-1).headers


@pytest.mark.parametrize("budget", [-2, 1.5, "3"])
def test_a_budget_is_a_number_of_tokens(api: Api, budget: object) -> None:
    assert api.refused_chat(thinking_token_budget=budget).param == "thinking_token_budget"
