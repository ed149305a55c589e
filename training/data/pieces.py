"""Tokens of texts that have most of their pieces in common, as the prompts of a conversation's answers do."""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

MOST_PIECES = 4096
"""Pieces whose tokens are remembered: those of some conversations."""


class Pieces:
    """Encodes a text piece by piece, cut at its special tokens, where that gives what the whole does."""

    def __init__(self, tokenizer: Any, encode: Callable[[str], list[int]]) -> None:
        """`encode` makes a whole text to ids, without adding any."""
        self._encode = encode
        self._specials = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        longest_first = sorted(self._specials, key=len, reverse=True)
        self._marks = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._piece: Callable[[str], tuple[int, ...]] = lru_cache(MOST_PIECES)(lambda text: tuple(encode(text)))
        self._cuts = bool(self._specials) and all(map(self._cuts_at, self._specials))

    def encode(self, text: str) -> list[int]:
        ids = self._joined(text) if self._cuts else []
        doubled = ids[:1] == ids[1:2]  # of two tokens that begin a text, one is left out
        return self._encode(text) if doubled else ids

    def _joined(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in self._marks.split(text):
            if piece in self._specials:
                ids.append(self._specials[piece])
            elif piece:
                ids += self._piece(piece)
        return ids

    def _cuts_at(self, special: str) -> bool:
        """Whether no token reaches over a special one, nor depends on what is on its other side."""
        probe = special.join(("x", "", "a b", " c", "\nd \n", "\n\n", "E:", " "))
        return self._joined(probe) == self._encode(probe)
