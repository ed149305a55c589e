"""Rows of every usual shape, read as one of four things to learn from. Needs nothing but the standard library.

messages                                   OpenAI's conversations, with `tools` and `weight`
conversations                              ShareGPT's, whose turns are {"from", "value"}
instruction, input, output                 Alpaca's, with `history`
query, response                            ms-swift's, with `history`
prompt, completion                         texts that go on, or messages
text                                       plain text
input, preferred_output, ...               OpenAI's preferences (also preferred_completion, ...)
messages, rejected_response                ms-swift's preferences; query, response too
prompt, chosen, rejected                   TRL's preferences, texts or messages; also without `prompt`
any conversation or prompt with `label`    one answer that was good or bad, as KTO learns from
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from training.data.problems import BadRow, kind

Row = Mapping[str, Any]
Message = dict[str, Any]
Learns = Literal["answers", "text", "pairs", "labels"]


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: list[Message]
    """OpenAI's. An assistant's message may have a `weight`: 0, not to learn from it."""
    tools: list[dict[str, Any]]
    context: int = 0
    """Number of messages at the beginning that are never learned from."""


@dataclass(frozen=True, slots=True)
class Text:
    prompt: str
    """Not learned from."""
    completion: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Both begin with the same prompt, which is their context."""

    chosen: Conversation | Text
    rejected: Conversation | Text


@dataclass(frozen=True, slots=True)
class Labelled:
    answer: Conversation | Text
    good: bool


Sample = Conversation | Text | Pair | Labelled


def is_plain(sample: Sample) -> bool:
    """Whether it is text without messages."""
    match sample:
        case Pair(chosen=answer) | Labelled(answer=answer):
            return isinstance(answer, Text)
        case _:
            return isinstance(sample, Text)


MEDIA = ("images", "image", "videos", "video", "audios", "audio")
"""Columns that go with places in the text."""


def read(row: Any, learns: Learns) -> Sample:
    """What a row gives to a training that learns from such things. Raises BadRow."""
    sample = _sample(shape_of(row), row)
    for name in MEDIA:
        if row.get(name):
            raise BadRow(name, "only text can be trained")
    if learns == "pairs" and not isinstance(sample, Pair):
        raise BadRow("", "there is no rejected answer to compare with")
    if learns == "labels" and not isinstance(sample, Pair | Labelled):
        raise BadRow("label", "there is none: true for a good answer, false for a bad one")
    if learns in ("answers", "text") and isinstance(sample, Pair):
        raise BadRow("", "these are preferences, two answers to compare: they are learned by rlhf")
    return sample.answer if learns in ("answers", "text") and isinstance(sample, Labelled) else sample


def shape_of(row: Any) -> str:
    """The name of a row's shape. Raises BadRow where it has none."""
    if not isinstance(row, Mapping):
        raise BadRow("", f"a row must be a JSON object, not {kind(row)}")
    given = {name for name, value in row.items() if value is not None}
    for name, (needed, _) in SHAPES.items():
        if needed <= given:
            return name
    known = (
        "messages; conversations; instruction and output; query and response; prompt and completion; text; "
        "chosen and rejected"
    )
    if not given:
        raise BadRow("", f"the row is empty; it needs the fields of one of these: {known}")
    names = ", ".join(sorted(map(repr, given))[:8])
    raise BadRow("", f"the fields {names} are of no known shape; known are: {known}")


def _sample(shape: str, row: Row) -> Sample:
    sample = SHAPES[shape][1](row)
    rejected = row.get("rejected_response")
    if rejected is not None and isinstance(sample, Conversation):
        return _rejected_response(sample, rejected)
    if row.get("label") is not None and isinstance(sample, Conversation | Text):
        return Labelled(_last_answer(sample), _label(row["label"]))
    return sample


# ---- shapes


def _messages(row: Row) -> Conversation:
    messages = [_message(message, f"messages[{i}]") for i, message in enumerate(_list(row, "messages"))]
    return Conversation(_ending_with_answer(messages, "messages"), _tools(row))


