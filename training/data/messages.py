"""Messages and tools as OpenAI, ShareGPT and ms-swift write them, checked and turned into OpenAI's present form.

Every function raises BadRow; `place` is where in the row a value stands.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

from training.data.problems import BadRow, kind
from training.data.samples import Message

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "assistant": "assistant", "model": "assistant",
    "function_call": "assistant", "observation": "tool", "tool": "tool", "function_response": "tool",
}  # fmt: skip
CALLING_ROLES = ("function_call", "tool_call")
"""ShareGPT's and ms-swift's: the content is a call, or a list of calls, as JSON text."""
OTHER_ROLES = {"tool_response": "tool", "function": "tool", "tool_call": "assistant"}
"""ms-swift's, and those of OpenAI's functions, which came before tools."""
EXCHANGES = (("human", "assistant"), ("user", "assistant"), ("input", "output"))
"""Keys of a question and its answer in one object."""


def some_messages(value: Any, place: str) -> list[Message]:
    """A list of messages that is not empty. One message stands for a list of it, a text for one of the user."""
    value = [value] if isinstance(value, Mapping) else value
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise BadRow(place, f"must be text or a list of messages, not {kind(value)}")
    if not value:
        raise BadRow(place, "is empty")
    return messages_of(value, place)


def messages_of(values: Sequence[Any], place: str) -> list[Message]:
    """Turns of calls that follow one another become one message."""
    messages: list[Message] = []
    for i, value in enumerate(values):
        for message in _messages(value, f"{place}[{i}]"):
            if messages and _is_turn_of_calls(value) and _only_calls(messages[-1]):
                calls = [*messages[-1]["tool_calls"], *message["tool_calls"]]
                calls = [{**call, "id": f"call_{number}"} for number, call in enumerate(calls)]
                message = messages.pop() | {"tool_calls": calls}
            messages.append(message)
    return messages


def _is_turn_of_calls(value: Any) -> bool:
    return isinstance(value, Mapping) and (value.get("role") or value.get("from")) in CALLING_ROLES


def _only_calls(message: Message) -> bool:
    return bool(message.get("tool_calls")) and not message.get("content")


def _messages(value: Any, place: str) -> Iterator[Message]:
    if isinstance(value, Mapping) and "role" not in value:
        if "from" in value:
            yield _sharegpt(value, place)
            return
        for keys in EXCHANGES:
            if keys[0] in value and keys[1] in value:
                yield {"role": "user", "content": text_of(value[keys[0]], f"{place}.{keys[0]}")}
                yield {"role": "assistant", "content": text_of(value[keys[1]], f"{place}.{keys[1]}")}
                return
    yield _message(value, place)


def _sharegpt(turn: Mapping[str, Any], place: str) -> Message:
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        raise BadRow(
            f"{place}.from", f"must be one of system, human, gpt, function_call, observation, not {shown(speaker)}"
        )
    text = text_of(turn.get("value"), f"{place}.value")
    message: Message = {"role": SHAREGPT_ROLES[speaker], "content": text}
    if speaker in CALLING_ROLES:
        message |= {"content": "", "tool_calls": _written_calls(text, f"{place}.value")}
    return message | _weight(turn, message["role"], place)


def _message(message: Any, place: str) -> Message:
    """A message in OpenAI's form, without fields that are null."""
    if not isinstance(message, Mapping):
        raise BadRow(place, f"must be an object with 'role' and 'content', not {kind(message)}")
    kept = {name: value for name, value in message.items() if value is not None}
    role = kept.get("role")
    if role in CALLING_ROLES:
        text = text_of(kept.get("content"), f"{place}.content")
        kept |= {"content": "", "tool_calls": _written_calls(text, f"{place}.content")}
    kept["role"] = role = OTHER_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise BadRow(f"{place}.role", f"must be one of {', '.join(ROLES)}, not {shown(role)}")
    if kept.get("audio"):
        raise BadRow(f"{place}.audio", "only text can be trained")
    _with_calls(kept, role, place)
    _with_content(kept, message, place)
    weight = _weight(kept, role, place)
    kept.pop("loss", None)
    if role == "tool" and "tool_call_id" in kept and not isinstance(kept["tool_call_id"], str):
        raise BadRow(f"{place}.tool_call_id", f"must be text, not {kind(kept['tool_call_id'])}")
    return kept | weight


def _with_calls(kept: Message, role: str, place: str) -> None:
    """Check the calls. `function_call`, from before there were tools, becomes the only call."""
    function = kept.pop("function_call", None)
    if function is not None:
        if kept.get("tool_calls"):
            raise BadRow(f"{place}.function_call", "stands beside tool_calls: one of the two is enough")
        kept["tool_calls"] = [{"function": function}]
    calls = kept.get("tool_calls")
    if calls is None:
        return
    if role != "assistant":
        raise BadRow(f"{place}.tool_calls", "only messages of the assistant have them")
    if not isinstance(calls, list):
        raise BadRow(f"{place}.tool_calls", f"must be a list, not {kind(calls)}")
    kept["tool_calls"] = [_call(call, i, f"{place}.tool_calls[{i}]") for i, call in enumerate(calls)]


def _with_content(kept: Message, given: Mapping[str, Any], place: str) -> None:
    """A refusal is the content of a message that has no other."""
    refusal = kept.pop("refusal", None)
    if refusal:
        if kept.get("content"):
            raise BadRow(f"{place}.refusal", "stands beside content: one of the two is enough")
        kept["content"] = text_of(refusal, f"{place}.refusal")
    if "content" in kept:
        _check_content(kept["content"], f"{place}.content")
    elif not (kept["role"] == "assistant" and kept.get("tool_calls")):
        raise BadRow(f"{place}.content", "is missing" if "content" not in given else "must be text, not null")


