"""A reward for the comparison of GRPO, in TRL's form: what matters is that answers differ in it."""

from typing import Any


def share_of_vowels(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """The part of an answer's characters that are vowels."""
    texts = [completion[-1]["content"].lower() for completion in completions]
    return [sum(map(text.count, "aeiou")) / max(len(text), 1) for text in texts]
