"""Bodies as client libraries send them, with what they add by default: each is answered.

Those of tests/data are what the clients named there sent: first calls, streams, tools and structured output. Those
below follow the sources of clients, and reports of servers that refused them.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.server.api import Api
from tests.server.openai_schema import check

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
USER = {"role": "user", "content": "hello"}
ADD: dict[str, Any] = {"name": "add", "description": "Add.", "parameters": SCHEMA}
TOOL: dict[str, Any] = {"type": "function", "function": ADD}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "3"}

BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "openai-python: an answer sent back by model_dump": (
        CHAT,
        {
            "messages": [
                USER,
                {
                    "content": None,
                    "refusal": None,
                    "role": "assistant",
                    "annotations": [],
                    "audio": None,
                    "function_call": None,
                    "tool_calls": [CALL],
                },
                RESULT,
            ],
            "tools": [TOOL],
        },
    ),
    "openai-python: parse, streamed": (
        CHAT,
        {
            "messages": [USER, {"role": "assistant", "content": "Hi", "parsed": None, "tool_calls": None}, USER],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "Answer", "schema": SCHEMA, "strict": True},
            },
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    "openai-python: embeddings": (EMBEDDINGS, {"input": ["hello"], "encoding_format": "base64"}),
    "openai-node: runTools": (
        CHAT,
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "", "refusal": None, "tool_calls": [CALL | {"index": 0}]},
                {**RESULT, "name": "add"},
            ],
            "tools": [{**TOOL, "function": {**ADD, "strict": True}, "$brand": "auto"}],
            "tool_choice": "auto",
            "stream": False,
            "parallel_tool_calls": True,
        },
    ),
    "LangChain: a tool's result": (
        CHAT,
        {
            "stream": False,
            "messages": [
                {"content": "s", "role": "system"},
                USER,
                {"content": None, "role": "assistant", "tool_calls": [CALL]},
                {"content": "3", "role": "tool", "tool_call_id": "call_1"},
            ],
            "tools": [TOOL],
        },
    ),
    "LangChain: structured output": (
        CHAT,
        {
            "stream": False,
            "messages": [USER],
            "response_format": {"type": "json_schema", "json_schema": {"name": "P", "strict": False, "schema": SCHEMA}},
        },
    ),
    "LangChain: older, with functions": (
        CHAT,
        {
            "messages": [USER],
            "functions": [ADD],
            "function_call": {"name": "add"},
            "n": 1,
            "stream": False,
        },
    ),
    "LangChain: embeddings without tiktoken": (EMBEDDINGS, {"input": ["hi", "a"], "encoding_format": "base64"}),
    "openai-agents: tools": (
        CHAT,
        {
            "messages": [{"content": "i", "role": "system"}, USER],
            "tools": [{**TOOL, "function": {**ADD, "strict": True}}],
        },
    ),
    "openai-agents: store and usage of streams": (
        CHAT,
        {
            "messages": [USER],
            "parallel_tool_calls": False,
            "stream": True,
            "stream_options": {"include_usage": True},
            "store": None,
            "reasoning_effort": None,
            "verbosity": None,
            "top_logprobs": None,
            "prompt_cache_retention": None,
            "metadata": None,
        },
    ),
    "LiteLLM: history with what other providers added": (
        CHAT,
        {
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]},
                USER,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [CALL | {"index": 0, "provider_specific_fields": {"thought_signature": "x"}}],
                    "function_call": None,
                    "provider_specific_fields": {"refusal": None},
                    "thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s"}],
                    "reasoning_content": "hm",
                },
                {**RESULT, "name": "add", "cache_control": {"type": "ephemeral"}},
            ],
            "tools": [TOOL | {"cache_control": {"type": "ephemeral"}}],
            "metadata": {"trace": "a"},
            "user": "me",
        },
    ),
    "LiteLLM: embeddings": (EMBEDDINGS, {"input": ["hello"], "encoding_format": None}),
    "OpenRouter's clients: reasoning details": (
        CHAT,
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "Hi", "reasoning": "hm", "reasoning_details": [{"type": "text"}]},
                USER,
            ],
            "provider": {"order": ["x"]},
            "transforms": [],
            "usage": {"include": True},
        },
    ),
    "Vercel AI SDK: openai-compatible": (
        CHAT,
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "hello"}]},
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": '{"type":"text","value":"3"}'},
            ],
            "tools": [TOOL],
            "tool_choice": "auto",
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 16,
            "temperature": 0,
        },
    ),
    "Vercel AI SDK: openai": (
        CHAT,
        {
            "messages": [{"role": "developer", "content": "s"}, USER],
            "max_completion_tokens": 16,
            "service_tier": "flex",
            "prediction": {"type": "content", "content": "hello"},
            "prompt_cache_key": "k",
            "safety_identifier": "s",
        },
    ),
    "Open WebUI": (
        CHAT,
        {
            "stream": True,
            "messages": [USER],
            "stream_options": {"include_usage": True},
            "stop": [],
            "params": {},
            "tool_servers": [],
            "features": {"web_search": False},
            "variables": {"{{USER_NAME}}": "me"},
            "session_id": "s",
            "chat_id": "c",
            "id": "m",
            "background_tasks": {"title_generation": True},
        },
    ),
    "LlamaIndex: chat": (
        CHAT,
        {
            "messages": [{"role": "system", "content": "s"}, USER, {"role": "assistant", "content": None}, USER],
            "stream": False,
            "temperature": 0.1,
            "max_tokens": None,
            "tools": [{**TOOL, "function": {**ADD, "strict": False}}],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
        },
    ),
    "LlamaIndex: embeddings": (EMBEDDINGS, {"input": ["hello"], "dimensions": None}),
    "instructor: tools": (
        CHAT,
        {
            "messages": [USER],
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "add"}},
        },
    ),
    "instructor: a wrong answer is sent back": (
        CHAT,
        {
            "messages": [
                USER,
                {"role": "assistant", "content": "", "tool_calls": [CALL], "refusal": None},
                {"role": "tool", "tool_call_id": "call_1", "name": "add", "content": "Validation Error found"},
            ],
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "add"}},
        },
    ),
    "CodeCompanion": (
        CHAT,
        {"messages": [USER | {"id": 1947269257, "cycle": 1, "opts": {"visible": False}}], "stream": True},
    ),
    "AutoGen: names and old functions": (
        CHAT,
        {
            "messages": [
                USER | {"name": "user_proxy"},
                {
                    "role": "assistant",
                    "content": None,
                    "name": "assistant",
                    "function_call": {"name": "add", "arguments": "{}"},
                },
                {"role": "function", "name": "add", "content": "3"},
            ],
            "functions": [ADD],
            "cache_seed": 41,
        },
    ),
    "SillyTavern: samplers of other servers": (
        CHAT,
        {
            "messages": [USER],
            "stream": False,
            "stop": [f"name {number}:" for number in range(20)],
            "top_k": -1,
            "min_p": 0,
            "typical_p": 1,
            "mirostat_mode": 0,
            "dry_multiplier": 0,
            "logit_bias": {},
        },
    ),
    "lm-evaluation-harness": (
        COMPLETIONS,
        {"prompt": ["hello"], "temperature": 0, "max_tokens": 4, "logprobs": 1, "seed": 1234, "echo": True},
    ),
    "a completion with every field of the SDK as null": (
        COMPLETIONS,
        {
            "prompt": "hello",
            **dict.fromkeys(
                ("best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "n", "seed", "stop")
            ),
            "stream_options": None,
            "suffix": None,
            "user": None,
        },
    ),
}
SCHEMAS = {
    CHAT: "CreateChatCompletionResponse",
    COMPLETIONS: "CreateCompletionResponse",
    EMBEDDINGS: "CreateEmbeddingResponse",
}


RECORDED = [
    json.loads(line) for line in (Path(__file__).parents[2] / "data" / "client_bodies.jsonl").read_text().splitlines()
]


@pytest.mark.parametrize("sent", RECORDED, ids=lambda sent: f"{sent['client']}: {sent['path']}")
def test_what_was_recorded_is_answered(api: Api, sent: dict[str, Any]) -> None:
    reply = api.http.post(sent["path"], json=sent["body"])
    assert reply.status_code == 200, reply.text
    assert "event: error" not in reply.text and '{"error"' not in reply.text


@pytest.mark.parametrize("client", BODIES)
def test_it_is_answered(api: Api, client: str) -> None:
    path, body = BODIES[client]
    reply = api.http.post(path, json={"model": "echo", **body})
    assert reply.status_code == 200, reply.text
    if body.get("stream"):
        assert reply.text.endswith("data: [DONE]\n\n") and '"error"' not in reply.text
    elif body.get("encoding_format") != "base64":  # OpenAI describes vectors as lists of numbers only
        check(SCHEMAS[path], reply.json())
