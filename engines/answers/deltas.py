"""Deltas: parts of an answer that come with a piece of model output, each content, reasoning or a tool call."""

from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The first delta of a call has its id and name, those after it only more of the arguments."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Delta(msgspec.Struct, frozen=True):
    """Exactly one of the three is set."""

    content: str | None = None
    reasoning_content: str | None = None
    tool_call: ToolCallDelta | None = None


def joined(deltas: list[Delta]) -> list[Delta]:
    """Join neighbouring deltas of one kind, so that what came together is sent together."""
    result: list[Delta] = []
    for delta in deltas:
        both = _both(result[-1], delta) if result else None
        if both is None:
            result.append(delta)
        else:
            result[-1] = both
    return result


def _both(first: Delta, second: Delta) -> Delta | None:
    if first.content is not None and second.content is not None:
        return Delta(content=first.content + second.content)
    if first.reasoning_content is not None and second.reasoning_content is not None:
        return Delta(reasoning_content=first.reasoning_content + second.reasoning_content)
    one, two = first.tool_call, second.tool_call
    if one is not None and two is not None and one.index == two.index and two.id is None:
        return Delta(tool_call=ToolCallDelta(one.index, one.id, one.name, one.arguments + two.arguments))
    return None
