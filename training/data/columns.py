"""Rows of every usual shape, read as one of four things to learn. Needs nothing but the standard library.

messages                                   OpenAI's conversations, with `tools` and `weight`; ms-swift's, with `loss`
conversations, conversation                ShareGPT's, whose turns are {"from", "value"}; {"human", "assistant"}
instruction, input, output                 Alpaca's, with `history`
query, response                            ms-swift's, with `history`; also question and response, question and answer
query, answers                             xlam's: the calls that answer a question
data                                       UltraChat's: texts of the user and the assistant in turn
prompt, completion                         texts that go on, or messages
text                                       plain text
input, preferred_output, ...               OpenAI's preferences (also preferred_completion, ...)
messages, rejected_response                ms-swift's preferences, also rejected_messages; query, response too
chosen, rejected                           preferences of TRL and others: see `preferences`
any conversation or prompt with `label`    one answer that was good or bad, as KTO learns from; also kto_tag

All take `system` (or `system_prompt`) and `tools` (or `functions`). A column that changes what a row means, and cannot
be honoured, makes a BadRow; what is left (ids, scores, sources) is not looked at.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from training.data.messages import (
    function_calls,
    list_of,
    messages_of,
    shown,
    some_messages,
    text_of,
    text_or_messages,
    with_tools,
)
from training.data.preferences import openai_preference, preference, rejected_messages, rejected_response
from training.data.problems import BadRow, kind
from training.data.prompts import Row, answered, history, question, with_system
from training.data.samples import Conversation, Labelled, Learns, Message, Pair, Sample, Text, parts

NOT_READ = {
    **dict.fromkeys(
        ("images", "image", "videos", "video", "audios", "audio", "objects", "rejected_images"),
        "only text can be trained",
    ),
    "documents": "documents beside a conversation cannot be trained: put them into its messages",
    "chat_template_kwargs": "variables of the chat template cannot be chosen by row",
}
"""Columns that change what a row means -> why it cannot be used with them."""


def read(row: Any, learns: Learns) -> Sample:
    """What a row gives to a training that learns such things. Raises BadRow."""
    shape = shape_of(row, learns)
    for name, why in NOT_READ.items():
        if row.get(name):
            raise BadRow(name, why)
    sample = _compared(SHAPES[shape].read(row), row)
    _check_all_read(sample, row)
    if learns in ("answers", "text"):
        return _answer(sample, row)
    if learns == "pairs" and not isinstance(sample, Pair):
        raise BadRow("", "there is no rejected answer to compare with")
    if not isinstance(sample, Pair):
        sample = _labelled(sample, row)
    for part in parts(sample):
        if isinstance(part, Conversation) and any(m.get("weight") == 0 for m in part.messages[part.context :]):
            raise BadRow("", "an answer that is judged is learned whole: no message of it can have weight 0")
    return sample


def _compared(sample: Sample, row: Row) -> Sample:
    """ms-swift's rejected answer beside a conversation."""
    if not isinstance(sample, Conversation):
        return sample
    if row.get("rejected_messages") is not None:
        return rejected_messages(sample, row)
    return sample if row.get("rejected_response") is None else rejected_response(sample, row["rejected_response"])


def _check_all_read(sample: Sample, row: Row) -> None:
    """Raises BadRow for columns of conversations beside plain text."""
    for name in ("system", "system_prompt", "tools", "functions", "history"):
        if row.get(name) and any(isinstance(part, Text) for part in parts(sample)):
            raise BadRow(name, "plain text has no place for it")


def _answer(sample: Sample, row: Row) -> Sample:
    if isinstance(sample, Pair):
        raise BadRow("", "these are preferences, two answers to compare: they are learned by rlhf")
    for name in LABELS:
        if row.get(name) is False:
            raise BadRow(name, "it says that the answer is a bad one, which is not to be learned")
    return sample


LABELS = ("label", "kto_tag")


def _labelled(sample: Sample, row: Row) -> Sample:
    name = next((name for name in LABELS if row.get(name) is not None), None)
    if name is None:
        raise BadRow("label", "there is none: true for a good answer, false for a bad one")
    if isinstance(sample, Conversation) and sample.context == 0:
        sample = replace(sample, context=len(sample.messages) - 1)
    assert isinstance(sample, Conversation | Text)
    return Labelled(sample, _label(row[name], name))


def _label(value: Any, place: str) -> bool:
    named = {"true": True, "1": True, "false": False, "0": False}
    found = named.get(value.lower()) if isinstance(value, str) else value
    if found not in (True, False):
        raise BadRow(place, f"must be true or false, not {shown(value)}")
    return bool(found)