def _sharegpt(row: Row) -> Conversation:
    messages: list[Message] = []
    if row.get("system"):
        messages.append({"role": "system", "content": _text(row["system"], "system")})
    for i, turn in enumerate(_list(row, "conversations")):
        place = f"conversations[{i}]"
        if isinstance(turn, Mapping) and "role" in turn:
            messages.append(_message(turn, place))
            continue
        messages.append(_sharegpt_turn(turn, place))
    return Conversation(_ending_with_answer(messages, "conversations"), _tools(row))


SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant", "assistant": "assistant", "model": "assistant", "function_call": "assistant",
    "observation": "tool", "tool": "tool",
}  # fmt: skip


def _sharegpt_turn(turn: Any, place: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow(place, f"must be an object with 'from' and 'value', not {kind(turn)}")
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        raise BadRow(
            f"{place}.from", f"must be one of system, human, gpt, function_call, observation, not {_shown(speaker)}"
        )
    text = _text(turn.get("value"), f"{place}.value")
    message: Message = {"role": SHAREGPT_ROLES[speaker], "content": text}
    if speaker == "function_call":
        message |= {"content": "", "tool_calls": [_call({"function": _decoded(text)}, 0, f"{place}.value")]}
    if message["role"] == "assistant" and turn.get("weight") is not None:
        message["weight"] = _weight(turn["weight"], f"{place}.weight")
    return message


def _alpaca(row: Row) -> Conversation:
    instruction = _text(row["instruction"], "instruction")
    extra = "" if row.get("input") is None else _text(row["input"], "input")
    return _rounds(row, f"{instruction}\n{extra}" if extra else instruction, _text(row["output"], "output"))


def _query(row: Row) -> Conversation:
    return _rounds(row, _text(row["query"], "query"), _text(row["response"], "response"))


def _rounds(row: Row, question: str, answer: str) -> Conversation:
    """A question and its answer after the `system` message and the `history`, [question, answer] each."""
    messages: list[Message] = []
    if row.get("system"):
        messages.append({"role": "system", "content": _text(row["system"], "system")})
    for i, pair in enumerate(_list(row, "history") if row.get("history") else ()):
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(f"history[{i}]", "must be a list of two texts, a question and its answer")
        messages.append({"role": "user", "content": _text(pair[0], f"history[{i}][0]")})
        messages.append({"role": "assistant", "content": _text(pair[1], f"history[{i}][1]")})
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": answer})
    return Conversation(messages, _tools(row))


def _completion(row: Row) -> Conversation | Text:
    return _continued(row, "completion")


def _continued(row: Row, name: str) -> Conversation | Text:
    prompt, completion = _text_or_messages(row["prompt"]), _text_or_messages(row[name])
    if isinstance(prompt, str) and isinstance(completion, str):
        if not completion:
            raise BadRow(name, "is empty")
        return Text(prompt, completion)
    before = _some_messages(prompt, "prompt")
    after = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else None
    return _joined(before, after or _some_messages(completion, name), name, _tools(row))


def _plain(row: Row) -> Text:
    text = _text(row["text"], "text")
    if not text:
        raise BadRow("text", "is empty")
    return Text("", text)


def _openai_preference(row: Row) -> Pair:
    given = row["input"]
    if not isinstance(given, Mapping):
        raise BadRow("input", f"must be an object with 'messages', not {kind(given)}")
    before = [_message(m, f"input.messages[{i}]") for i, m in enumerate(_list(given, "messages", "input.messages"))]
    if not before:
        raise BadRow("input.messages", "is empty")
    tools = _tools(given, "input.tools")

    def answer(*names: str) -> Conversation:
        name = next(name for name in names if row.get(name) is not None)
        return _joined(before, _some_messages(row[name], name), name, tools)

    return Pair(
        answer("preferred_output", "preferred_completion"), answer("non_preferred_output", "non_preferred_completion")
    )


def _preference(row: Row) -> Pair:
    if row.get("prompt") is not None:
        return Pair(_continued(row, "chosen"), _continued(row, "rejected"))
    chosen, rejected = (_text_or_messages(row[name]) for name in ("chosen", "rejected"))
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt = _same_beginning(chosen, rejected)
        return Pair(Text(prompt, chosen[len(prompt) :]), Text(prompt, rejected[len(prompt) :]))
    sides = [_some_messages(chosen, "chosen"), _some_messages(rejected, "rejected")]
    same = 0
    while same < min(map(len, sides)) - 1 and sides[0][same] == sides[1][same]:
        same += 1
    tools = _tools(row)
    first, second = (
        _joined(side[:same], side[same:], name, tools) for side, name in zip(sides, ("chosen", "rejected"), strict=True)
    )
    return Pair(first, second)


def _same_beginning(left: str, right: str) -> str:
    """What two texts have in common at their beginning, up to the end of a word."""
    length = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    return left[: length - 1] if length and left[length - 1] == " " else left[:length]


def _rejected_response(sample: Conversation, rejected: Any) -> Pair:
    """The last answer, and another one in its place."""
    before = sample.messages[:-1]
    chosen = Conversation(sample.messages, sample.tools, context=len(before))
    answer: Message = {"role": "assistant", "content": _text(rejected, "rejected_response")}
    return Pair(chosen, Conversation([*before, answer], sample.tools, context=len(before)))


SHAPES: dict[str, tuple[set[str], Callable[[Row], Sample]]] = {
    "messages": ({"messages"}, _messages),
    "conversations": ({"conversations"}, _sharegpt),
    "preference (OpenAI)": ({"input", "preferred_output", "non_preferred_output"}, _openai_preference),
    "preference (OpenAI, older)": ({"input", "preferred_completion", "non_preferred_completion"}, _openai_preference),
    "preference": ({"chosen", "rejected"}, _preference),
    "instruction/output": ({"instruction", "output"}, _alpaca),
    "query/response": ({"query", "response"}, _query),
    "prompt/completion": ({"prompt", "completion"}, _completion),
    "text": ({"text"}, _plain),
}
"""Name -> the fields that tell it, and what reads it. The first that fits is taken."""


# ---- their parts

ROLES = ("system", "developer", "user", "assistant", "tool")


def _message(message: Any, place: str) -> Message:
    """A message of OpenAI's, checked, without fields that are null."""
    if not isinstance(message, Mapping):
        raise BadRow(place, f"must be an object with 'role' and 'content', not {kind(message)}")
    kept = {name: value for name, value in message.items() if value is not None}
    role = kept.get("role")
    if role not in ROLES:
        raise BadRow(f"{place}.role", f"must be one of {', '.join(ROLES)}, not {_shown(role)}")
    calls = kept.get("tool_calls")
    if calls is not None:
        kept["tool_calls"] = _calls(calls, role, place)
    if "content" in kept:
        _check_content(kept["content"], f"{place}.content")
    elif not (role == "assistant" and kept.get("tool_calls")):
        raise BadRow(f"{place}.content", "is missing" if "content" not in message else "must be text, not null")
    if "weight" in kept:
        if role != "assistant":
            raise BadRow(f"{place}.weight", "only messages of the assistant have one")
        kept["weight"] = _weight(kept["weight"], f"{place}.weight")
    if role == "tool" and "tool_call_id" in kept and not isinstance(kept["tool_call_id"], str):
        raise BadRow(f"{place}.tool_call_id", f"must be text, not {kind(kept['tool_call_id'])}")
    return kept


def _check_content(content: Any, place: str) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise BadRow(place, f"must be text, not {kind(content)}")
    for i, part in enumerate(content):
        form = part.get("type") if isinstance(part, Mapping) else None
        if form not in ("text", "refusal"):
            raise BadRow(f"{place}[{i}].type", f"must be 'text', not {_shown(form)}: only text can be trained")
        if not isinstance(part.get(form), str):
            raise BadRow(f"{place}[{i}].{form}", f"must be text, not {kind(part.get(form))}")


def _calls(calls: Any, role: str, place: str) -> list[dict[str, Any]]:
    """The calls of a message, each with an id and its arguments as JSON text."""
    if role != "assistant":
        raise BadRow(f"{place}.tool_calls", "only messages of the assistant have them")
    if not isinstance(calls, list):
        raise BadRow(f"{place}.tool_calls", f"must be a list, not {kind(calls)}")
    return [_call(call, i, f"{place}.tool_calls[{i}]") for i, call in enumerate(calls)]


def _call(call: Any, number: int, place: str) -> dict[str, Any]:
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


def _tools(row: Row, place: str = "tools") -> list[dict[str, Any]]:
    tools = _decoded(row.get("tools"))
    if tools is None or tools == "":
        return []
    if not isinstance(tools, list):
        raise BadRow(place, f"must be a list of tools, not {kind(tools)}")
    return [_tool(tool, f"{place}[{i}]") for i, tool in enumerate(tools)]


def _tool(tool: Any, place: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping):
        raise BadRow(place, f"must be an object, not {kind(tool)}")
    if "type" not in tool and "name" in tool:
        tool = {"type": "function", "function": dict(tool)}
    if tool.get("type") != "function":
        raise BadRow(f"{place}.type", f"must be 'function', not {_shown(tool.get('type'))}")
    function = tool.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow(f"{place}.function", "must be an object with a 'name'")
    return dict(tool)


def _some_messages(value: Any, place: str) -> list[Message]:
    """A list of messages that is not empty; one message stands for a list of it."""
    value = [value] if isinstance(value, Mapping) else value
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise BadRow(place, f"must be text or a list of messages, not {kind(value)}")
    if not value:
        raise BadRow(place, "is empty")
    return [_message(message, f"{place}[{i}]") for i, message in enumerate(value)]


def _joined(before: list[Message], after: list[Message], place: str, tools: list[dict[str, Any]]) -> Conversation:
    """A prompt and its answer."""
    return Conversation([*before, *_ending_with_answer(after, place)], tools, context=len(before))


def _ending_with_answer(messages: list[Message], place: str) -> list[Message]:
    if not messages:
        raise BadRow(place, "is empty")
    if all(message["role"] != "assistant" for message in messages):
        raise BadRow(place, "there is no message of the assistant to learn from")
    if messages[-1]["role"] != "assistant":
        raise BadRow(f"{place}[{len(messages) - 1}].role", "the last message must be the assistant's")
    if all(message.get("weight") == 0 for message in messages if message["role"] == "assistant"):
        raise BadRow(place, "every message of the assistant has weight 0: there is nothing to learn")
    return messages


def _last_answer(sample: Conversation | Text) -> Conversation | Text:
    return sample if isinstance(sample, Text) else replace(sample, context=len(sample.messages) - 1)


def _label(value: Any) -> bool:
    named = {"true": True, "1": True, "false": False, "0": False}
    found = named.get(value.lower()) if isinstance(value, str) else value
    if found not in (True, False):
        raise BadRow("label", f"must be true or false, not {_shown(value)}")
    return bool(found)


def _weight(value: Any, place: str) -> int:
    if isinstance(value, bool) or value not in (0, 1):
        raise BadRow(place, f"must be 0 or 1, not {_shown(value)}")
    return int(value)


def _list(row: Row, name: str, place: str | None = None) -> Sequence[Any]:
    value = _decoded(row.get(name))
    if not isinstance(value, list):
        raise BadRow(place or name, f"must be a list, not {kind(value)}")
    return value


def _decoded(value: Any) -> Any:
    """A csv file, and some others, hold lists as JSON text."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _text_or_messages(value: Any) -> Any:
    """Messages that are written as JSON text, as messages.

    Any other text is a text, also one that happens to be JSON.
    """
    decoded = _decoded(value)
    messages = decoded if isinstance(decoded, list) else [decoded]
    return decoded if all(isinstance(message, Mapping) and "role" in message for message in messages) else value


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise BadRow(place, f"must be text, not {kind(value)}" if value is not None else "is missing")
    return value


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
