"""Chat completions in OpenAI's shapes, whole and in chunks, on an engine that says the last message back."""

from collections.abc import Callable
from typing import Any

import pytest

from engines.echo import VOCAB_SIZE, EchoEngine, EchoFaults
from engines.errors import QueueFull
from tests.server.api import Api, text_of

SMILE = "a🙂b"


def choice_of(answer: dict[str, Any]) -> dict[str, Any]:
    (choice,) = answer["choices"]
    return choice


def content_of(answer: dict[str, Any]) -> str:
    return choice_of(answer)["message"]["content"]


def test_an_answer_has_openais_shape_and_nothing_more(api: Api) -> None:
    answer = api.chat("hello")
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["id"].startswith("chatcmpl-")
    assert choice_of(answer) == {
        "index": 0,
        "message": {"role": "assistant", "content": "hello", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }


def test_usage_counts_the_prompt_and_every_generated_token(api: Api) -> None:
    usage = api.chat("hello")["usage"]
    assert usage["completion_tokens"] == len("hello") + 1  # the end-of-sequence token too
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


def test_the_first_chunk_carries_the_role_and_the_last_the_finish_reason(api: Api) -> None:
    chunks = api.chat_chunks("hi")
    deltas = [(choice_of(chunk)["delta"], choice_of(chunk)["finish_reason"]) for chunk in chunks]
    assert deltas == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "h"}, None),
        ({"content": "i"}, None),
        ({}, "stop"),
    ]
    assert all("usage" not in chunk and "logprobs" not in choice_of(chunk) for chunk in chunks)


def test_a_character_of_several_tokens_comes_in_one_chunk(api: Api) -> None:
    contents = [choice_of(chunk)["delta"].get("content") for chunk in api.chat_chunks(SMILE)]
    assert contents == ["", "a", "🙂", "b", None]


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}], ids=["", "usage"])
def test_whatever_signs_a_text_has_its_chunks_bring_it_and_are_all_alike(api: Api, options: dict[str, Any]) -> None:
    text = 'quotes ", \\ and \'; \n\t; }]}; \0text "\\u0000text"; \u2028 é 😀'
    chunks = api.chat_chunks(text, n=2, **options)
    for index in range(2):
        own = [chunk for chunk in chunks if chunk["choices"] and choice_of(chunk)["index"] == index]
        assert "".join(choice_of(chunk)["delta"].get("content", "") for chunk in own) == text
        first, *others = own[1:-1]
        for chunk in others:
            choice_of(first)["delta"]["content"] = choice_of(chunk)["delta"]["content"]
            assert chunk == first


def test_include_usage_adds_the_totals_at_the_end(api: Api) -> None:
    *chunks, last = api.chat_chunks("hi", stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == api.chat("hi")["usage"]


def test_continuous_usage_tells_in_every_chunk_what_was_used_so_far(api: Api) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = api.chat_chunks("hi", stream_options=options)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 1, 2, 3]
    assert chunks[-1]["usage"] == last["usage"]


def test_n_gives_that_many_choices(api: Api) -> None:
    answer = api.chat("hi", n=3)
    assert [(choice["index"], choice["message"]["content"]) for choice in answer["choices"]] == [
        (0, "hi"),
        (1, "hi"),
        (2, "hi"),
    ]
    assert answer["usage"]["completion_tokens"] == 9
    chunks = api.chat_chunks("hi", n=3)
    assert [text_of(chunks, index) for index in range(3)] == ["hi"] * 3


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_the_output_ends_at_its_greatest_length(api: Api, field: str) -> None:
    answer = api.chat("hello", **{field: 3})
    assert (content_of(answer), choice_of(answer)["finish_reason"]) == ("hel", "length")


def test_max_completion_tokens_wins(api: Api) -> None:
    assert content_of(api.chat("hello", max_tokens=4, max_completion_tokens=2)) == "he"


def test_without_a_limit_the_output_takes_the_rest_of_the_context(make_api: Callable[..., Api]) -> None:
    answer = make_api(engine=EchoEngine(max_model_len=64)).chat("hello", ignore_eos=True)
    assert answer["usage"]["total_tokens"] == 64


@pytest.mark.parametrize("stop", ["ll", ["xx", "ll"]])
def test_a_stop_string_ends_the_output_and_is_not_shown(api: Api, stop: list[str] | str) -> None:
    answer = api.chat("hello", stop=stop)
    assert (content_of(answer), choice_of(answer)["finish_reason"]) == ("he", "stop")
    assert choice_of(answer)["stop_reason"] == "ll"
    assert answer["usage"]["completion_tokens"] == 4
    assert text_of(api.chat_chunks("hello", stop=stop)) == "he"


