"""Completions in OpenAI's shapes, whole and in chunks, on an engine that says the prompt back."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from engines.echo import IM_END, IM_START, VOCAB_SIZE, EchoEngine
from server.openai import sizes
from server.openai.sizes import MAX_OUTPUT_LOGPROBS
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


def test_continuous_usage_is_that_of_each_choice_so_far(api: Api) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = api.completion_chunks(["ab", "cde"], n=2, max_tokens=2, stream_options=options)
    told = [(chunk["choices"][0]["index"], *chunk["usage"].values()) for chunk in chunks]
    for index, prompt in enumerate((2, 2, 3, 3)):
        own = [(usage[1], usage[2], usage[3]) for usage in told if usage[0] == index]
        assert own == [(prompt, made, prompt + made) for made in (1, 2)]
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (5, 8)


def test_continuous_usage_without_the_totals_has_no_last_chunk_of_them(api: Api) -> None:
    chunks = api.completion_chunks("ab", stream_options={"continuous_usage_stats": True})
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3]
    assert all(chunk["choices"] for chunk in chunks)


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


def test_the_prompts_own_token_has_its_rank_also_where_it_stands_alone(api: Api) -> None:
    (choice,) = api.complete("hi", prompt_logprobs=0)["choices"]
    assert choice["prompt_logprobs"] == [
        None,
        {str(ord("i")): {"logprob": math.log(0.5), "rank": 1, "decoded_token": "i"}},
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_every_choice_has_the_logprobs_of_the_prompt_that_it_echoes(api: Api, stream: bool) -> None:
    body: dict[str, Any] = {"logprobs": 1, "echo": True, "max_tokens": 1, "n": 2}
    answers = api.completion_chunks(["hi", "abc"], **body) if stream else [api.complete(["hi", "abc"], **body)]
    choices = sorted((choice for answer in answers for choice in answer["choices"]), key=lambda each: each["index"])
    tokens = ["".join(choice["logprobs"]["tokens"]) for choice in choices]
    assert tokens == [choice["text"] for choice in choices] == ["hih", "hih", "abca", "abca"]


def test_an_echoed_prompt_of_token_ids_keeps_its_special_tokens(api: Api) -> None:
    ids = [IM_START, *b"hi", IM_END]
    (choice,) = api.complete(ids, echo=True, logprobs=0, max_tokens=1)["choices"]
    assert choice["text"].startswith("<|im_start|>hi<|im_end|>")
    assert choice["logprobs"]["tokens"][:4] == ["<|im_start|>", "h", "i", "<|im_end|>"]
    assert choice["logprobs"]["text_offset"][:5] == [0, 12, 13, 14, 24]


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_told_as_token_ids_where_asked_for(api: Api, stream: bool) -> None:
    body: dict[str, Any] = {"logprobs": 1, "echo": True, "max_tokens": 1, "return_tokens_as_token_ids": True}
    (choice,) = (api.completion_chunks("hi", **body)[0] if stream else api.complete("hi", **body))["choices"]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == [f"token_id:{ord(token)}" for token in "hih"]
    assert [top and list(top) for top in logprobs["top_logprobs"]] == [None, ["token_id:105"], ["token_id:104"]]
    assert logprobs["text_offset"] == [0, 1, 2]


# --- truncation


@pytest.mark.parametrize("prompt", ["abcdef", list(b"abcdef")])
@pytest.mark.parametrize(("side", "left"), [({}, b"def"), ({"truncation_side": "right"}, b"abc")])
def test_a_long_prompt_is_cut_to_so_many_tokens(api: Api, prompt: Any, side: dict[str, str], left: bytes) -> None:
    body: dict[str, Any] = {"truncate_prompt_tokens": 3, **side}
    answer = api.complete(prompt, return_token_ids=True, echo=True, logprobs=0, **body)
    (choice,) = answer["choices"]
    assert choice["prompt_token_ids"] == list(left)
    assert choice["text"] == 2 * left.decode()
    assert "".join(choice["logprobs"]["tokens"][:3]) == left.decode()
    assert answer["usage"]["prompt_tokens"] == 3


def test_a_short_prompt_is_left_whole(api: Api) -> None:
    assert texts(api.complete("ab", truncate_prompt_tokens=3)) == ["ab"]


def test_as_many_tokens_are_kept_as_fit_the_context_beside_the_output(make_api: Callable[..., Api]) -> None:
    api = make_api(engine=EchoEngine(max_model_len=100))
    prompt = "".join(chr(33 + number % 90) for number in range(5000))
    for body, kept in (({}, 84), ({"max_tokens": 30}, 70), ({"max_tokens": 0, "echo": True}, 99)):
        answer = api.complete(prompt, truncate_prompt_tokens=-1, return_token_ids=True, **body)
        assert answer["choices"][0]["prompt_token_ids"] == list(prompt[-kept:].encode())
    refusal = api.refused_completion(prompt=prompt, truncate_prompt_tokens=-1, max_tokens=100)
    assert (refusal.param, refusal.code) == ("prompt", "context_length_exceeded")


@pytest.mark.parametrize("tokens", [-2, 0, 4097, "3"])
def test_a_length_that_no_prompt_can_have_is_refused(api: Api, tokens: Any) -> None:
    refusal = api.refused_completion(truncate_prompt_tokens=tokens)
    assert (refusal.status, refusal.param) == (400, "truncate_prompt_tokens")


def test_a_side_without_a_length_has_no_effect_and_is_named(api: Api) -> None:
    reply = api.post("/v1/completions", model="echo", prompt="ab", truncation_side="right")
    assert (reply.json()["choices"][0]["text"], reply.headers["x-ignored-fields"]) == ("ab", "truncation_side")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_without_logprobs_there_are_no_tokens_to_tell_as_token_ids(api: Api, path: str) -> None:
    asked: dict[str, Any] = {"/v1/completions": {"prompt": "a"}}
    messages = {"messages": [{"role": "user", "content": "a"}]}
    reply = api.post(path, model="echo", return_tokens_as_token_ids=True, **asked.get(path, messages))
    assert (reply.status_code, reply.headers["x-ignored-fields"]) == (200, "return_tokens_as_token_ids")


# --- the whole vocabulary, and how much that may be


def test_minus_one_tells_the_whole_vocabulary(make_api: Callable[..., Api]) -> None:
    api = make_api(max_logprobs=-1)
    body: dict[str, Any] = {"logprobs": -1, "prompt_logprobs": -1, "echo": True, "max_tokens": 1}
    (choice,) = api.complete("hi", return_tokens_as_token_ids=True, **body)["choices"]
    assert [top and len(top) for top in choice["logprobs"]["top_logprobs"]] == [None, VOCAB_SIZE, VOCAB_SIZE]
    assert len(choice["prompt_logprobs"][1]) == VOCAB_SIZE
    assert api.refused_completion(logprobs=VOCAB_SIZE + 1).param == "logprobs"


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
def test_the_whole_vocabulary_is_refused_beyond_max_logprobs(api: Api, field: str) -> None:
    refusal = api.refused_completion(**{field: -1})
    assert (refusal.status, refusal.param) == (400, field)
    assert f"at most 20, not -1, which asks for all {VOCAB_SIZE}" in refusal.message


def test_more_logprobs_than_an_answer_may_have_are_refused_with_the_numbers(make_api: Callable[..., Api]) -> None:
    api = make_api(max_logprobs=-1)
    refusal = api.refused_completion(prompt=["ab"] * 2, logprobs=-1, n=100, max_tokens=30)
    assert (refusal.status, refusal.param) == (400, "logprobs")
    assert f"{2 * 100 * 30 * (VOCAB_SIZE + 1)}, and an answer has at most {MAX_OUTPUT_LOGPROBS}" in refusal.message


def test_a_stream_is_sent_as_it_grows_and_may_have_more_in_all(make_api: Callable[..., Api]) -> None:
    api = make_api(max_logprobs=-1)
    body: dict[str, Any] = {"logprobs": -1, "n": 128, "max_tokens": 40}
    assert api.refused_completion(prompt="ab", **body).param == "logprobs"
    assert len(streamed(api.completion_chunks("ab", **body))) == 128


def test_an_output_of_no_given_length_ends_where_its_logprobs_are_as_many_as_an_answer_has(
    make_api: Callable[..., Api], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "MAX_OUTPUT_LOGPROBS", 1 << 16)
    api = make_api(max_logprobs=-1, max_new_tokens=4000)
    most = sizes.MAX_OUTPUT_LOGPROBS // (3 * (VOCAB_SIZE + 1))
    answer = api.complete("ab", logprobs=-1, n=3, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 3 * most
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}


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