def _check_content(content: Any, place: str) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise BadRow(place, f"must be text, not {kind(content)}")
    for i, part in enumerate(content):
        form = part.get("type") if isinstance(part, Mapping) else None
        if form not in ("text", "refusal"):
            raise BadRow(f"{place}[{i}].type", f"must be 'text', not {shown(form)}: only text can be trained")
        if not isinstance(part.get(form), str):
            raise BadRow(f"{place}[{i}].{form}", f"must be text, not {kind(part.get(form))}")


def _weight(message: Mapping[str, Any], role: str, place: str) -> dict[str, int]:
    """OpenAI's `weight`, or ms-swift's `loss`: whether to learn a message, whatever loss_scale says."""
    weight, loss = message.get("weight"), message.get("loss")
    if loss is not None and not isinstance(loss, bool):
        raise BadRow(f"{place}.loss", f"must be true or false, not {shown(loss)}")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise BadRow(f"{place}.weight", f"must be 0 or 1, not {shown(weight)}")
    if role != "assistant":
        for name, value in (("weight", weight is not None), ("loss", loss)):
            if value:
                raise BadRow(f"{place}.{name}", "only messages of the assistant have one")
        return {}
    if weight is not None and loss is not None and weight != loss:
        raise BadRow(f"{place}.loss", "contradicts weight")
    found = loss if weight is None else weight
    return {} if found is None else {"weight": int(found)}


# ---- calls and tools


def _written_calls(text: str, place: str) -> list[dict[str, Any]]:
    calls = decoded(text)
    return function_calls(calls if isinstance(calls, list) else [calls], place)


def function_calls(calls: Sequence[Any], place: str) -> list[dict[str, Any]]:
    """Calls in OpenAI's form, from objects that have `name` and `arguments` only."""
    return [_call({"function": decoded(call)}, i, place) for i, call in enumerate(calls)]


def _call(call: Any, number: int, place: str) -> dict[str, Any]:
    """A call with an id, and its arguments as JSON text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise BadRow(f"{place}.function", f"must be an object with 'name' and 'arguments', not {kind(function)}")
    name, arguments = function.get("name"), function.get("arguments", "{}")
    if not isinstance(name, str) or not name:
        raise BadRow(f"{place}.function.name", f"must be text, not {kind(name)}")
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(arguments, str):
        raise BadRow(f"{place}.function.arguments", f"must be JSON as text, not {kind(arguments)}")
    call_id = call.get("id") or f"call_{number}"
    return {"id": str(call_id), "type": "function", "function": {"name": name, "arguments": arguments}}


def with_tools(messages: list[Message], row: Mapping[str, Any], at: str = "") -> tuple[list[Message], list[Any]]:
    """The messages, and the tools that the row tells of: in `tools`, in `functions`, or in its system message.

    `at` is where in the whole row `row` is.
    """
    places: list[tuple[Any, str]] = [(row.get(name), f"{at}{name}") for name in ("tools", "functions")]
    left = []
    for i, message in enumerate(messages):
        if message["role"] in ("system", "developer"):
            places += [(message.get(name), f"{at}messages[{i}].{name}") for name in ("tools", "functions")]
            message = {name: value for name, value in message.items() if name not in ("tools", "functions")}
        left.append(message)
    found = [(tools, place) for value, place in places if (tools := _tools(value, place))]
    if any(one[0] != other[0] for one, other in pairwise(found)):
        raise BadRow(found[1][1], f"differs from {found[0][1]}: tools are told in one place")
    return left, found[0][0] if found else []


def _tools(value: Any, place: str) -> list[dict[str, Any]]:
    tools = decoded(value)
    if tools is None or tools == "":
        return []
    if not isinstance(tools, list):
        raise BadRow(place, f"must be a list of tools, not {kind(tools)}")
    return [_tool(decoded(tool), f"{place}[{i}]") for i, tool in enumerate(tools)]


def _tool(tool: Any, place: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise BadRow(place, f"must be an object, not {kind(tool)}")
    if "type" not in tool and "name" in tool:
        tool = {"type": "function", "function": dict(tool)}
    if tool.get("type") != "function":
        raise BadRow(f"{place}.type", f"must be 'function', not {shown(tool.get('type'))}")
    function = tool.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow(f"{place}.function", "must be an object with a 'name'")
    return dict(tool)


# ---- values


def list_of(row: Mapping[str, Any], name: str, place: str | None = None) -> Sequence[Any]:
    value = decoded(row.get(name))
    if not isinstance(value, list):
        raise BadRow(place or name, f"must be a list, not {kind(value)}")
    return value


def decoded(value: Any) -> Any:
    """A csv file, and some others, hold lists and objects as JSON text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def text_or_messages(value: Any) -> Any:
    """Messages that are written as JSON text, as messages.

    Any other text is a text, also one that happens to be JSON.
    """
    found = decoded(value)
    messages = found if isinstance(found, list) else [found]
    are_messages = all(isinstance(one, Mapping) and ("role" in one or "from" in one) for one in messages)
    return found if messages and are_messages else value


def text_of(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise BadRow(place, f"must be text, not {kind(value)}" if value is not None else "is missing")
    return value


def number(value: Any, place: str) -> float:
    """A finite number, also one that is written as text, as in a csv file; a whole one as an int."""
    found = value
    if isinstance(value, str):
        with suppress(ValueError):
            found = int(value) if value.strip().lstrip("+-").isdecimal() else float(value)
    if not isinstance(found, int | float) or not math.isfinite(found):
        raise BadRow(place, f"must be a number, not {shown(value)}")
    return int(found) if isinstance(found, bool) else found


def shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
