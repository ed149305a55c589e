"""Prompts that are cut to a length: vLLM's `truncate_prompt_tokens` and `truncation_side`."""

from dataclasses import dataclass
from typing import Literal

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Truncation:
    """Of a prompt that is longer than `length` tokens, so many are kept."""

    length: int
    side: Side
    """Where the others are left out: "left" keeps the last tokens, "right" the first."""

    def of(self, ids: list[int], length: int | None = None) -> list[int]:
        """Those of `ids` that are kept; `length`: another number of them."""
        length = self.length if length is None else length
        if len(ids) <= length:
            return ids
        return ids[len(ids) - length :] if self.side == "left" else ids[:length]

    def part(self, text: str, characters: int) -> str:
        """The part of a text that the tokens which are kept come from, where so many characters suffice."""
        return text[-characters:] if self.side == "left" else text[:characters]
