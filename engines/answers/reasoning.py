"""Splits the reasoning, which some models write before their answer, from the answer."""

from enum import Enum, auto

from engines.answers.markers import beginning_of_any, first_of
from engines.text.reasoning_formats import ReasoningFormat


class Phase(Enum):
    BEFORE = auto()
    INSIDE = auto()
    GAP = auto()
    CONTENT = auto()


class ReasoningParser:
    """Splits the text of an answer into reasoning and content. Line breaks around the reasoning belong to neither."""

    def __init__(self, form: ReasoningFormat, *, is_open: bool, before: tuple[str, ...] = ()) -> None:
        """`is_open`: the prompt opened the block (`ReasoningFormat.is_open`). Else only an answer that begins with the
        tag has reasoning. `before`: markers of content, before which the block ends though no tag says so."""
        self._form = form
        self._before = before
        self._pending = ""
        self._phase = Phase.INSIDE if is_open else Phase.BEFORE
        self._started = False  # some reasoning has been returned

    @property
    def active(self) -> bool:
        """False once all further text is content."""
        return self._phase is not Phase.CONTENT

    def push(self, text: str) -> tuple[str, str]:
        """Return the reasoning and the content that are certain by now."""
        self._pending += text
        return self._split(last=False)

    def finish(self) -> tuple[str, str]:
        """Return what was held back, at the end of the text."""
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
        ends, text = (self._form.end, *self._before), self._pending
        position, end = first_of(ends, text)
        if end:
            rest = text[position:] if end in self._before else text[position + len(end) :]
            self._phase, self._pending = Phase.GAP, rest
            return text[:position].rstrip("\n")
        self._pending = "" if last else beginning_of_any(ends, text, "\n")
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
