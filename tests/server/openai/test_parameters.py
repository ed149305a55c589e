"""Every parameter of a request reaches the engine or the text, or is refused by its name: none is ignored."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from engines.capabilities import Capabilities
from engines.echo import IM_START, VOCAB_SIZE, EchoEngine
from engines.types import GenerationRequest, Sampling, StructuredKind, TokenOutput
from server.openai.schema import ChatRequest, CompletionRequest
from server.openai.support import UNSUPPORTED, WITHOUT_EFFECT
from tests.server.api import Api

PATHS = ("/v1/chat/completions", "/v1/completions")
ASSISTANT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It"}]


class RecordingEngine(EchoEngine):
    """Remembers what it was asked. `changes` are to its capabilities."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.requests: list[GenerationRequest] = []
        self.changes = changes

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), **self.changes)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        self.requests.append(request)
        async for output in super().generate(replace(request, sampling=replace(request.sampling, num_beams=1))):
            yield output


@pytest.fixture
def engine() -> RecordingEngine:
    return RecordingEngine(unsupported=frozenset(), max_beams=8)


@pytest.fixture
def recording(make_api: Callable[..., Api], engine: RecordingEngine) -> Api:
    return make_api(engine=engine)


# --- what reaches the engine

SAMPLING: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": None, "repetition_penalty": 1.0}),
    ({"max_tokens": 7}, {"max_new_tokens": 7}),
    ({"temperature": 0.3}, {"temperature": 0.3}),
    ({"temperature": 0}, {"temperature": 0}),
    ({"temperature": None}, {"temperature": 1.0}),
    ({"top_p": 0.5}, {"top_p": 0.5, "top_k": 0}),
    ({"top_p": 0}, {"top_p": 1.0, "top_k": 1}),
    ({"top_k": 5}, {"top_k": 5}),
    ({"top_k": -1}, {"top_k": 0}),
    ({"min_p": 0.1}, {"min_p": 0.1}),
    ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
    ({"frequency_penalty": -0.5}, {"frequency_penalty": -0.5}),
    ({"presence_penalty": 1.5}, {"presence_penalty": 1.5}),
    ({"logit_bias": {"65": -100, "66": 2.5}}, {"logit_bias": {65: -100, 66: 2.5}}),
    ({"seed": 42}, {"seed": 42}),
    ({"seed": -(2**63)}, {"seed": -(2**63)}),
    ({"min_tokens": 2}, {"min_new_tokens": 2}),
    ({"ignore_eos": True, "max_tokens": 9}, {"ignore_eos": True}),
    ({"stop_token_ids": [104, 105]}, {"stop_token_ids": (104, 105)}),
    ({"allowed_token_ids": [104, 258]}, {"allowed_token_ids": (104, 258)}),
    ({"bad_words": ["ab"]}, {"bad_words_ids": ((97, 98), (32, 97, 98))}),
    ({"prompt_logprobs": 3}, {"prompt_logprobs": 3}),
    ({"num_beams": 4}, {"num_beams": 4, "temperature": 0}),
    ({"use_beam_search": True, "n": 3}, {"num_beams": 3}),
    ({"use_beam_search": True}, {"num_beams": 1, "temperature": 0}),
    ({"num_beams": 2, "length_penalty": 0.5}, {"length_penalty": 0.5}),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("body", "expected"), SAMPLING, ids=[", ".join(body) or "nothing" for body, _ in SAMPLING])
def test_sampling_parameters_reach_the_engine(
    recording: Api, engine: RecordingEngine, path: str, body: dict[str, Any], expected: dict[str, Any]
) -> None:
    reply = recording.http.post(path, json={"model": "echo", **MINIMAL[path], **body})
    assert reply.status_code == 200, reply.text
    (request,) = engine.requests
    assert {name: getattr(request.sampling, name) for name in expected} == expected


MINIMAL: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
}


def test_n_and_priority_reach_the_engine(recording: Api, engine: RecordingEngine) -> None:
    recording.chat(n=3, priority=-2)
    recording.complete(n=2, priority=5)
    assert [(request.n, request.priority) for request in engine.requests] == [(3, -2), (2, 5)]


