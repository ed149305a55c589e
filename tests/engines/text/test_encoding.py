"""Token ids of a text."""

from pathlib import Path
from typing import Any

import pytest

from engines.checkpoint.loading import load_tokenizer
from engines.echo import echo_tokenizer
from engines.text.encoding import encode
from tests.engines.pt.tiny import byte_level_tokenizer

TEXTS = ("", "a", "Grüße, 世界 ☺", "<|im_start|>user\nhi<|im_end|>\n", "word " * 3000, "a" * 3000, " \n\t x\u00a0y")


class Own:
    """A tokenizer that is none of transformers' fast ones."""

    def encode(self, text: str, *, add_special_tokens: bool, verbose: bool) -> list[int]:
        return [len(text), int(add_special_tokens)]


@pytest.mark.parametrize("make", [echo_tokenizer, byte_level_tokenizer])
@pytest.mark.parametrize("split", [False, True], ids=["special", "split"])
def test_ids_are_those_of_the_tokenizer(make: Any, split: bool) -> None:
    tokenizer, plain = make(), make()
    tokenizer.split_special_tokens = plain.split_special_tokens = split
    tokenizer.backend_tokenizer.enable_truncation(5)  # as some files have it
    tokenizer.backend_tokenizer.enable_padding(length=4000)
    for text in TEXTS:
        for adds in (False, True):
            assert encode(tokenizer, text, add_special_tokens=adds) == plain.encode(text, add_special_tokens=adds)


def test_other_tokenizers_are_asked_themselves() -> None:
    assert encode(Own(), "abc", add_special_tokens=True) == [3, 1]


@pytest.mark.demo
def test_ids_are_those_of_the_demo_model_s_tokenizer(demo_model: Path) -> None:
    tokenizer = load_tokenizer(str(demo_model))
    for text in TEXTS:
        assert encode(tokenizer, text, add_special_tokens=True) == tokenizer.encode(text, add_special_tokens=True)
