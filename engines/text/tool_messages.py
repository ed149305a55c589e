"""Messages about tools in the shape that chat templates want.

OpenAI's messages hold arguments as JSON text and tie results to calls by id; templates want arguments as objects,
and some want names, ids of a certain shape or one call at a time. A template that knows no tools gets them as plain
text.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from engines.text.tool_formats import ToolFormat

Message = dict[str, Any]

INSTRUCTIONS = """You can call functions to help the user. The functions, each described by a line of JSON:
<tools>
{tools}
</tools>

To call a function, write its name and its arguments as JSON within tags, and nothing else:
<tool_call>
{{"name": "the function's name", "arguments": {{"argument": "value"}}}}
</tool_call>
The result of each call is then given to you within <tool_response></tool_response> tags. Call a function only where it
helps to answer; otherwise answer in plain text."""


def for_template(
    messages: list[Message], tools: list[dict[str, Any]], form: ToolFormat | None, chat_template: str
) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """Return the messages, and the tools, to render with the template. What was given is not changed.

    `messages` are OpenAI's as plain objects, with contents as the template takes them; `tools` are OpenAI's
    definitions.
    """
    if form is None or form.native:
        return _native(messages, chat_template), tools or None
    messages = list(_as_text(messages, form))
    return (_instructed(messages, tools, chat_template) if tools else messages), None


def _native(messages: list[Message], chat_template: str) -> list[Message]:
    names = {call["id"]: call["function"]["name"] for call in _calls(messages)}
    messages = [_with_objects(message, names) for message in messages]
    if re.search(r"length\s*!=\s*9", chat_template):
        messages = [_with_short_ids(message) for message in messages]
    if "single tool-calls at once" in chat_template:
        messages = list(_one_call_each(messages))
    return messages


def _calls(messages: list[Message]) -> Iterator[dict[str, Any]]:
    for message in messages:
        yield from message.get("tool_calls") or ()


def _with_objects(message: Message, names: dict[str, str]) -> Message:
    """Arguments as objects; a result knows the name of what was called; no content is an empty one."""
    if message.get("tool_calls"):
        calls = [_with_arguments(call) for call in message["tool_calls"]]
        return {**message, "content": message.get("content") or "", "tool_calls": calls}
    if message["role"] == "tool" and not message.get("name") and message.get("tool_call_id") in names:
        return {**message, "name": names[message["tool_call_id"]]}
    return message


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": _arguments(function["arguments"])}}


def _arguments(text: str) -> Any:
    """An object; text that is none stays text: it is what the model wrote."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _with_short_ids(message: Message) -> Message:
    """Mistral's templates refuse ids that are not nine letters or digits."""
    if message.get("tool_calls"):
        return {**message, "tool_calls": [{**call, "id": _short_id(call["id"])} for call in message["tool_calls"]]}
    if message.get("tool_call_id"):
        return {**message, "tool_call_id": _short_id(message["tool_call_id"])}
    return message


def _short_id(call_id: str) -> str:
    return hashlib.sha256(call_id.encode(errors="replace")).hexdigest()[:9]


def _one_call_each(messages: list[Message]) -> Iterator[Message]:
    """Each call as a message of its own, its result after it."""
    results = {message["tool_call_id"]: message for message in messages if message.get("tool_call_id")}
    split: set[str] = set()
    for message in messages:
        calls = message.get("tool_calls") or []
        if len(calls) > 1:
            for call in calls:
                split.add(call["id"])
                yield {**message, "tool_calls": [call]}
                if call["id"] in results:
                    yield results[call["id"]]
        elif message.get("tool_call_id") not in split:
            yield message


def _as_text(messages: list[Message], form: ToolFormat) -> Iterator[Message]:
    """Calls as the model writes them, and results as messages of the user, those that follow one another as one."""
    results: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            results.append(f"<tool_response>\n{message.get('content') or ''}\n</tool_response>")
            continue
        if results:
            yield {"role": "user", "content": "\n".join(results)}
            results = []
        yield _with_written_calls(message, form) if message.get("tool_calls") else message
    if results:
        yield {"role": "user", "content": "\n".join(results)}


def _with_written_calls(message: Message, form: ToolFormat) -> Message:
    calls = [form.written(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]
    content = [message["content"]] if message.get("content") else []
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": "\n".join(content + calls)}


def _instructed(messages: list[Message], tools: list[dict[str, Any]], chat_template: str) -> list[Message]:
    """Tell the model of the tools: in the system message, or in the first message where there can be none."""
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = INSTRUCTIONS.format(tools=lines)
    first = messages[0] if messages else None
    if first is not None and (first["role"] == "system" or _refuses_system(chat_template)):
        parts = [first["content"], text] if first["role"] == "system" else [text, first["content"]]
        return [{**first, "content": "\n\n".join(filter(None, parts))}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _refuses_system(chat_template: str) -> bool:
    return "system role not supported" in chat_template.lower()
