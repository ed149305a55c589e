"""Reasoning in messages and answers, under both of its names, and what asks for more or less of it."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.server.api import Api

TEXT = "<think>\nhm, well\n</think>\n\nHello."
USER = {"role": "user", "content": "hi"}


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
    api = make_api(chat_template="{%% for m in messages %%}{{ m.%s }}|{{ m.content }}{%% endfor %%}" % field)  # noqa: UP031
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


def test_a_model_that_does_not_reason_leaves_nothing_out(make_api: Callable[..., Api]) -> None:
    (choice,) = make_api().chat(TEXT, include_reasoning=False, logprobs=True)["choices"]
    assert choice["message"]["content"] == TEXT
    assert len(choice["logprobs"]["content"]) == len(TEXT)