def test_logprobs_reach_the_engine(recording: Api, engine: RecordingEngine) -> None:
    recording.chat(logprobs=True)
    recording.chat(logprobs=True, top_logprobs=4)
    recording.chat(logprobs=False)
    recording.complete(logprobs=0)
    recording.complete(logprobs=5)
    recording.complete()
    assert [request.sampling.logprobs for request in engine.requests] == [0, 4, None, 0, 5, None]


def test_best_of_asks_for_that_many_outputs_and_their_scores(recording: Api, engine: RecordingEngine) -> None:
    recording.complete(best_of=4, n=2)
    (request,) = engine.requests
    assert (request.n, request.sampling.logprobs) == (4, 0)


def test_every_request_has_an_id_of_its_own(recording: Api, engine: RecordingEngine) -> None:
    for _ in range(2):
        recording.complete(["a", "b"])
    assert len({request.request_id for request in engine.requests}) == 4


# --- whose default counts

GENERATION_CONFIG = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1}


def sampling_of(api: Api, engine: RecordingEngine, **body: Any) -> Sampling:
    api.chat(**body)
    return engine.requests[-1].sampling


def test_the_models_generation_config_comes_before_openais_defaults(
    make_api: Callable[..., Api], engine: RecordingEngine
) -> None:
    api = make_api(engine=engine, generation_config={**GENERATION_CONFIG, "eos_token_id": 2, "top_h": None})
    sampling = sampling_of(api, engine)
    assert {name: getattr(sampling, name) for name in GENERATION_CONFIG} == GENERATION_CONFIG


def test_the_servers_parameters_come_before_the_models(make_api: Callable[..., Api], engine: RecordingEngine) -> None:
    params = {"temperature": 0.0, "top_p": 0.5, "top_k": 0, "repetition_penalty": 1.5, "max_new_tokens": 3}
    sampling = sampling_of(make_api(engine=engine, generation_config=GENERATION_CONFIG, **params), engine)
    assert {name: getattr(sampling, name) for name in params} == params
    assert sampling.min_p == 0.1


def test_the_request_comes_before_all(make_api: Callable[..., Api], engine: RecordingEngine) -> None:
    api = make_api(engine=engine, generation_config=GENERATION_CONFIG, temperature=0.0, max_new_tokens=3)
    asked = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0, "repetition_penalty": 1.0}
    sampling = sampling_of(api, engine, **asked, max_tokens=5)
    assert {name: getattr(sampling, name) for name in asked} == asked
    assert sampling.max_new_tokens == 5


def test_the_servers_limit_holds_for_completions_too(make_api: Callable[..., Api], engine: RecordingEngine) -> None:
    api = make_api(engine=engine, max_new_tokens=3)
    assert api.complete("hello")["choices"][0]["text"] == "hel"


def test_the_servers_stop_words_are_added_to_the_requests(make_api: Callable[..., Api]) -> None:
    api = make_api(stop_words=("l",))
    assert api.chat("hello")["choices"][0]["message"]["content"] == "he"
    assert api.chat("hello", stop="e")["choices"][0]["message"]["content"] == "h"


def test_the_servers_beams_are_searched_unless_the_request_says_otherwise(
    make_api: Callable[..., Api], engine: RecordingEngine
) -> None:
    api = make_api(engine=engine, num_beams=3)
    assert sampling_of(api, engine).num_beams == 3
    assert sampling_of(api, engine, num_beams=1).num_beams == 1
    assert sampling_of(api, engine, use_beam_search=False).num_beams == 1


# --- what changes the text


def test_special_tokens_are_shown_where_asked_for(api: Api) -> None:
    assert api.chat("hi", skip_special_tokens=False)["choices"][0]["message"]["content"] == "hi<|im_end|>"
    assert api.complete("hi", skip_special_tokens=False)["choices"][0]["text"] == "hi<|im_end|>"


