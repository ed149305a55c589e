"""How a model's answers are constrained and read: reasoning first, then content and tool calls."""

from collections.abc import Mapping
from dataclasses import dataclass

from engines.answers.parser import AnswerParser, answer_parser
from engines.errors import UnsupportedParameter
from engines.params.parsers import ReasoningParserName, ToolCallParser
from engines.text.reasoning_formats import ReasoningFormat, find_reasoning_format
from engines.text.tool_formats import find_tool_format
from engines.text.tool_syntax import ToolFormat
from engines.types import Structured
from server.model.constraint import Constraint
from server.model.tool_grammar import constrain
from server.model.tools import NO_TOOLS, ToolRequest


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """How a model writes reasoning and tool calls."""

    reasoning: ReasoningFormat | None
    tools: ToolFormat | None

    def plan(self, tools: ToolRequest, structured: Structured | None, prompt: str) -> "OutputPlan":
        """Settle how the answer to one request is constrained and read. `prompt` is the rendered text of it, and
        `structured` has been checked.

        Takes its time with large tools: call it in a thread where there are any.
        """
        if tools.mode == "required" and self.tools is None:
            message = "This server leaves tool calls in the text (tool_call_parser is 'none'): none can be required"
            raise UnsupportedParameter(message, param="tool_choice")
        reasoning = self.reasoning if self.reasoning is not None and not self.reasoning.is_over(prompt) else None
        is_open = reasoning is not None and reasoning.is_open(prompt)
        made = constrain(tools, self.tools, structured, reasoning, reasoning_open=is_open)
        return OutputPlan(
            structured=structured if made is None else made.structured,
            unchecked=made,
            tools=tools,
            reasoning=reasoning,
            reasoning_open=is_open,
            form=self.tools if tools.mode != "none" else None,
            channels=self._channels(),
        )

    def _channels(self) -> frozenset[int] | None:
        """The tokens that mark channels, where the model writes OpenAI's harmony format."""
        forms = [form for form in (self.reasoning, self.tools) if form is not None and form.channels]
        return frozenset(token_id for form in forms for token_id in form.token_ids.values()) if forms else None


def text_plan(structured: Structured | None) -> "OutputPlan":
    """Parser of an output that is plain text."""
    return OutputPlan(
        structured=structured, unchecked=None, tools=NO_TOOLS, form=None, reasoning=None, reasoning_open=False
    )


def find_output_format(
    chat_template: str | None,
    added_tokens: Mapping[str, int],
    *,
    tool_call_parser: ToolCallParser | None = None,
    reasoning_parser: ReasoningParserName | None = None,
) -> OutputFormat:
    """Find the format by the chat template and the tokenizer's `get_added_vocab()`, unless parameters give it."""
    return OutputFormat(
        reasoning=find_reasoning_format(chat_template, added_tokens, reasoning_parser),
        tools=find_tool_format(chat_template, added_tokens, tool_call_parser),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPlan:
    """How the answer to one request is constrained and read."""

    structured: Structured | None
    """Value for `Sampling.structured`."""
    unchecked: Constraint | None
    """The same, where it must be checked first."""
    tools: ToolRequest
    form: ToolFormat | None
    reasoning: ReasoningFormat | None
    reasoning_open: bool
    channels: frozenset[int] | None = None
    """The tokens that mark channels; None where the model writes none."""

    def parser(self) -> AnswerParser:
        """Return a parser for one of the n outputs."""
        return answer_parser(
            self.form,
            {tool.name: tool.parameters for tool in self.tools.callable},
            self.reasoning,
            reasoning_open=self.reasoning_open,
            channels=self.channels is not None,
            parallel=self.tools.parallel,
        )

    @property
    def marker_ids(self) -> frozenset[int]:
        """Special tokens that the parser needs: they stay in the text even where special tokens are skipped."""
        forms = [form for form in (self.form, self.reasoning) if form is not None]
        return (self.channels or frozenset()).union(*(form.token_ids.values() for form in forms))
