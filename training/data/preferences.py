"""Two answers to compare, in the layouts of OpenAI, TRL, ms-swift and the sets that people train on.

Where both answers are whole conversations, what they have in common is the prompt, as in TRL's `extract_prompt`. Else
the prompt is a column beside them: `prompt`, `question`, `query`, `instruction` or a conversation.
"""

from collections.abc import Sequence
from typing import Any

from training.data.messages import list_of, messages_of, number, some_messages, text_or_messages, with_tools
from training.data.problems import BadRow, kind
from training.data.prompts import SYSTEMS, Row, answered, history, question, with_system
from training.data.samples import Conversation, Message, Pair, Text

SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))
QUESTIONS = ("question", "query", "instruction")
CONVERSATIONS = ("messages", "conversations", "conversation")


def openai_preference(row: Row) -> Pair:
    given = row["input"]
    if not isinstance(given, dict):
        raise BadRow("input", f"must be an object with 'messages', not {kind(given)}")
    before = messages_of(list_of(given, "messages", "input.messages"), "input.messages")
    if not before:
        raise BadRow("input.messages", "is empty")
    before, tools = with_tools(before, given, "input.")

    def answer(*names: str) -> Conversation:
        name = next(name for name in names if row.get(name) is not None)
        return Conversation([*before, *answered(some_messages(row[name], name), name)], tools, len(before))

    return Pair(
        answer("preferred_output", "preferred_completion"), answer("non_preferred_output", "non_preferred_completion")
    )


def preference(row: Row) -> Pair:
    chosen, rejected = text_or_messages(row["chosen"]), text_or_messages(row["rejected"])
    prompt = text_or_messages(row.get("prompt"))
    if isinstance(chosen, str) and isinstance(rejected, str) and (found := _texts(row, prompt, chosen, rejected)):
        return found
    sides = [_answer(chosen, "chosen"), _answer(rejected, "rejected")]
    if prompt is not None and not isinstance(prompt, str):
        before = some_messages(prompt, "prompt")
        if all(side[: len(before)] == before for side in sides):
            sides = [side[len(before) :] for side in sides]
        return _pair(before, sides, row)
    same = _in_common(*sides)
    before, sides = sides[0][:same], [side[same:] for side in sides]
    if all(message["role"] in ("system", "developer") for message in before):
        before = [*before, *_asked(row, sides)]
    return _pair(before, sides, row)


def _texts(row: Row, prompt: Any, chosen: str, rejected: str) -> Pair | None:
    """Plain texts, as TRL takes them. None where a column beside them belongs to a conversation."""
    beside = [*QUESTIONS, *CONVERSATIONS, "tools", "functions", "history"]
    if any(row.get(name) for name in beside) or not isinstance(prompt, str | None):
        return None
    if prompt is None:
        prompt = _same_beginning(chosen, rejected)
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    elif any(name in row for name in SYSTEMS):
        return None
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text and row.get("prompt") is not None:
            raise BadRow(name, "is empty")
    return Pair(Text(prompt, chosen), Text(prompt, rejected))


def _answer(value: Any, name: str) -> list[Message]:
    value = {"role": "assistant", "content": value} if isinstance(value, str) else value
    return answered(some_messages(value, name), name)


def _asked(row: Row, sides: Sequence[list[Message]]) -> list[Message]:
    """What a column beside the answers holds as their prompt; nothing where none does."""
    for name in ("prompt", *QUESTIONS):
        if row.get(name) is not None:
            return [*history(row), question(row, name)]
    for name in CONVERSATIONS:
        if row.get(name) is not None:
            messages = messages_of(list_of(row, name), name)
            answer = next((side for side in sides if messages[-len(side) :] == side), [])
            messages = messages[: len(messages) - len(answer)]
            if not messages or messages[-1]["role"] == "assistant":
                raise BadRow(name, "must end before the answers that are compared, or with one of them")
            return messages
    return []


def _pair(before: list[Message], sides: Sequence[list[Message]], row: Row) -> Pair:
    before, tools = with_tools(with_system(before, row), row)
    first, second = (
        Conversation([*before, *answered(side, name)], tools, context=len(before))
        for side, name in zip(sides, ("chosen", "rejected"), strict=True)
    )
    return Pair(first, second)


def _in_common(left: Sequence[Message], right: Sequence[Message]) -> int:
    """Number of messages at the beginning that are the same, but for the last of the shorter."""
    length = min(len(left), len(right)) - 1
    return next((i for i in range(length) if left[i] != right[i]), length)


def _same_beginning(left: str, right: str) -> str:
    """What two texts have in common at their beginning, up to the end of a word."""
    length = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    return left[: length - 1] if length and left[length - 1] == " " else left[:length]


def margin(row: Row) -> float:
    """By how much the chosen answer is better: `margin`, or the difference of two scores; 0 where there are neither."""
    if row.get("margin") is not None:
        return number(row["margin"], "margin")
    for chosen, rejected in SCORES:
        if row.get(chosen) is not None and row.get(rejected) is not None:
            return number(row[chosen], chosen) - number(row[rejected], rejected)
    return 0.0


# ---- beside a conversation that ends with the chosen answer


def rejected_response(sample: Conversation, rejected: Any) -> Pair:
    """A text in place of the last message, or messages in place of all that follow the user's last."""
    before = sample.messages[:-1]
    if isinstance(rejected, str):
        other: list[Message] = [{"role": "assistant", "content": rejected}]
    else:
        last = max((i for i, message in enumerate(before) if message["role"] == "user"), default=len(before) - 1)
        before = before[: last + 1]
        other = answered(some_messages(rejected, "rejected_response"), "rejected_response")
    chosen = Conversation(sample.messages, sample.tools, context=len(before))
    return Pair(chosen, Conversation([*before, *other], sample.tools, context=len(before)))


def rejected_messages(sample: Conversation, row: Row) -> Pair:
    """Another conversation, which begins like the first."""
    name = "rejected_messages"
    other, _ = with_tools(with_system(messages_of(list_of(row, name), name), row), row)
    same = _in_common(sample.messages, answered(other, name))
    return Pair(Conversation(sample.messages, sample.tools, same), Conversation(other, sample.tools, same))
