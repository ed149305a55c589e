"""Every usual shape of a row, and what is read from it. Needs nothing but the standard library.

messages                                   OpenAI's conversations, with `tools` and `weight`; ms-swift's, with `loss`
conversations, conversation                ShareGPT's, whose turns are {"from", "value"}; {"human", "assistant"}
instruction, input, output                 Alpaca's, with `history`
query, response                            ms-swift's, with `history`; also by other names: QUESTIONS, ANSWERS
query, answers                             xlam's: the calls that answer a question
data                                       UltraChat's: texts of the user and the assistant in turn
prompt, completion                         texts that go on, or messages
text                                       plain text
input, preferred_output, ...               OpenAI's preferences (also preferred_completion, ...)
messages, rejected_response                ms-swift's preferences, also rejected_messages; query, response too
chosen, rejected                           preferences of TRL and others: see `preferences`
any conversation or prompt with `label`    one answer that was good or bad, as KTO learns from; also kto_tag

Where an answer is not needed, as to prompts and to texts that are put into classes, the last message may be the user's,
and `output`, `response`, `answer` or `completion` may be empty or not be there.

All take `system` (or `system_prompt`) and `tools` (or `functions`). A column that changes what a row means, and cannot
be honoured, makes a BadRow; what is left (ids, scores, sources) is not looked at.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from training.data.messages import (
    function_calls,
    list_of,
    messages_of,
    some_messages,
    text_of,
    text_or_messages,
    with_tools,
)
from training.data.preferences import openai_preference, preference
from training.data.problems import BadRow, kind
from training.data.prompts import SYSTEMS, Row, answered, asked, history, question, with_system
from training.data.samples import Conversation, Learns, Message, Pair, Text

LABELS = ("label", "kto_tag")
"""Columns that say whether an answer is a good one."""
QUESTIONS = ("query", "question", "prompt", "instruction", "input", "problem")
ANSWERS = ("solution", "response", "output", "answer")
"""Columns of a question and of its answer, by whatever names sets have them. A `solution` to anything but a problem is
what rewards compare with; to a problem, it is worked out, and the `answer` beside it is its last line."""
Ends = Callable[[list[Message], str], list[Message]]
"""Returns the messages, or raises BadRow where they end with what is not wanted there."""


def _turns(name: str, ends: Ends = answered) -> Callable[[Row], Conversation]:
    def read_turns(row: Row) -> Conversation:
        if row.get("history"):
            raise BadRow("history", f"belongs into {name}")
        messages, tools = with_tools(with_system(messages_of(list_of(row, name), name), row), row)
        return Conversation(ends(messages, name), tools)

    return read_turns


def _rounds(asked: str, answer: str) -> Callable[[Row], Conversation]:
    """A question and its answer after the `system` message and the `history`."""

    def read_rounds(row: Row) -> Conversation:
        last: Message = {"role": "assistant", "content": text_of(row[answer], answer)}
        messages, tools = with_tools(with_system([*history(row), question(row, asked), last], row), row)
        return Conversation(messages, tools)

    return read_rounds


def _round(asked: str, answer: str) -> Callable[[Row], Conversation]:
    """The same of names that say less: no other column may hold a question."""
    read_rounds = _rounds(asked, answer)

    def read_round(row: Row) -> Conversation:
        others = [name for name in QUESTIONS if name != asked and row.get(name)]
        if others and (asked, others) != ("instruction", ["input"]):
            raise BadRow(others[0], f"stands beside {asked}: which of the two is the question?")
        return read_rounds(row)

    return read_round


def _calls(row: Row) -> Conversation:
    calls = function_calls(list_of(row, "answers"), "answers")
    if not calls:
        raise BadRow("answers", "is empty")
    asked = [*history(row), question(row, "query"), {"role": "assistant", "content": "", "tool_calls": calls}]
    return Conversation(*with_tools(with_system(asked, row), row))


def _asked(name: str) -> Callable[[Row], Conversation]:
    """A question alone after the `system` message and the `history`."""

    def read_asked(row: Row) -> Conversation:
        return Conversation(*with_tools(with_system([*history(row), question(row, name)], row), row))

    return read_asked


def _dialogue(ends: Ends = answered) -> Callable[[Row], Conversation]:
    def read_dialogue(row: Row) -> Conversation:
        texts = [text_of(text, f"data[{i}]") for i, text in enumerate(list_of(row, "data"))]
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        messages, tools = with_tools(with_system(messages, row), row)
        return Conversation(ends(messages, "data"), tools)

    return read_dialogue


def _prompt(row: Row) -> Conversation | Text:
    prompt = text_or_messages(row["prompt"])
    if isinstance(prompt, str) and not any(name in row for name in (*SYSTEMS, "history", "tools", "functions")):
        return Text(prompt, "")
    messages = with_system([*history(row), *some_messages(prompt, "prompt")], row)
    return Conversation(*with_tools(messages, row))


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


def _plain_prompt(row: Row) -> Text:
    return Text(_plain(row).completion, "")


def _plain(row: Row) -> Text:
    text = text_of(row["text"], "text")
    if not text:
        raise BadRow("text", "is empty")
    return Text("", text)


@dataclass(frozen=True, slots=True)
class Shape:
    needs: frozenset[str]
    """The fields that tell it."""
    read: Callable[[Row], Conversation | Text | Pair]
    compares: bool = False
    """Whether it holds two answers to compare."""


def _shape(needs: str, read_row: Callable[[Row], Conversation | Text | Pair], *, compares: bool = False) -> Shape:
    return Shape(frozenset(needs.split()), read_row, compares)


ROUNDS = {
    "instruction/output": _shape("instruction output", _rounds("instruction", "output")),
    "query/response": _shape("query response", _rounds("query", "response")),
    "question/response": _shape("question response", _rounds("question", "response")),
    "question/answer": _shape("question answer", _rounds("question", "answer")),
}
OTHER_ROUNDS = {
    f"{asked}/{answer}": _shape(f"{asked} {answer}", _round(asked, answer))
    for answer in ANSWERS
    for asked in QUESTIONS
    if f"{asked}/{answer}" not in ROUNDS and (answer != "solution" or asked == "problem")
}
SHAPES = {
    "messages": _shape("messages", _turns("messages")),
    "conversations": _shape("conversations", _turns("conversations")),
    "conversation": _shape("conversation", _turns("conversation")),
    "preference (OpenAI)": _shape("input preferred_output non_preferred_output", openai_preference, compares=True),
    "preference (OpenAI, older)": _shape(
        "input preferred_completion non_preferred_completion", openai_preference, compares=True
    ),
    "preference": _shape("chosen rejected", preference, compares=True),
    **ROUNDS,
    "query/answers": _shape("query answers", _calls),
    "prompt/completion": _shape("prompt completion", _completion),
    "text": _shape("text", _plain),
    "data": _shape("data", _dialogue()),
    **OTHER_ROUNDS,
}
"""By name. The first that fits is taken, in this order but for `compares`: see `shape_of`."""
UNANSWERED = {
    **{name: shape for name, shape in SHAPES.items() if name != "text" and name not in OTHER_ROUNDS},
    **{name: _shape(name, _turns(name, asked)) for name in ("messages", "conversations", "conversation")},
    "data": _shape("data", _dialogue(asked)),
    "prompt": _shape("prompt", _prompt),
    **{name: _shape(name, _asked(name)) for name in ("instruction", "query", "question", "problem")},
    "text": _shape("text", _plain_prompt),
}
"""The same where no answer is needed, in this order."""


def read_shape(row: Row, learns: Learns) -> Conversation | Text | Pair:
    """What a row holds, by its shape. Raises BadRow."""
    return _shapes(learns)[shape_of(row, learns)].read(row)


def _shapes(learns: Learns) -> Mapping[str, Shape]:
    return UNANSWERED if learns in ("prompts", "classes") else SHAPES


def shape_of(row: Any, learns: Learns) -> str:
    """The name of a row's shape, in which preferences go first where they are what is learned. Raises BadRow where it
    has none."""
    if not isinstance(row, Mapping):
        raise BadRow("", f"a row must be a JSON object, not {kind(row)}")
    shapes = _shapes(learns)
    given = {name for name, value in row.items() if value is not None and (value != "" or shapes is SHAPES)}
    compares = learns == "pairs" or (learns == "labels" and given.isdisjoint(LABELS))
    for name in sorted(shapes, key=lambda name: shapes is SHAPES and shapes[name].compares != compares):
        if shapes[name].needs <= given:
            return name
    known = (
        "messages; conversations; instruction and output; query and response; prompt and completion; text; "
        "chosen and rejected; input, preferred_output and non_preferred_output"
    )
    if not given:
        raise BadRow("", f"the row is empty; it needs the fields of one of these: {known}")
    names = ", ".join(sorted(map(repr, given))[:8])
    raise BadRow("", f"the fields {names} are of no known shape; known are: {known}")