def test_a_stop_string_is_shown_where_asked_for(api: Api) -> None:
    assert content_of(api.chat("hello", stop="ll", include_stop_str_in_output=True)) == "hell"


def test_an_empty_answer_is_an_empty_text(api: Api) -> None:
    assert content_of(api.chat("hello", stop="h")) == ""
    chunks = api.chat_chunks("hello", stop="h")
    assert [choice_of(chunk)["delta"] for chunk in chunks] == [{"role": "assistant", "content": ""}, {}]


# --- truncation


@pytest.mark.parametrize(("side", "kept"), [("left", slice(-15, None)), ("right", slice(15))])
def test_the_prompt_is_cut_after_the_template_has_written_it(api: Api, side: str, kept: slice) -> None:
    ids = api.chat("hello", return_token_ids=True)["prompt_token_ids"]
    answer = api.chat("hello", return_token_ids=True, truncate_prompt_tokens=15, truncation_side=side)
    assert answer["prompt_token_ids"] == ids[kept]
    assert answer["usage"]["prompt_tokens"] == 15


def test_a_conversation_longer_than_the_context_is_answered_by_its_end(make_api: Callable[..., Api]) -> None:
    api = make_api(engine=EchoEngine(max_model_len=100), max_new_tokens=30)
    for body, kept in (({}, 70), ({"max_tokens": 40}, 60), ({"max_completion_tokens": 50, "max_tokens": 1}, 50)):
        answer = api.chat("x" * 5000, truncate_prompt_tokens=-1, ignore_eos=True, **body)
        assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (kept, 100 - kept)


# --- logprobs


def entries_of(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return choice_of(answer)["logprobs"]["content"]


def test_logprobs_of_the_shown_tokens_spell_the_content(api: Api) -> None:
    answer = api.chat(SMILE, logprobs=True, top_logprobs=2)
    entries = entries_of(answer)
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == content_of(answer) == SMILE
    assert answer["usage"]["completion_tokens"] == len(entries) + 1
    assert [entry["token"] for entry in entries] == ["a", *["\N{REPLACEMENT CHARACTER}"] * 4, "b"]
    for entry in entries:
        assert len(entry["top_logprobs"]) == 2
        assert entry["top_logprobs"][0] == {key: entry[key] for key in ("token", "logprob", "bytes")}
    assert choice_of(answer)["logprobs"]["refusal"] is None


def test_without_top_logprobs_there_are_none(api: Api) -> None:
    assert all(entry["top_logprobs"] == [] for entry in entries_of(api.chat("hi", logprobs=True)))


def test_streamed_logprobs_are_those_of_the_whole_answer(api: Api) -> None:
    chunks = api.chat_chunks(SMILE, logprobs=True, top_logprobs=2)
    logprobs = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice.get("logprobs")]
    streamed = [entry for part in logprobs for entry in part["content"]]
    assert streamed == entries_of(api.chat(SMILE, logprobs=True, top_logprobs=2))


def test_tokens_are_told_as_token_ids_where_asked_for_with_their_true_bytes(api: Api) -> None:
    body: dict[str, Any] = {"logprobs": True, "top_logprobs": 2}
    plain, named = (entries_of(api.chat(SMILE, return_tokens_as_token_ids=as_ids, **body)) for as_ids in (False, True))
    assert [entry["token"] for entry in named] == [f"token_id:{byte}" for byte in SMILE.encode()]
    assert [entry["top_logprobs"][0]["token"] for entry in named] == [entry["token"] for entry in named]
    assert [entry["bytes"] for entry in named] == [entry["bytes"] for entry in plain]


def test_top_logprobs_of_minus_one_are_of_the_whole_vocabulary(make_api: Callable[..., Api]) -> None:
    answer = make_api(max_logprobs=-1).chat("hi", logprobs=True, top_logprobs=-1, prompt_logprobs=-1)
    assert [len(entry["top_logprobs"]) for entry in entries_of(answer)] == [VOCAB_SIZE] * 2
    assert len(answer["prompt_logprobs"][1]) == VOCAB_SIZE


def test_a_token_cut_by_a_stop_string_is_told_as_far_as_it_is_shown(api: Api) -> None:
    answer = api.chat(SMILE, logprobs=True, stop="🙂")
    assert [entry["bytes"] for entry in entries_of(answer)] == [[ord("a")]]