def test_stop_strings_wait_for_min_tokens(api: Api) -> None:
    assert api.chat("aXbXc", stop="X", min_tokens=2)["choices"][0]["message"]["content"] == "aXb"


def test_a_stop_token_is_told_as_the_reason(api: Api) -> None:
    (choice,) = api.chat("hello", stop_token_ids=[ord("l")])["choices"]
    assert (choice["message"]["content"], choice["stop_reason"]) == ("he", ord("l"))


@pytest.mark.parametrize(
    "body",
    [
        {"user": "u"},
        {"metadata": {"a": "b"}},
        {"store": False},
        {"store": True},
        {"service_tier": "auto"},
        {"service_tier": "default"},
        {"top_logprobs": 0},
        {"parallel_tool_calls": True},
        {"tools": []},
        {"functions": []},
        {"stop": []},
        {"stop": ""},
        {"stop": ["", ""]},
        {"safety_identifier": "s"},
        {"prompt_cache_key": "k"},
        {"prompt_cache_retention": "in_memory"},
        {"modalities": ["text"]},
        {"verbosity": "medium"},
        {"parallel_tool_calls": None},
        {"stream_options": None},
        {"tools": None, "tool_choice": None, "response_format": None},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
        {"reasoning_effort": "none"},
        {"logit_bias": {}},
        {"bad_words": []},
        {"stop_token_ids": []},
    ],
    ids=lambda body: ", ".join(body),
)
def test_what_asks_for_nothing_is_accepted(api: Api, body: dict[str, Any]) -> None:
    assert api.chat("hello", **body)["choices"][0]["message"]["content"] == "hello"


def test_chat_template_kwargs_are_variables_of_the_template(make_api: Callable[..., Api]) -> None:
    api = make_api(chat_template="{{ messages[0].content }} {{ style }}")
    answer = api.chat("hi", chat_template_kwargs={"style": "bold"}, return_token_ids=True)
    assert bytes(answer["prompt_token_ids"]) == b"hi bold"


def test_the_special_token_that_the_template_writes_behind_answers_ends_them(make_api: Callable[..., Api]) -> None:
    template = "{% for m in messages %}{{ m.content }}{{ '<|im_start|>' if m.role == 'assistant' }}{% endfor %}"
    engine = RecordingEngine()
    api = make_api(engine=engine, chat_template=template)
    for fields in ({}, {"stop_token_ids": [5, IM_START]}, {"ignore_eos": True, "max_tokens": 1}):
        api.chat("hi", **fields)
    make_api(engine=(plain := RecordingEngine())).chat("hi")
    assert [request.sampling.stop_token_ids for request in engine.requests] == [(IM_START,), (5, IM_START), ()]
    assert plain.requests[0].sampling.stop_token_ids == (), "the engine knows the model's own"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("service_tier", "flex"),
        ("service_tier", "priority"),
        ("prediction", {"type": "content", "content": "hello"}),
        ("prediction", {"type": "content", "content": [{"type": "text", "text": "hello"}]}),
        ("prompt_cache_options", {}),
        ("prompt_cache_retention", "24h"),
    ],
)
def test_what_changes_no_answer_is_accepted_and_told(api: Api, field: str, value: Any, stream: bool) -> None:
    messages = [{"role": "user", "content": "hello"}]
    body = {"model": "echo", "messages": messages, "stream": stream, field: value}
    reply = api.http.post("/v1/chat/completions", json=body)
    assert (reply.status_code, reply.headers["x-ignored-fields"]) == (200, field)


@pytest.mark.parametrize("path", PATHS)
def test_obfuscation_is_told_to_be_none(api: Api, path: str) -> None:
    options = {"stream": True, "stream_options": {"include_obfuscation": True}}
    reply = api.http.post(path, json={"model": "echo", **MINIMAL[path], **options})
    assert (reply.status_code, reply.headers["x-ignored-fields"]) == (200, "stream_options.include_obfuscation")


