"""Asks an app, and checks every answer and chunk against OpenAI's description on the way."""

import json
from dataclasses import dataclass
from typing import Any

from fastapi.testclient import TestClient

from tests.server.openai_schema import check


@dataclass(frozen=True)
class Refusal:
    status: int
    message: str
    param: str | None
    code: str | None


class Api:
    def __init__(self, client: TestClient) -> None:
        self.client = client

    def chat(self, content: str = "hello", **body: Any) -> dict[str, Any]:
        """Ask with one message of the user, or with `messages`."""
        body = {"model": "echo", "messages": [{"role": "user", "content": content}], **body}
        return self._ask("/v1/chat/completions", body, "CreateChatCompletionResponse")

    def chat_chunks(self, content: str = "hello", **body: Any) -> list[dict[str, Any]]:
        body = {"model": "echo", "messages": [{"role": "user", "content": content}], "stream": True, **body}
        return self._stream("/v1/chat/completions", body, "CreateChatCompletionStreamResponse")

    def complete(self, prompt: Any = "hello", **body: Any) -> dict[str, Any]:
        return self._ask("/v1/completions", {"model": "echo", "prompt": prompt, **body}, "CreateCompletionResponse")

    def completion_chunks(self, prompt: Any = "hello", **body: Any) -> list[dict[str, Any]]:
        body = {"model": "echo", "prompt": prompt, "stream": True, **body}
        return self._stream("/v1/completions", body, "CreateCompletionResponse")

    def refusal(self, path: str, **body: Any) -> Refusal:
        body = {"model": "echo", **DEFAULTS[path], **body}
        reply = self.client.post(path, json=body)
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return Refusal(reply.status_code, error["message"], error["param"], error["code"])

    def refused_chat(self, **body: Any) -> Refusal:
        return self.refusal("/v1/chat/completions", **body)

    def refused_completion(self, **body: Any) -> Refusal:
        return self.refusal("/v1/completions", **body)

    def _ask(self, path: str, body: dict[str, Any], schema: str) -> dict[str, Any]:
        reply = self.client.post(path, json=body)
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        check(schema, answer)
        return answer

    def _stream(self, path: str, body: dict[str, Any], schema: str) -> list[dict[str, Any]]:
        reply = self.client.post(path, json=body)
        assert reply.status_code == 200, reply.text
        events = reply.text.split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        for chunk in chunks:
            check(schema, without_null_usage(chunk, schema))
        assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
        return chunks


DEFAULTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
}


def without_null_usage(chunk: dict[str, Any], schema: str) -> dict[str, Any]:
    """For completions OpenAI describes the null before a stream's totals in words only."""
    if schema == "CreateCompletionResponse" and "usage" in chunk and chunk["usage"] is None:
        return {key: value for key, value in chunk.items() if key != "usage"}
    return chunk


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    """What the chunks' deltas say, joined."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
