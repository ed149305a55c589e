"""Completions in OpenAI's shapes, whole and in chunks, on an engine that says the prompt back."""

from collections.abc import Callable
from typing import Any

import pytest

from engines.echo import EchoEngine
from tests.server.api import Api


def texts(answer: dict[str, Any]) -> list[str]:
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(answer["choices"])))
    return [choice["text"] for choice in answer["choices"]]


def streamed(chunks: list[dict[str, Any]]) -> dict[int, str]:
    joined: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            joined[choice["index"]] = joined.get(choice["index"], "") + choice["text"]
    return joined


def test_an_answer_has_openais_shape_and_nothing_more(api: Api) -> None:
    answer = api.complete("hello")
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
    assert (answer["object"], answer["id"][:5]) == ("text_completion", "cmpl-")
    assert answer["choices"] == [{"index": 0, "text": "hello", "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"]["completion_tokens"] == 6


def test_sixteen_tokens_are_generated_unless_said_otherwise(api: Api) -> None:
    (choice,) = api.complete("x" * 40)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("x" * 16, "length")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", ["ab"]),
        (["ab", "cd"], ["ab", "cd"]),
        (list(b"ab"), ["ab"]),
        ([list(b"ab"), list(b"cd")], ["ab", "cd"]),
    ],
)
def test_every_form_of_prompt_is_understood(api: Api, prompt: Any, expected: list[str]) -> None:
    assert texts(api.complete(prompt)) == expected
    assert list(streamed(api.completion_chunks(prompt)).values()) == expected


def test_the_choices_of_a_prompt_follow_those_of_the_one_before(api: Api) -> None:
    assert texts(api.complete(["ab", "cd"], n=2)) == ["ab", "ab", "cd", "cd"]
    assert streamed(api.completion_chunks(["ab", "cd"], n=2)) == {0: "ab", 1: "ab", 2: "cd", 3: "cd"}


def test_usage_is_of_all_prompts_and_choices(api: Api) -> None:
    usage = api.complete(["ab", "cd"], n=2)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (4, 12)
    *chunks, last = api.completion_chunks(["ab", "cd"], n=2, stream_options={"include_usage": True})
    assert last["choices"] == []
    assert last["usage"] == usage
    assert all(chunk["usage"] is None for chunk in chunks)


def test_the_last_chunk_of_a_choice_has_its_finish_reason(api: Api) -> None:
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in api.completion_chunks("ab", max_tokens=2)]
    assert reasons == [None, "length"]


def test_a_stop_string_ends_the_output(api: Api) -> None:
    (choice,) = api.complete("hello", stop=["l"])["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("he", "stop", "l")


def test_echo_says_the_prompt_first(api: Api) -> None:
    assert texts(api.complete("ab", echo=True)) == ["abab"]
    assert texts(api.complete(list(b"ab"), echo=True)) == ["abab"]
    assert streamed(api.completion_chunks("ab", echo=True)) == {0: "abab"}


# --- logprobs


def test_logprobs_are_parallel_lists(api: Api) -> None:
    (choice,) = api.complete("hi", logprobs=2)["choices"]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["h", "i"]
    assert logprobs["text_offset"] == [0, 1]
    assert all(value < 0 for value in logprobs["token_logprobs"])
    for token, own, top in zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
        assert len(top) == 2
        assert top[token] == own


def test_with_no_likeliest_tokens_the_sampled_one_remains(api: Api) -> None:
    (choice,) = api.complete("hi", logprobs=0)["choices"]
    assert [list(top) for top in choice["logprobs"]["top_logprobs"]] == [["h"], ["i"]]


def test_parts_of_a_character_are_spelt_in_bytes(api: Api) -> None:
    (choice,) = api.complete("é!", logprobs=1)["choices"]
    assert choice["logprobs"]["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "!"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 1]


def test_echoed_prompts_have_logprobs_too_and_the_end_its_own(api: Api) -> None:
    (choice,) = api.complete("hi", logprobs=1, echo=True, max_tokens=3)["choices"]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["h", "i", "h", "i", "<|im_end|>"]
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4]
    assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None


def test_a_prompt_is_scored_without_an_output(api: Api) -> None:
    answer = api.complete("hi", logprobs=1, echo=True, max_tokens=0)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("hi", "length")
    assert choice["logprobs"]["tokens"] == ["h", "i"]
    assert answer["usage"]["completion_tokens"] == 0


def test_streamed_logprobs_are_those_of_the_whole_answer(api: Api) -> None:
    body: dict[str, Any] = {"logprobs": 2, "echo": True, "max_tokens": 8}
    (choice,) = api.complete("é!", **body)["choices"]
    joined: dict[str, list[Any]] = {name: [] for name in choice["logprobs"]}
    for chunk in api.completion_chunks("é!", **body):
        for name, values in chunk["choices"][0]["logprobs"].items():
            joined[name] += values
    assert joined == choice["logprobs"]


def test_prompt_logprobs_are_told_with_each_choice(api: Api) -> None:
    (choice,) = api.complete("hi", prompt_logprobs=1)["choices"]
    first, second = choice["prompt_logprobs"]
    assert first is None
    assert second[str(ord("i"))]["decoded_token"] == "i"


def test_token_ids_are_returned_where_asked_for(api: Api) -> None:
    (choice,) = api.complete("hi", return_token_ids=True, max_tokens=1)["choices"]
    assert (choice["prompt_token_ids"], choice["token_ids"]) == (list(b"hi"), [ord("h")])


# --- best_of


def test_the_likeliest_of_best_of_are_given_and_all_are_counted(api: Api) -> None:
    answer = api.complete("hi", best_of=3, n=1)
    assert texts(answer) == ["hi"]
    assert answer["usage"]["completion_tokens"] == 9
    assert answer["choices"][0]["logprobs"] is None


# --- several prompts at once


def test_one_refused_prompt_refuses_the_request(make_api: Callable[..., Api]) -> None:
    api = make_api(engine=EchoEngine(max_requests=1))
    for stream in (False, True):
        refusal = api.refused_completion(prompt=["ab", "cd"], stream=stream)
        assert refusal.status == 429
    assert texts(api.complete("ab")) == ["ab"]


def test_a_list_of_more_prompts_than_the_queue_holds_is_answered_all_the_same(make_api: Callable[..., Api]) -> None:
    prompts = [f"prompt {number}" for number in range(150)]
    answer = make_api(engine=EchoEngine(max_requests=70)).complete(prompts)
    assert [choice["text"] for choice in answer["choices"]] == prompts
