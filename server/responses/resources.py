"""Items of an input as they are kept and listed: each with an id and a status, its content in parts."""

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from server.responses.ids import RESPONSE
from server.responses.items import Call, CallOutput, Content, Item, Message, PlainText, Reasoning, Reference

ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])
PREFIXES = {"message": "msg_", "function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_"}


def from_resources(resources: Sequence[dict[str, Any]]) -> list[Item]:
    return ITEMS.validate_python(list(resources))


def to_resources(items: Sequence[Item], response_id: str) -> list[dict[str, Any]]:
    """Items of this response's input: those without an id get one that is made of the response's."""
    token = response_id.removeprefix(RESPONSE)
    return [_to_resource(item, f"{token}_in{position}") for position, item in enumerate(items)]


def _to_resource(item: Item, name: str) -> dict[str, Any]:
    assert not isinstance(item, Reference), "it was resolved"
    id = item.id or PREFIXES[item.type] + name
    return {"id": id, "type": item.type, "status": "completed", **_fields(item)}


def _fields(item: Message | Call | CallOutput | Reasoning) -> dict[str, Any]:
    match item:
        case Message(role="assistant"):
            return {"role": item.role, "content": _said(item.content)}
        case Message():
            return {"role": item.role, "content": _read(item.content)}
        case Call():
            return {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
        case CallOutput(output=str() as output):
            return {"call_id": item.call_id, "output": output}
        case CallOutput():
            return {"call_id": item.call_id, "output": _read(item.output)}
        case Reasoning():
            sealed = {} if item.encrypted_content is None else {"encrypted_content": item.encrypted_content}
            content, summary = _texts("reasoning_text", item.content or []), _texts("summary_text", item.summary)
            return {"summary": summary, "content": content, **sealed}


def _read(content: Content) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "input_text", "text": content}]
    texts = (part.refusal if part.type == "refusal" else part.text for part in content)
    return [{"type": "input_text", "text": text} for text in texts]


def _said(content: Content) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [_output_text(content)]
    return [
        {"type": "refusal", "refusal": part.refusal} if part.type == "refusal" else _output_text(part.text)
        for part in content
    ]


def _output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _texts(kind: str, parts: Sequence[PlainText]) -> list[dict[str, Any]]:
    return [{"type": kind, "text": part.text} for part in parts]
