"""The response as the client sees it, at any moment of its life: what was asked for, and what came of it so far."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.model.defaults import SamplingDefaults
from server.openai.usage import Usage
from server.responses.ids import RESPONSE
from server.responses.schema import ResponsesRequest


def joins_conversation(response: Mapping[str, Any]) -> bool:
    """Whether what was read and said becomes a part of the conversation: not where the answer failed or was broken
    off."""
    return response["status"] in ("completed", "incomplete")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead:
    """What is the same as long as the response lives."""

    id: str
    created: int
    model: str
    body: ResponsesRequest
    defaults: SamplingDefaults
    store: bool

    @property
    def token(self) -> str:
        """What of the id is no prefix."""
        return self.id.removeprefix(RESPONSE)

    def to_wire(self, status: str, output: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """`more`: fields that only some moments have a value for."""
        body, defaults = self.body, self.defaults
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": body.background,
            **({} if body.conversation_id is None else {"conversation": {"id": body.conversation_id}}),
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "model": self.model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "prompt_cache_retention": body.prompt_cache_retention,
            "reasoning": {"effort": body.reasoning.effort, "summary": body.summary},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": self.store,
            "temperature": defaults.temperature if body.temperature is None else body.temperature,
            "text": {"format": body.text.format or {"type": "text"}, "verbosity": body.text.verbosity or "medium"},
            "tool_choice": body.tool_choice or "auto",
            "tools": [_tool(tool) for tool in body.tools or []],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": defaults.top_p if body.top_p is None else body.top_p,
            "truncation": body.truncation,
            "usage": None,
            "metadata": body.metadata,
            **({} if body.user is None else {"user": body.user}),
            **more,
        }


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": None, "parameters": None, **tool, "strict": bool(tool.get("strict"))}


def usage_to_wire(usage: Usage) -> dict[str, Any]:
    """The cache of prompts costs nothing to write: none of it is counted."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
