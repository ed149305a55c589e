"""How models mark the reasoning that they write before an answer, as their chat templates tell."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ReasoningParserName = Literal["deepseek_r1", "none"]


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Reasoning is the text between two tags."""

    start: str
    end: str
    token_ids: Mapping[str, int] = field(default_factory=dict)
    """The tags that are single tokens of the model's vocabulary."""

    def is_open(self, prompt: str) -> bool:
        """Whether the prompt ends by opening a reasoning block, so that the answer begins with reasoning."""
        return prompt.rstrip().endswith(self.start)

    def is_over(self, prompt: str) -> bool:
        """Whether the prompt ends with a finished, usually empty, block: reasoning was turned off."""
        return prompt.rstrip().endswith(self.end)


TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Fields of messages in which templates look for reasoning."""
API_FIELDS = FIELDS[:2]
"""Those of the API's messages: two names of one text."""


def find_reasoning_format(
    chat_template: str | None, added_tokens: Mapping[str, int], parser: ReasoningParserName | None = None
) -> ReasoningFormat | None:
    """Return how a model marks its reasoning; None where it writes none, or where `parser` is "none"."""
    if parser == "none":
        return None
    template = chat_template or ""
    tags = TAGS[0] if parser else next((tags for tags in TAGS if tags[1] in template), None)
    return ReasoningFormat(*tags, {tag: added_tokens[tag] for tag in tags if tag in added_tokens}) if tags else None


def reasoning_field(chat_template: str) -> str:
    """The field in which a template looks for a message's reasoning; the first of the API's where it looks in none."""
    read = (name for name in FIELDS if re.search(rf"""(\.|\[["']|get\(["']){name}\b""", chat_template))
    return next(read, FIELDS[0])
