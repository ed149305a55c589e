"""What a row of data is, however it is written: a conversation or a text, two answers to compare, a judged answer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Message = dict[str, Any]
Learns = Literal["answers", "text", "pairs", "labels"]


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


@dataclass(frozen=True, slots=True)
class Labelled:
    answer: Conversation | Text
    good: bool


Sample = Conversation | Text | Pair | Labelled


def parts(sample: Sample) -> Iterator[Conversation | Text]:
    """The conversations or texts of a sample: one, or the two of a pair."""
    match sample:
        case Pair(chosen, rejected):
            yield from (chosen, rejected)
        case Labelled(answer=answer):
            yield answer
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