@pytest.mark.parametrize("tier", ["auto", "default", "flex"])
def test_the_answer_tells_the_tier_where_the_request_names_one(api: Api, tier: str) -> None:
    assert api.chat("hi", service_tier=tier)["service_tier"] == "default"
    assert {chunk["service_tier"] for chunk in api.chat_chunks("hi", service_tier=tier)} == {"default"}
    assert "service_tier" not in api.chat("hi")


def test_many_stop_strings(api: Api) -> None:
    stops = ["", *(f"never {number}" for number in range(62)), "lo"]
    assert api.chat("hello", stop=stops)["choices"][0]["message"]["content"] == "hel"
    assert api.complete("hello", stop=stops, echo=False)["choices"][0]["text"] == "hel"


def test_templates_for_retrieval_get_the_documents(make_api: Callable[..., Api]) -> None:
    api = make_api(chat_template="{{ messages[0].content }}{% for each in documents %} {{ each.text }}{% endfor %}")
    answer = api.chat("hi", documents=[{"text": "one"}, {"text": "two"}], return_token_ids=True)
    assert bytes(answer["prompt_token_ids"]) == b"hi one two"


# --- what is refused

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": True}, "n"),
    ({"n": 1.5}, "n"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.1}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"frequency_penalty": 2.1}, "frequency_penalty"),
    ({"presence_penalty": -2.1}, "presence_penalty"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({"seed": 2**63}, "seed"),
    ({"stop": ["a"] * 65}, "stop"),
    ({"stop": ["a" * 1000] * 9}, "stop"),
    ({"stop": 5}, "stop"),
    ({"logit_bias": {"65": 101}}, "logit_bias.65"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {str(VOCAB_SIZE): 1}}, "logit_bias"),
    ({"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"bad_words": [""]}, "bad_words[0]"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": "yes"}, "stream"),
    ({"length_penalty": 2.0}, "length_penalty"),
    ({"num_beams": 2, "n": 3}, "n"),
    ({"num_beams": 2, "use_beam_search": False}, "use_beam_search"),
    ({"num_beams": 2, "temperature": 0.7}, "temperature"),
    ({"num_beams": 2, "seed": 1}, "seed"),
    ({"num_beams": 9}, "num_beams"),
    ({"model": "other"}, "model"),
    ({"model": 5}, "model"),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("body", "param"), REFUSED, ids=[", ".join(map(str, body.items())) for body, _ in REFUSED])
def test_values_that_cannot_be_meant_are_refused_by_name(
    recording: Api, path: str, body: dict[str, Any], param: str
) -> None:
    refusal = recording.refusal(path, **body)
    assert (refusal.status, refusal.param) == (404 if refusal.code == "model_not_found" else 400, param)