def shape_of(row: Any, learns: Learns) -> str:
    """The name of a row's shape, in which preferences go first where they are what is learned. Raises BadRow where it
    has none."""
    if not isinstance(row, Mapping):
        raise BadRow("", f"a row must be a JSON object, not {kind(row)}")
    given = {name for name, value in row.items() if value is not None}
    compares = learns == "pairs" or (learns == "labels" and given.isdisjoint(LABELS))
    for name in sorted(SHAPES, key=lambda name: SHAPES[name].compares != compares):
        if SHAPES[name].needs <= given:
            return name
    known = (
        "messages; conversations; instruction and output; query and response; prompt and completion; text; "
        "chosen and rejected"
    )
    if not given:
        raise BadRow("", f"the row is empty; it needs the fields of one of these: {known}")
    names = ", ".join(sorted(map(repr, given))[:8])
    raise BadRow("", f"the fields {names} are of no known shape; known are: {known}")


# ---- shapes


def _turns(name: str) -> Callable[[Row], Conversation]:
    def read_turns(row: Row) -> Conversation:
        if row.get("history"):
            raise BadRow("history", f"belongs into {name}")
        messages, tools = with_tools(with_system(messages_of(list_of(row, name), name), row), row)
        return Conversation(answered(messages, name), tools)

    return read_turns


def _rounds(asked: str, answer: str) -> Callable[[Row], Conversation]:
    """A question and its answer after the `system` message and the `history`."""

    def read_rounds(row: Row) -> Conversation:
        last: Message = {"role": "assistant", "content": text_of(row[answer], answer)}
        messages, tools = with_tools(with_system([*history(row), question(row, asked), last], row), row)
        return Conversation(messages, tools)

    return read_rounds


def _calls(row: Row) -> Conversation:
    calls = function_calls(list_of(row, "answers"), "answers")
    if not calls:
        raise BadRow("answers", "is empty")
    asked = [*history(row), question(row, "query"), {"role": "assistant", "content": "", "tool_calls": calls}]
    return Conversation(*with_tools(with_system(asked, row), row))


def _dialogue(row: Row) -> Conversation:
    texts = [text_of(text, f"data[{i}]") for i, text in enumerate(list_of(row, "data"))]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    messages, tools = with_tools(with_system(messages, row), row)
    return Conversation(answered(messages, "data"), tools)


def _completion(row: Row) -> Conversation | Text:
    prompt, completion = text_or_messages(row["prompt"]), text_or_messages(row["completion"])
    if isinstance(prompt, str) and isinstance(completion, str) and "system" not in row:
        if not completion:
            raise BadRow("completion", "is empty")
        return Text(prompt, completion)
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    after = answered(some_messages(completion, "completion"), "completion")
    before = with_system([*history(row), *some_messages(prompt, "prompt")], row)
    messages, tools = with_tools([*before, *after], row)
    return Conversation(messages, tools, context=len(before))


def _plain(row: Row) -> Text:
    text = text_of(row["text"], "text")
    if not text:
        raise BadRow("text", "is empty")
    return Text("", text)


@dataclass(frozen=True, slots=True)
class Shape:
    needs: frozenset[str]
    """The fields that tell it."""
    read: Callable[[Row], Sample]
    compares: bool = False
    """Whether it holds two answers to compare."""


def _shape(needs: str, read_row: Callable[[Row], Sample], *, compares: bool = False) -> Shape:
    return Shape(frozenset(needs.split()), read_row, compares)


SHAPES = {
    "messages": _shape("messages", _turns("messages")),
    "conversations": _shape("conversations", _turns("conversations")),
    "conversation": _shape("conversation", _turns("conversation")),
    "preference (OpenAI)": _shape("input preferred_output non_preferred_output", openai_preference, compares=True),
    "preference (OpenAI, older)": _shape(
        "input preferred_completion non_preferred_completion", openai_preference, compares=True
    ),
    "preference": _shape("chosen rejected", preference, compares=True),
    "instruction/output": _shape("instruction output", _rounds("instruction", "output")),
    "query/response": _shape("query response", _rounds("query", "response")),
    "question/response": _shape("question response", _rounds("question", "response")),
    "question/answer": _shape("question answer", _rounds("question", "answer")),
    "query/answers": _shape("query answers", _calls),
    "prompt/completion": _shape("prompt completion", _completion),
    "text": _shape("text", _plain),
    "data": _shape("data", _dialogue),
}
"""By name. The first that fits is taken, in this order but for `compares`: see `shape_of`."""
