"""What a row of data is, however it is written: a conversation or a text, two answers to compare, a judged answer, a
prompt, a text with its class."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Message = dict[str, Any]
Learns = Literal["answers", "text", "pairs", "labels", "prompts", "classes"]


@dataclass(frozen=True, slots=True)
class Conversation:
    messages: list[Message]
    """OpenAI's. A `weight` of an assistant's message says whether to learn it, whatever loss_scale says: 0 or 1."""
    tools: list[dict[str, Any]]
    context: int = 0
    """Number of messages at the beginning that are never learned."""


@dataclass(frozen=True, slots=True)
class Text:
    prompt: str
    """Not learned."""
    completion: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Both begin with the same prompt, which is their context."""

    chosen: Conversation | Text
    rejected: Conversation | Text
    margin: float = 0.0
    """By how much the first is better, where the set says so."""


@dataclass(frozen=True, slots=True)
class Labelled:
    answer: Conversation | Text
    good: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is to answer."""

    whole: Conversation | Text
    """What follows its context, or the completion of a text, is the answer that the set gives: there may be none."""


@dataclass(frozen=True, slots=True)
class Classified:
    content: Conversation | Text
    label: float | list[int]
    """Number of its class, numbers of its classes, or a value; whole numbers are ints."""


Sample = Conversation | Text | Pair | Labelled | Prompt | Classified


def parts(sample: Sample) -> Iterator[Conversation | Text]:
    """The conversations or texts of a sample: one, or the two of a pair."""
    match sample:
        case Pair(chosen, rejected):
            yield from (chosen, rejected)
        case Labelled(part) | Prompt(part) | Classified(part):
            yield part
        case _:
            yield sample


def is_plain(sample: Sample) -> bool:
    """Whether it is text without messages."""
    return isinstance(next(parts(sample)), Text)


UNKNOWN_TO_SOME = ("name",)
"""Fields of messages that some chat templates read, and others leave out without a word."""


def fields_for_template(sample: Sample) -> set[str]:
    """Fields in UNKNOWN_TO_SOME that the messages have. The `name` of a tool's message names its call: not counted."""
    return {
        name
        for part in parts(sample)
        if isinstance(part, Conversation)
        for message in part.messages
        for name in UNKNOWN_TO_SOME
        if message.get(name) and not (name == "name" and message["role"] == "tool")
    }
