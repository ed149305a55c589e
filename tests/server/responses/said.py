"""What the tests of responses send, and what they look for."""

from typing import Any

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
"""A call as the model of EchoEngine's template writes it."""
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "name": "weather", "parameters": PARAMETERS}
THOUGHT = "<think>\nhm, well\n</think>\n\nHello."


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def call(call_id: str = "call_1", **fields: Any) -> dict[str, Any]:
    arguments = '{"city": "Oslo"}'
    return {"type": "function_call", "call_id": call_id, "name": "weather", "arguments": arguments, **fields}


def output(call_id: str = "call_1", output: Any = "7 degrees", **fields: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output, **fields}


def text_of(response: dict[str, Any]) -> str:
    """All that the messages of a response say."""
    messages = [item for item in response["output"] if item["type"] == "message"]
    return "".join(part["text"] for item in messages for part in item["content"])


def types_of(events: list[dict[str, Any]]) -> list[str]:
    """Types of events, each once where it repeats itself, without what all begin with."""
    types = [event["type"].removeprefix("response.") for event in events]
    return [kind for position, kind in enumerate(types) if position == 0 or types[position - 1] != kind]


def without_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in items]
