"""Prompts for the middle, as each family of models of code was taught them."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from engines.capabilities import Capabilities
from engines.errors import ContextLengthExceeded
from engines.text.fill_in_the_middle import FAMILIES, Marks
from engines.text.prompt import PromptRenderer
from tests.engines.tokenizers import byte_fallback, byte_level


def taught(tokenizer: Any, marks: Marks, *more: str) -> tuple[Any, PromptRenderer, Capabilities]:
    tokenizer = deepcopy(tokenizer)
    named = [mark for mark in (marks.prefix, marks.suffix, marks.middle) if mark is not None]
    tokenizer.add_special_tokens({"additional_special_tokens": [*named, *more]})
    return tokenizer, PromptRenderer(tokenizer), Capabilities(max_model_len=100, vocab_size=len(tokenizer))


@pytest.mark.parametrize("marks", FAMILIES, ids=lambda marks: marks.prefix)
@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_the_prompt_is_written_as_the_family_was_taught(make: Callable[[], Any], marks: Marks) -> None:
    tokenizer, prompts, limits = taught(make(), marks)
    ids = prompts.middle("the a", "or the", limits, add_special_tokens=True).ids
    written = tokenizer.convert_ids_to_tokens(ids)
    assert written[0] == tokenizer.bos_token
    order = [token for token in written if token in (marks.prefix, marks.suffix, marks.middle)]
    if marks.middle is None:
        assert order == [marks.suffix, marks.prefix]
        assert written[-1] != marks.prefix
    else:
        assert order == [marks.prefix, marks.suffix, marks.middle]
        assert (written[1], written[-1]) == (marks.prefix, marks.middle)


def test_sentencepiece_puts_no_space_before_the_suffix() -> None:
    marks = Marks("▁<PRE>", "▁<SUF>", "▁<MID>")
    tokenizer, prompts, limits = taught(byte_fallback(), marks)
    written = tokenizer.convert_ids_to_tokens(prompts.middle("the", "the", limits, add_special_tokens=False).ids)
    assert written == ["▁<PRE>", "▁the", "▁<SUF>", "t", "h", "e", "▁<MID>"]


def test_the_marks_and_what_comes_behind_the_middle_end_it() -> None:
    tokenizer, prompts, _ = taught(byte_level(), FAMILIES[0], "<|fim_pad|>", "<|file_sep|>", "<|other|>")
    found = prompts.fill_in_the_middle
    assert found is not None
    assert set(tokenizer.convert_ids_to_tokens(found.ends)) == {
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        "<|fim_pad|>",
        "<|file_sep|>",
    }


def test_a_tokenizer_with_some_of_the_marks_only_was_taught_nothing() -> None:
    tokenizer = deepcopy(byte_level())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<fim_prefix>", "<fim_suffix>"]})
    assert PromptRenderer(tokenizer).fill_in_the_middle is None


@pytest.mark.parametrize("length", [150, 100_000])
def test_what_does_not_fit_the_context_is_refused(length: int) -> None:
    _, prompts, limits = taught(byte_level(), FAMILIES[1])
    with pytest.raises(ContextLengthExceeded):
        prompts.middle("x " * length, "y", limits, add_special_tokens=True)
