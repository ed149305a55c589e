"""Splits the reasoning, which some models write before their answer, from the answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Literal

from server.model.markers import beginning_of

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


def find_reasoning_format(
    chat_template: str | None, added_tokens: Mapping[str, int], parser: ReasoningParserName | None = None
) -> ReasoningFormat | None:
    """Return how a model marks its reasoning; None where it writes none, or where `parser` is "none"."""
    if parser == "none":
        return None
    template = chat_template or ""
    tags = TAGS[0] if parser else next((tags for tags in TAGS if tags[1] in template), None)
    return ReasoningFormat(*tags, {tag: added_tokens[tag] for tag in tags if tag in added_tokens}) if tags else None


class Phase(Enum):
    BEFORE = auto()
    INSIDE = auto()
    GAP = auto()
    CONTENT = auto()


class ReasoningParser:
    """Text of an answer to reasoning and content. Line breaks around the reasoning belong to neither."""

    def __init__(self, form: ReasoningFormat, *, is_open: bool) -> None:
        """`is_open`: the prompt opened the block (`ReasoningFormat.is_open`). Else only an answer that begins with the
        tag has reasoning."""
        self._form = form
        self._pending = ""
        self._phase = Phase.INSIDE if is_open else Phase.BEFORE
        self._started = False  # some reasoning was given

    @property
    def active(self) -> bool:
        """False once all that follows is content."""
        return self._phase is not Phase.CONTENT

    def push(self, text: str) -> tuple[str, str]:
        """Return what is certain by now: more of the reasoning, more of the content."""
        self._pending += text
        return self._split(last=False)

    def finish(self) -> tuple[str, str]:
        """The text has ended: return what was held back."""
        return self._split(last=True)

    def _split(self, *, last: bool) -> tuple[str, str]:
        if self._phase is Phase.BEFORE:
            self._look_for_start(last)
        reasoning = self._reasoning(last) if self._phase is Phase.INSIDE else ""
        return reasoning, self._content()

    def _look_for_start(self, last: bool) -> None:
        text = self._pending.lstrip()
        if text.startswith(self._form.start):
            self._phase, self._pending = Phase.INSIDE, text.removeprefix(self._form.start)
        elif last or not self._form.start.startswith(text):
            self._phase = Phase.CONTENT

    def _reasoning(self, last: bool) -> str:
        if not self._started:
            self._pending = self._pending.lstrip("\n")
        text, end, rest = self._pending.partition(self._form.end)
        if end:
            self._phase, self._pending = Phase.GAP, rest
            return text.rstrip("\n")
        self._pending = "" if last else beginning_of(self._form.end, text, "\n")
        text = text[: len(text) - len(self._pending)]
        self._started = self._started or bool(text)
        return text

    def _content(self) -> str:
        if self._phase is Phase.GAP:
            self._pending = self._pending.lstrip("\n")
            self._phase = Phase.CONTENT if self._pending else Phase.GAP
        if self._phase is not Phase.CONTENT:
            return ""
        text, self._pending = self._pending, ""
        return text
