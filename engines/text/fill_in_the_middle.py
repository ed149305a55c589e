"""How models of code are asked for the text between a prefix and a suffix (Bavarian et al. 2022, arXiv:2207.14255).

The marks are tokens of their own, so a tokenizer that has those of a family tells how its model was taught.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Marks:
    """The tokens before prefix and suffix, and the one behind both, after which the model writes the middle."""

    prefix: str
    suffix: str
    middle: str | None
    """None: the suffix comes first, and the model goes on from the prefix."""


FAMILIES = (
    Marks("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma, Granite 4
    Marks("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite Code
    Marks("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    Marks("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    Marks("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    Marks("[PREFIX]", "[SUFFIX]", None),  # Codestral
)
ENDS = (
    "<|endoftext|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<|file_separator|>",
    "<fim_pad>",
    "<file_sep>",
    "<｜end▁of▁sentence｜>",  # as DeepSeek spells it
    "▁<EOT>",
)
"""What such models write behind the middle, beside their end-of-sequence tokens: the end, or a beginning of something
else."""


@dataclass(frozen=True, slots=True)
class FillInTheMiddle:
    """The marks as token ids."""

    prefix: int
    suffix: int
    middle: int | None
    ends: tuple[int, ...]
    """Tokens with which the middle is over, the marks among them."""

    def prompt(self, prefix: list[int], suffix: list[int]) -> list[int]:
        """From the tokens before the middle and those behind it."""
        if self.middle is None:
            return [self.suffix, *suffix, self.prefix, *prefix]
        return [self.prefix, *prefix, self.suffix, *suffix, self.middle]


def find_fill_in_the_middle(added_tokens: Mapping[str, int]) -> FillInTheMiddle | None:
    """That of a tokenizer, by its `get_added_vocab()`; None where it has the marks of no family."""
    for marks in FAMILIES:
        named = [mark for mark in (marks.prefix, marks.suffix, marks.middle) if mark is not None]
        if all(mark in added_tokens for mark in named):
            ends = tuple(added_tokens[token] for token in (*named, *ENDS) if token in added_tokens)
            middle = None if marks.middle is None else added_tokens[marks.middle]
            return FillInTheMiddle(added_tokens[marks.prefix], added_tokens[marks.suffix], middle, ends)
    return None
