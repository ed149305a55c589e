"""The budget of reasoning: what is forced, when, and until when."""

import pytest

from engines.text.thinking import Thinking
from engines.types import ThinkingBudget

TOKENS = ["<think>", "</think>", "<th", "ink>", "</", "think", ">", "a", "b", "\n", "ink>\nso", "x</think>y"]


def thinking(tokens: int, *, is_open: bool = True) -> Thinking:
    budget = ThinkingBudget(tokens=tokens, start="<think>", end="</think>", end_ids=ids("</think>"), is_open=is_open)
    return Thinking(budget, lambda token_id: TOKENS[token_id].encode())


def ids(*tokens: str) -> tuple[int, ...]:
    return tuple(map(TOKENS.index, tokens))


def run(of: Thinking, wanted: list[str]) -> str:
    """What an output becomes whose model wants these tokens; one that is forced stands before the one wanted."""
    text = ""
    for token in wanted:
        while of.forced is not None:
            text += f"[{TOKENS[of.forced]}]"
            of.accept(of.forced)
        text += token
        of.accept(TOKENS.index(token))
    return text


def test_reasoning_is_closed_after_as_many_tokens() -> None:
    assert run(thinking(2), ["a", "b", "a", "b", "a"]) == "ab[</think>]aba"
    assert run(thinking(0), ["a", "b"]) == "[</think>]ab"


def test_reasoning_that_ends_by_itself_is_left_alone() -> None:
    assert run(thinking(3), ["a", "</think>", "a", "b", "a", "b"]) == "a</think>abab"
    assert run(thinking(3), ["a", "x</think>y", "a", "b", "a"]) == "ax</think>yaba"
    assert run(thinking(4), ["a", "</", "think", ">", "a", "b"]) == "a</think>ab"


def test_a_tag_of_several_tokens_is_forced_token_by_token() -> None:
    closing = ThinkingBudget(tokens=1, start="<think>", end="</think>", end_ids=ids("</", "think", ">"), is_open=True)
    of = Thinking(closing, lambda token_id: TOKENS[token_id].encode())
    assert run(of, ["a", "b", "a"]) == "a[</][think][>]ba"
    assert of.over


@pytest.mark.parametrize("opening", [["<think>"], ["<th", "ink>"], ["\n", "<think>"]])
def test_without_an_open_block_the_count_begins_behind_the_tag(opening: list[str]) -> None:
    text = "".join(opening)
    assert run(thinking(2, is_open=False), [*opening, "a", "b", "a"]) == f"{text}ab[</think>]a"
    assert run(thinking(0, is_open=False), [*opening, "a", "b"]) == f"{text}[</think>]ab"


def test_text_behind_the_tag_in_the_same_token_costs_nothing() -> None:
    assert run(thinking(1, is_open=False), ["<th", "ink>\nso", "a", "b"]) == "<think>\nsoa[</think>]b"


def test_an_output_that_does_not_begin_with_reasoning_has_none() -> None:
    assert run(thinking(0, is_open=False), ["a", "<think>", "a", "b"]) == "a<think>ab"
    assert run(thinking(0, is_open=False), ["<th", "a", "b"]) == "<thab"
