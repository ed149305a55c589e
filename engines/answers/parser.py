"""The parser of an answer: reasoning first, then content and calls; or channels."""

from collections.abc import Mapping
from typing import Any, Protocol

from engines.answers.call_parser import CallParser
from engines.answers.channels import ChannelParser
from engines.answers.deltas import Delta, joined
from engines.answers.reasoning import ReasoningParser
from engines.text.reasoning_formats import ReasoningFormat
from engines.text.tool_syntax import ToolFormat


class AnswerParser(Protocol):
    """`push` every piece of text, then `finish`; joined, the deltas are the same however the text was cut."""

    @property
    def called(self) -> bool:
        """Whether a tool was called: `finish_reason` is then "tool_calls" where it would be "stop"."""
        ...

    @property
    def done(self) -> bool:
        """Whether the answer is complete although the model may go on writing: generation can be ended."""
        ...

    def push(self, text: str) -> list[Delta]: ...

    def finish(self) -> list[Delta]:
        """Return what was held back. Where the output was cut short in a call, its arguments stay cut short."""
        ...


class OutputParser:
    """Reasoning first, then content and calls."""

    def __init__(self, reasoning: ReasoningParser | None = None, tools: CallParser | None = None) -> None:
        self._reasoning = reasoning
        self._tools = tools

    @property
    def called(self) -> bool:
        return self._tools is not None and self._tools.calls > 0

    @property
    def done(self) -> bool:
        return self._tools is not None and self._tools.done

    def push(self, text: str) -> list[Delta]:
        if self._reasoning is None or not self._reasoning.active:
            return self._read(text)
        reasoning, content = self._reasoning.push(text)
        return _reasoning(reasoning) + self._read(content)

    def finish(self) -> list[Delta]:
        reasoning, content = self._reasoning.finish() if self._reasoning is not None else ("", "")
        deltas = _reasoning(reasoning) + self._read(content)
        return deltas if self._tools is None else joined(deltas + self._tools.finish())

    def _read(self, content: str) -> list[Delta]:
        if not content:
            return []
        return [Delta(content=content)] if self._tools is None else self._tools.push(content)


def _reasoning(text: str) -> list[Delta]:
    return [Delta(reasoning_content=text)] if text else []


def answer_parser(
    form: ToolFormat | None,
    schemas: Mapping[str, Mapping[str, Any]],
    reasoning: ReasoningFormat | None,
    *,
    reasoning_open: bool,
    channels: bool,
    parallel: bool = True,
) -> AnswerParser:
    """A parser for one answer.

    form: how calls are written; None: none is looked for
    schemas: parameters of the tools that were offered, by their names
    reasoning, reasoning_open: how reasoning is marked, None where the prompt has ended it; whether the prompt began it
    channels: whether the model writes OpenAI's harmony
    parallel: whether more than one call is wanted
    """
    if channels:
        return ChannelParser(None if form is None else schemas, reasons=reasoning is not None, parallel=parallel)
    before = form.starts if form is not None and form.ends_reasoning else ()
    reader = ReasoningParser(reasoning, is_open=reasoning_open, before=before) if reasoning else None
    if form is None:
        return OutputParser(reader)
    return OutputParser(reader, CallParser(form, schemas, parallel=parallel))
