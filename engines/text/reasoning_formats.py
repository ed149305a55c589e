"""How models mark the reasoning that they write before an answer, as their chat templates tell."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from engines.params.parsers import ReasoningParserName


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFormat:
    """Reasoning is the text between two tags."""

    name: ReasoningParserName
    start: str
    end: str
    inside: str = "\n"
    """Written between the tags and the reasoning."""
    after: str = "\n\n"
    """Written behind the reasoning, before the answer."""
    answer: str = ""
    """Written before an answer, with reasoning or without."""
    channels: bool = False
    """Every part of an answer has a header that tells what it is: OpenAI's harmony. `engines.answers.channels` reads
    it."""
    markers: tuple[str, ...] = ()
    """What may be a token of its own, where it is not the whole tag."""
    token_ids: Mapping[str, int] = field(default_factory=dict)
    """The markers that are single tokens of the model's vocabulary."""

    def is_open(self, prompt: str) -> bool:
        """Whether the prompt ends by opening a reasoning block, so that the answer begins with reasoning."""
        return prompt.rstrip().endswith(self.start)

    def is_over(self, prompt: str) -> bool:
        """Whether the prompt ends with a finished, usually empty, block: reasoning was turned off."""
        return not self.channels and prompt.rstrip().endswith(self.end)

    def block(self, reasoning: str, *, is_open: bool) -> str:
        """Reasoning as the model writes it, up to the answer. `is_open`: the prompt has begun it."""
        begin = "" if is_open else f"{self.start}{self.inside}"
        return f"{begin}{reasoning}{self.inside}{self.end}{self.after}"


DEEPSEEK_R1 = ReasoningFormat(name="deepseek_r1", start="<think>", end="</think>")
FORMATS = (
    ReasoningFormat(
        name="openai_gptoss",
        start="<|channel|>analysis<|message|>",
        end="<|end|>",
        inside="",
        after="<|start|>assistant",
        answer="<|channel|>final<|message|>",
        channels=True,
        markers=("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"),
    ),
    DEEPSEEK_R1,
    ReasoningFormat(name="mistral", start="[THINK]", end="[/THINK]"),
    ReasoningFormat(name="seed_oss", start="<seed:think>", end="</seed:think>"),
    ReasoningFormat(
        name="gemma4", start="<|channel>thought", end="<channel|>", after="", markers=("<|channel>", "<channel|>")
    ),
    ReasoningFormat(name="granite", start="Here is my thought process:", end="Here is my response:"),
)
"""The first that the template tells of is meant."""
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
    found = (form for form in FORMATS if (form.name == parser if parser else _is_told(form, template)))
    form = next(found, None)
    if form is None:
        return None
    markers = form.markers or (form.start, form.end)
    return replace(form, token_ids={marker: added_tokens[marker] for marker in markers if marker in added_tokens})


def _is_told(form: ReasoningFormat, template: str) -> bool:
    return "<|channel|>" in template if form.channels else form.end in template


def reasoning_field(chat_template: str) -> str:
    """The field in which a template looks for a message's reasoning; the first of the API's where it looks in none."""
    read = (name for name in FIELDS if re.search(rf"""(\.|\[["']|get\(["']){name}\b""", chat_template))
    return next(read, FIELDS[0])