REFUSED_CHAT: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "invalid_request"),
    ({"messages": [{"role": "", "content": "x"}]}, "messages[0].role", "invalid_request"),
    ({"messages": [{"role": "function", "content": "x"}]}, "messages[0]", "invalid_request"),
    ({"messages": [{"role": "user"}]}, "messages[0]", "invalid_request"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "invalid_request"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x"}}]}]},
        "messages[0].content[0]",
        "unsupported_parameter",
    ),
    ({"max_tokens": 0}, "max_tokens", "invalid_request"),
    ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_request"),
    ({"max_completion_tokens": 10**6}, "messages", "context_length_exceeded"),
    ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages", "context_length_exceeded"),
    ({"top_logprobs": 3}, "top_logprobs", "invalid_request"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_request"),
    ({"logprobs": 5}, "logprobs", "invalid_request"),
    ({"echo": True}, "echo", "invalid_request"),
    ({"continue_final_message": True}, "continue_final_message", "invalid_request"),
    (
        {"messages": ASSISTANT, "continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        "invalid_request",
    ),
    ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs", "invalid_request"),
    ({"chat_template": "x"}, "chat_template", "unsupported_parameter"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    ({"audio": {"voice": "a", "format": "wav"}}, "audio", "unsupported_parameter"),
    ({"prediction": {"type": "content"}}, "prediction.content", "missing_required_parameter"),
    ({"prediction": {"type": "poem", "content": "x"}}, "prediction.type", "invalid_request"),
    ({"documents": [{"text": "x"}]}, "documents", "unsupported_parameter"),
    ({"guided_json": {}}, "guided_json", "unsupported_parameter"),
    ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
    ({"moderation": {}}, "moderation", "unsupported_parameter"),
    ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "invalid_request"),
]


@pytest.mark.parametrize(
    ("body", "param", "code"), REFUSED_CHAT, ids=[f"{param}: {code}" for _, param, code in REFUSED_CHAT]
)
def test_chats_that_are_not_supported_are_refused_by_name(
    api: Api, body: dict[str, Any], param: str, code: str
) -> None:
    refusal = api.refused_chat(**body)
    assert (refusal.status, refusal.param, refusal.code) == (400, param, code)


REFUSED_COMPLETION: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": []}, "prompt", "invalid_request"),
    ({"prompt": ""}, "prompt", "invalid_request"),
    ({"prompt": ["a", ""]}, "prompt", "invalid_request"),
    ({"prompt": [1, True]}, "prompt", "invalid_request"),
    ({"prompt": [True]}, "prompt", "invalid_request"),
    ({"prompt": [[1], [2], []]}, "prompt", "invalid_request"),
    ({"prompt": [1] * 5000 + ["a"]}, "prompt", "invalid_request"),
    ({"prompt": ["a"] * 5000}, "prompt", "invalid_request"),
    ({"prompt": [[1], "a"]}, "prompt", "invalid_request"),
    ({"prompt": [VOCAB_SIZE]}, "prompt", "invalid_request"),
    ({"prompt": "x" * 5000}, "prompt", "context_length_exceeded"),
    ({"max_tokens": 5000}, "prompt", "context_length_exceeded"),
    ({"logprobs": True}, "logprobs", "invalid_request"),
    ({"logprobs": 21}, "logprobs", "invalid_request"),
    ({"best_of": 21}, "best_of", "invalid_request"),
    ({"best_of": 2, "n": 3}, "best_of", "invalid_request"),
    ({"best_of": 2, "stream": True}, "best_of", "invalid_request"),
    ({"suffix": "x"}, "suffix", "unsupported_parameter"),
]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    REFUSED_COMPLETION,
    ids=[", ".join(map(str, body.items()))[:60] for body, _, _ in REFUSED_COMPLETION],
)
def test_completions_that_are_not_supported_are_refused_by_name(
    api: Api, body: dict[str, Any], param: str, code: str
) -> None:
    refusal = api.refused_completion(**body)
    assert (refusal.status, refusal.param, refusal.code) == (400, param, code)


@pytest.mark.parametrize(("prompt", "odd"), [([1] * 5000 + ["a"], 5000), (["a", "b", 3], 2), ([None], 0)])
def test_the_odd_item_of_a_list_of_prompts_is_named(api: Api, prompt: list[Any], odd: int) -> None:
    assert f"item {odd} " in api.refused_completion(prompt=prompt).message


def test_what_is_called_unsupported_is_a_field_of_a_request() -> None:
    assert UNSUPPORTED.keys() <= ChatRequest.model_fields.keys() | CompletionRequest.model_fields.keys()


def test_the_documentation_says_what_becomes_of_them() -> None:
    documented = (Path(__file__).parents[3] / "docs" / "openai-compatibility.md").read_text()
    told = {name for name in UNSUPPORTED.keys() | WITHOUT_EFFECT.keys() if f"`{name}`" in documented}
    assert told == (UNSUPPORTED.keys() | WITHOUT_EFFECT.keys()) - {"store"}


# --- what an engine cannot do

