"""Tokens that are found piece by piece are those of the whole."""

from copy import deepcopy
from typing import Any

import pytest
from tokenizers import AddedToken

from tests.engines.tokenizers import ALL
from training.data.pieces import Pieces

TEXTS = [
    "", "plain text", "<|im_start|>user\nthe quick<|im_end|>\n<|im_start|>assistant\n", "<s><s>twice", "<s>once",
    "a<|im_end|>", " <|im_end|> b", "<|im_start|><|im_end|>\n\nGröße 日本",
]  # fmt: skip


def encoder_of(tokenizer: Any) -> Any:
    """As the renderer encodes: one of two tokens that begin a text is left out."""

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids[1:] if ids[:2] == [tokenizer.bos_token_id] * 2 else ids

    return encode


@pytest.mark.parametrize("name", ALL)
def test_they_are_those_of_the_whole(name: str) -> None:
    encode = encoder_of(ALL[name]())
    pieces = Pieces(ALL[name](), encode)
    for text in (*TEXTS, *TEXTS):
        assert pieces.encode(text) == encode(text)


def test_a_special_token_that_takes_the_space_beside_it_is_no_place_to_cut() -> None:
    tokenizer = deepcopy(ALL["byte_level"]())
    tokenizer.add_tokens([AddedToken("<|wide|>", special=True, normalized=False, rstrip=True)], special_tokens=True)
    encode = encoder_of(tokenizer)
    assert Pieces(tokenizer, encode).encode("<|wide|>  a") == encode("<|wide|>  a")
