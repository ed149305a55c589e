"""Reading what a parser gave."""

import random
from collections.abc import Iterable
from typing import Any

from engines.answers.deltas import Delta
from engines.answers.parser import AnswerParser
from engines.types import Structured
from server.model.structured import read_constraint


def read_structured(response_format: Any, structured_outputs: Any = None) -> Structured | None:
    """What the two fields ask for, checked."""
    constraint = read_constraint(response_format, structured_outputs)
    return None if constraint is None else constraint.checked().structured


def parse(parser: AnswerParser, pieces: Iterable[str]) -> list[Delta]:
    deltas = [delta for piece in pieces for delta in parser.push(piece)]
    return deltas + parser.finish()


def cut(text: str, seed: int) -> list[str]:
    """Cut the text at random places, often into single characters."""
    rng = random.Random(seed)
    pieces = []
    while text:
        size = rng.choice([1, 1, 2, 3, 7, 30])
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def content(deltas: list[Delta]) -> str:
    return "".join(delta.content or "" for delta in deltas)


def reasoning(deltas: list[Delta]) -> str:
    return "".join(delta.reasoning_content or "" for delta in deltas)


def calls(deltas: list[Delta]) -> list[tuple[str, str]]:
    """Names and arguments; checks that each call is announced once, in order, before its arguments."""
    result: list[tuple[str, str]] = []
    for delta in deltas:
        call = delta.tool_call
        if call is None:
            continue
        if call.id is not None:
            assert call.index == len(result)
            assert call.id.startswith("call_")
            assert call.name
            result.append((call.name, call.arguments))
        else:
            assert call.index == len(result) - 1
            assert call.name is None
            result[-1] = (result[-1][0], result[-1][1] + call.arguments)
    return result