def test_the_end_token_has_its_logprob_where_it_is_shown(api: Api) -> None:
    answer = api.chat("hi", logprobs=True, skip_special_tokens=False)
    assert content_of(answer) == "hi<|im_end|>"
    assert entries_of(answer)[-1]["token"] == "<|im_end|>"


def test_prompt_logprobs_are_told_by_token_id(api: Api) -> None:
    answer = api.chat("hi", prompt_logprobs=1, return_token_ids=True)
    first, *others = answer["prompt_logprobs"]
    assert first is None
    assert len(others) == answer["usage"]["prompt_tokens"] - 1
    for token_id, entry in zip(answer["prompt_token_ids"][1:], others, strict=True):
        assert entry[str(token_id)]["logprob"] < 0
        assert set(entry[str(token_id)]) == {"logprob", "rank", "decoded_token"}


def test_token_ids_are_returned_where_asked_for(api: Api) -> None:
    answer = api.chat("hi", return_token_ids=True)
    assert choice_of(answer)["token_ids"][:-1] == list(b"hi")
    assert len(answer["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]
    chunks = api.chat_chunks("hi", return_token_ids=True)
    streamed = [token_id for chunk in chunks for token_id in choice_of(chunk).get("token_ids", [])]
    assert streamed == choice_of(answer)["token_ids"]
    assert chunks[0]["prompt_token_ids"] == answer["prompt_token_ids"]


# --- messages


def test_text_parts_and_the_developer_role_are_understood(api: Api) -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "be brief"}]},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "name": "Ann"},
    ]
    assert content_of(api.chat(messages=messages)) == "one\ntwo"


def test_an_answer_can_be_sent_back_as_it_came(api: Api) -> None:
    message = choice_of(api.chat("hi"))["message"]
    sdk_extras = {"annotations": None, "audio": None, "function_call": None, "tool_calls": None}
    messages = [{"role": "user", "content": "hi"}, message | sdk_extras, {"role": "user", "content": "go on"}]
    assert content_of(api.chat(messages=messages)) == "go on"


def test_the_final_message_is_continued(api: Api) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It is"}]
    prompt = api.chat(messages=messages, continue_final_message=True, return_token_ids=True)["prompt_token_ids"]
    assert bytes(prompt[-5:]) == b"It is"


def test_echo_begins_with_the_message_that_is_continued(api: Api) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It is"}]
    body: dict[str, Any] = {"messages": messages, "continue_final_message": True, "echo": True}
    assert content_of(api.chat(**body)) == "It ishi"
    assert text_of(api.chat_chunks(**body)) == "It ishi"


def test_the_generation_prompt_can_be_left_out(api: Api) -> None:
    prompts = [
        bytes(token for token in api.chat("hi", return_token_ids=True, **body)["prompt_token_ids"] if token < 256)
        for body in ({}, {"add_generation_prompt": False})
    ]
    assert prompts == [b"user\nhi\nassistant\n", b"user\nhi\n"]


# --- before and after the stream opens


def test_a_full_queue_is_told_with_a_status(make_api: Callable[..., Api]) -> None:
    engine = EchoEngine(max_requests=0)
    reply = make_api(engine=engine).http.post(
        "/v1/chat/completions",
        json={"model": "echo", "messages": [{"role": "user", "content": "hi"}], "stream": True},
    )
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, QueueFull.code)
    assert int(reply.headers["retry-after"]) >= 1


def test_an_engine_that_dies_later_is_told_in_the_stream(make_api: Callable[..., Api]) -> None:
    engine = EchoEngine(faults=EchoFaults(die_after=2))
    reply = make_api(engine=engine).http.post(
        "/v1/chat/completions",
        json={"model": "echo", "messages": [{"role": "user", "content": "hello"}], "stream": True},
    )
    *_, error, done, _ = reply.text.split("\n\n")
    assert reply.status_code == 200
    assert error.startswith('data: {"error":')
    assert done == "data: [DONE]"


def test_fields_of_answers_do_not_reach_the_template(make_api: Callable[..., Api]) -> None:
    api = make_api(chat_template="{{ messages[1] | tojson }}")
    call: dict[str, Any] = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    seen = {**call, "index": 0, "function": {**call["function"], "parsed_arguments": {"a": 1}}}
    extra = {"parsed": {"a": 1}, "annotations": [], "refusal": None, "audio": None}
    plain, returned = (
        api.chat(messages=[{"role": "user", "content": "x"}, {"role": "assistant", **message}])
        for message in ({"content": "hi", "tool_calls": [call]}, {"content": "hi", "tool_calls": [seen], **extra})
    )
    assert plain["choices"] == returned["choices"]
