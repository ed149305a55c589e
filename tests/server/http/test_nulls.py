"""Null in an optional field of any body is the same as leaving the field out."""

from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

import server.app  # noqa: F401  # every body of every route
from server.http.body import RequestBody
from tests.server.api import Api
from tests.server.client import echo_client
from tests.server.test_battery import VALID

MESSAGE = {"role": "user", "content": "hi"}
LEAST: dict[str, dict[str, Any]] = {
    "AdapterBody": {"name": "a", "path": "b"},
    "AliasBody": {"target": "a"},
    "CohereRerankBody": {"query": "a", "documents": ["b"]},
    "CompletionBody": {"part_ids": []},
    "Document": {"text": "a"},
    "RerankBody": {"query": "a", "documents": ["b"]},
    "BatchBody": {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h"},
    "Call": {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    "CallOutput": {"type": "function_call_output", "call_id": "c", "output": "hi"},
    "ChatMessage": MESSAGE,
    "ChatRequest": {"model": "m", "messages": [MESSAGE]},
    "CompletionRequest": {"model": "m", "prompt": "hi"},
    "ContentPart": {"type": "text", "text": "hi"},
    "ConversationFields": {"id": "conv_1"},
    "ConversationUpdate": {"metadata": {}},
    "CountRequest": {"model": "m", "messages": [MESSAGE]},
    "CreateFineTuningJob": {"model": "m", "training_file": "f"},
    "DetokenizeBody": {"tokens": [1]},
    "EmbeddingsBody": {"model": "m", "input": "hi"},
    "ExpiresAfter": {"anchor": "created_at", "seconds": 3600},
    "ExportBody": {"purpose": "fine-tune"},
    "FunctionCall": {"name": "f"},
    "GenerationFields": {"model": "m"},
    "ItemsBody": {"items": [MESSAGE]},
    "JobBody": {"type": "sft", "parameters": {}},
    "Line": {"custom_id": "a", "method": "POST", "url": "u", "body": {}},
    "LoadLoraBody": {"lora_name": "a", "lora_path": "b"},
    "Message": {"role": "user", "content": "hi"},
    "MessageRequest": {"model": "m", "messages": [MESSAGE], "max_tokens": 1},
    "MessageToolCall": {"id": "c", "function": {"name": "f"}},
    "MetadataBody": {"metadata": {}},
    "MethodBody": {"type": "dpo"},
    "OutputFormat": {"type": "json_schema", "schema": {}},
    "PlainText": {"text": "hi"},
    "Prediction": {"type": "content", "content": "hi"},
    "PromptFields": {"model": "m"},
    "Reasoning": {"type": "reasoning"},
    "RedactedThinkingBlock": {"type": "redacted_thinking", "data": "x"},
    "Reference": {"id": "msg_1"},
    "RefusalPart": {"type": "refusal", "refusal": "no"},
    "ResponsesRequest": {"model": "m", "input": "hi"},
    "TextBlock": {"type": "text", "text": "hi"},
    "TextPart": {"type": "output_text", "text": "hi"},
    "Thinking": {"type": "disabled"},
    "ThinkingBlock": {"type": "thinking", "thinking": "hm"},
    "ToolBody": {"name": "f", "input_schema": {}},
    "ToolChoice": {"type": "auto"},
    "ToolResultBlock": {"type": "tool_result", "tool_use_id": "t"},
    "ToolUseBlock": {"type": "tool_use", "id": "t", "name": "f", "input": {}},
    "UnloadLoraBody": {"lora_name": "a"},
    "UploadBody": {"filename": "a.jsonl", "purpose": "batch", "bytes": 1, "mime_type": "text/jsonl"},
    "UploadFields": {"purpose": "batch"},
}
"""The least that bodies with required fields must have."""
MEANT = {("ChatMessage", "content")}
"""Null there is an empty text."""


def bodies(parent: type[RequestBody] = RequestBody) -> list[type[RequestBody]]:
    """All bodies of the server, and what is nested in them."""
    children = [child for child in parent.__subclasses__() if child.__module__.startswith("server.")]
    return [each for child in children for each in (child, *bodies(child))]


OPTIONAL = sorted(
    {
        (body.__name__, name, body)
        for body in bodies()
        for name, field in body.model_fields.items()
        if not field.is_required() and (body.__name__, name) not in MEANT
    },
    key=lambda case: case[:2],
)


def outcome(body: type[RequestBody], value: dict[str, Any]) -> Any:
    try:
        return body.model_validate(value)
    except ValidationError as error:
        return [each["loc"] for each in error.errors()]


@pytest.mark.parametrize(("name", "field", "body"), OPTIONAL, ids=[f"{name}.{field}" for name, field, _ in OPTIONAL])
def test_null_is_the_same_as_no_field(name: str, field: str, body: type[RequestBody]) -> None:
    least = {key: value for key, value in LEAST.get(name, {}).items() if key != field}
    assert outcome(body, {**least, field: None}) == outcome(body, least)


def test_the_description_says_so() -> None:
    for body in set(bodies()):
        schema = body.model_json_schema()
        described = schema if "properties" in schema else schema["$defs"][body.__name__]
        for name, field in described.get("properties", {}).items():
            takes_null = Draft202012Validator({**field, "$defs": schema.get("$defs", {})}).is_valid(None)
            assert takes_null or name in described["required"], f"{body.__name__}.{name}"


@pytest.mark.parametrize("name", LEAST)
def test_the_least_of_each_body_is_enough(name: str) -> None:
    for body in bodies():
        assert body.__name__ != name or isinstance(outcome(body, LEAST[name]), RequestBody), body


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize"])
def test_a_request_full_of_nulls_is_answered(path: str) -> None:
    with echo_client() as client:
        api = Api(client)
        described = client.get("/openapi.json").json()
        schema = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        fields = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]
        reply = api.http.post(path, json={**dict.fromkeys(fields), **VALID[path], "nobody_knows": None})
    assert reply.status_code == 200, reply.text
    assert "x-ignored-fields" not in reply.headers
