"""Messages about tools in the shape that chat templates want.

OpenAI's messages hold arguments as JSON text and tie results to calls by id; templates want arguments as objects,
and some want names, ids of a certain shape or one call at a time. A template that knows no tools gets them as plain
text.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from engines.text.reasoning_formats import FIELDS, reasoning_field
from engines.text.tool_formats import READS_TOOLS_OF_MESSAGE
from engines.text.tool_prompts import PLAIN, PROMPTS, ToolPrompt
from engines.text.tool_syntax import ToolFormat
from engines.text.written_calls import parse_arguments, written_calls

Message = dict[str, Any]
NO_SYSTEM: Message = {"role": "system", "content": ""}
ADDS_ARGUMENTS = re.compile(r"""\+\s*\w[\w.\[\]'"]*\barguments['"]?\]?\s*\+""")
"""Templates that take arguments as text: those of DeepSeek."""

EXAMPLE = ("the function's name", '{"argument": "value"}')


def for_template(
    messages: list[Message], tools: list[dict[str, Any]], form: ToolFormat | None, chat_template: str
) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """Return the messages, and the tools, to render with the template. What was given is not changed.

    `messages` are OpenAI's as plain objects, with contents as the template takes them; `tools` are OpenAI's
    definitions.
    """
    if form is None or form.native:
        messages = _native(messages, form, chat_template)
        if form is None or form.shows_tools or not tools:
            return messages, tools or None
        return _told(messages, tools, form, replace(PLAIN, where=""), chat_template), None
    prompt = PROMPTS[form.prompt] if form.prompt else PLAIN
    messages = list(_as_text(messages, form, prompt.result))
    return (_told(messages, tools, form, prompt, chat_template) if tools else messages), None


def _native(messages: list[Message], form: ToolFormat | None, chat_template: str) -> list[Message]:
    names = {call["id"]: call["function"]["name"] for call in _calls(messages)}
    if form is not None and not form.shows_calls:
        messages = [
            _with_written_calls(message, form) if message.get("tool_calls") else message for message in messages
        ]
    shaped = _with_text if ADDS_ARGUMENTS.search(chat_template) else _with_objects
    messages = [_with_names(shaped(message), names) for message in messages]
    if re.search(r"length\s*!=\s*9", chat_template):
        messages = [_with_ids(message, _short_id) for message in messages]
    if form is not None and form.call_id:
        messages = _with_numbered_ids(messages, form.call_id)
    if form is not None and form.channels:
        messages = [_with_content_as_reasoning(message, chat_template) for message in messages]
    if "single tool-calls at once" in chat_template or (form is not None and form.one_call):
        messages = list(_one_call_each(messages))
    return messages


def _calls(messages: list[Message]) -> Iterator[dict[str, Any]]:
    for message in messages:
        yield from message.get("tool_calls") or ()


def _with_names(message: Message, names: dict[str, str]) -> Message:
    """A result knows the name of what was called."""
    if message["role"] == "tool" and not message.get("name") and message.get("tool_call_id") in names:
        return {**message, "name": names[message["tool_call_id"]]}
    return message


def _with_text(message: Message) -> Message:
    """Arguments as text; no content is none, for which the template looks."""
    return {**message, "content": message.get("content") or None} if message.get("tool_calls") else message


def _with_objects(message: Message) -> Message:
    """Arguments as objects; no content is an empty one."""
    if not message.get("tool_calls"):
        return message
    calls = [_with_arguments(call) for call in message["tool_calls"]]
    return {**message, "content": message.get("content") or "", "tool_calls": calls}


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """An object; text that is none stays text: it is what the model wrote."""
    function = call["function"]
    arguments = parse_arguments(function["arguments"])
    return {**call, "function": {**function, "arguments": function["arguments"] if arguments is None else arguments}}


def _with_ids(message: Message, new_id: Callable[[str], str]) -> Message:
    if message.get("tool_calls"):
        return {**message, "tool_calls": [{**call, "id": new_id(call["id"])} for call in message["tool_calls"]]}
    if message.get("tool_call_id"):
        return {**message, "tool_call_id": new_id(message["tool_call_id"])}
    return message


def _with_numbered_ids(messages: list[Message], call_id: str) -> list[Message]:
    """The ids that the model gives to its calls, which the template shows to it."""
    ids = {
        call["id"]: call_id.format(name=call["function"]["name"], index=index)
        for index, call in enumerate(_calls(messages))
    }
    return [_with_ids(message, lambda given: ids.get(given, given)) for message in messages]


def _with_content_as_reasoning(message: Message, chat_template: str) -> Message:
    """Harmony's template shows either content or reasoning before a call, both as reasoning."""
    field = reasoning_field(chat_template)
    if not (message.get("tool_calls") and message.get("content") and message.get(field)):
        return message
    return {**message, "content": "", field: f"{message[field]}\n\n{message['content']}"}


def _short_id(call_id: str) -> str:
    """Mistral's templates refuse ids that are not nine letters or digits."""
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
                message = {**_without_reasoning(message), "content": ""}  # said once
                if call["id"] in results:
                    yield results[call["id"]]
        elif message.get("tool_call_id") not in split:
            yield message


def _without_reasoning(message: Message) -> Message:
    return {key: value for key, value in message.items() if key not in FIELDS}


def _as_text(messages: list[Message], form: ToolFormat, result: str) -> Iterator[Message]:
    """Calls as the model writes them, and results as messages of the user, those that follow one another as one."""
    results: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            results.append(result.replace("{result}", message.get("content") or ""))
            continue
        if results:
            yield {"role": "user", "content": "\n".join(results)}
            results = []
        yield _with_written_calls(message, form) if message.get("tool_calls") else message
    if results:
        yield {"role": "user", "content": "\n".join(results)}


def _with_written_calls(message: Message, form: ToolFormat) -> Message:
    functions = [call["function"] for call in message["tool_calls"]]
    calls = written_calls(form, ((function["name"], function["arguments"]) for function in functions))
    content = [message["content"]] if message.get("content") else []
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": form.behind_content.join([*content, calls])}


def _told(
    messages: list[Message], tools: list[dict[str, Any]], form: ToolFormat, prompt: ToolPrompt, chat_template: str
) -> list[Message]:
    """Tell the model of the tools: in the system message, or in the first message where there can be none."""
    functions = [tool["function"] for tool in tools]
    first = messages[0] if messages else None
    if form.prompt is None and READS_TOOLS_OF_MESSAGE.search(chat_template):
        system, rest = (first, messages[1:]) if first and first["role"] == "system" else (NO_SYSTEM, messages)
        return [{**system, "tools": json.dumps(functions, ensure_ascii=False)}, *rest]
    lines = (prompt.tool.format(name=each["name"], tool=json.dumps(each, ensure_ascii=False)) for each in functions)
    text = prompt.instructions.format(
        tools="\n".join(lines),
        names=", ".join(function["name"] for function in functions),
        example=written_calls(form, [EXAMPLE]),
        where=prompt.where,
    )
    if first is not None and (first["role"] == "system" or _refuses_system(chat_template)):
        parts = [first["content"], text] if first["role"] == "system" else [text, first["content"]]
        return [{**first, "content": "\n\n".join(filter(None, parts))}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _refuses_system(chat_template: str) -> bool:
    return "system role not supported" in chat_template.lower()