ENGINE_CANNOT: list[tuple[str, dict[str, Any], str]] = [
    ("top_k", {"top_k": 5}, "top_k"),
    ("seed", {"seed": 1}, "seed"),
    ("bad_words_ids", {"bad_words": ["a"]}, "bad_words"),
    ("min_new_tokens", {"min_tokens": 1}, "min_tokens"),
    ("n", {"n": 2}, "n"),
    ("priority", {"priority": 1}, "priority"),
    ("cache_salt", {"cache_salt": "s"}, "cache_salt"),
    ("logit_bias", {"logit_bias": {"1": 1}}, "logit_bias"),
    ("prompt_logprobs", {"prompt_logprobs": 1}, "prompt_logprobs"),
    ("num_beams", {"num_beams": 2}, "num_beams"),
    ("structured", {"response_format": {"type": "json_object"}}, "response_format"),
    ("structured", {"structured_outputs": {"regex": "a"}}, "structured_outputs"),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("name", "body", "param"), ENGINE_CANNOT, ids=[param for _, _, param in ENGINE_CANNOT])
def test_what_the_engine_does_not_support_is_refused_by_its_wire_name(
    make_api: Callable[..., Api], path: str, name: str, body: dict[str, Any], param: str
) -> None:
    api = make_api(engine=RecordingEngine(unsupported=frozenset({name}), max_beams=8))
    refusal = api.refusal(path, **body)
    assert (refusal.status, refusal.param, refusal.code) == (400, param, "unsupported_parameter")
    assert api.refusal(path, model="other").code == "model_not_found"


TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "look_up"}}
JSON_OBJECT = {"type": "json_object"}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
CONSTRAINED: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": JSON_OBJECT}, "response_format", "json_object"),
    ({"response_format": JSON_SCHEMA}, "response_format", "json_schema"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs", "regex"),
    ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs", "choice"),
    ({"structured_outputs": {"grammar": 'start: "a"'}}, "structured_outputs", "grammar"),
    ({"tools": [TOOL], "tool_choice": "required"}, "tools", "grammar"),
    ({"tools": [TOOL], "tool_choice": NAMED, "response_format": {"type": "text"}}, "tools", "grammar"),
    ({"tools": [TOOL], "tool_choice": "none", "response_format": JSON_OBJECT}, "response_format", "json_object"),
]


@pytest.mark.parametrize(("body", "param", "kind"), CONSTRAINED)
def test_constraints_that_the_engine_lacks_are_refused_by_name_and_kind(
    make_api: Callable[..., Api], body: dict[str, Any], param: str, kind: str
) -> None:
    engine = RecordingEngine(structured=frozenset(get_args(StructuredKind)) - {kind})
    refusal = make_api(engine=engine).refused_chat(**body)
    assert (refusal.status, refusal.param, refusal.code) == (400, param, "unsupported_parameter")
    assert kind in refusal.message and not engine.requests


def test_what_of_a_schema_cannot_be_enforced_is_told(recording: Api) -> None:
    items = {"anyOf": [{"type": "string", "format": "path"}, {"not": {}}]}
    schema = {"type": "array", "uniqueItems": True, "items": items}
    given = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    messages = [{"role": "user", "content": "[]"}]
    body = {"model": "echo", "messages": messages, "response_format": given}
    told = recording.http.post("/v1/chat/completions", json=body).headers["x-ignored-fields"]
    assert told.split(",") == [
        f"response_format.json_schema.schema.{word}" for word in ("format", "not", "uniqueItems")
    ]


def test_an_engine_without_constraints_answers_what_needs_none(make_api: Callable[..., Api]) -> None:
    api = make_api(engine=RecordingEngine(structured=frozenset()))
    api.chat(response_format={"type": "text"})
    api.chat(tools=[TOOL])
    api.chat(tools=[TOOL], tool_choice="none")


def test_other_kinds_of_constraints_than_the_engine_lacks_are_supported(make_api: Callable[..., Api]) -> None:
    api = make_api(engine=RecordingEngine(structured=frozenset({"json_object"})))
    api.chat('{"a": 1}', response_format={"type": "json_object"})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": JSON_OBJECT}, "response_format"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ],
)
def test_a_beam_search_is_refused_beside_a_constraint_by_the_constraints_name(
    recording: Api, body: dict[str, Any], param: str
) -> None:
    refusal = recording.refused_chat(num_beams=2, **body)
    assert (refusal.status, refusal.param, refusal.code) == (400, param, "unsupported_parameter")
