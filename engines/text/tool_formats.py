"""The forms in which models write tool calls: what each looks like, and which one a model uses."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

ToolCallParser = Literal["hermes", "llama3_json", "mistral", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """One call is `before + NAME + between + ARGUMENTS + after`; several are joined by `separator`."""

    name: ToolCallParser
    start: str
    """The marker in front of a call, or of a list of calls."""
    end: str | None = None
    """The marker after a call, where there is one."""
    first: str = ""
    """Written once, before the first call."""
    before: str
    between: str
    after: str = ""
    separator: str | None = None
    """None: the model was trained to make one call at a time."""
    last: str = ""
    """Written once, after the last call."""
    bare: bool = False
    """A call may come without its marker, as the first thing in an answer."""
    named: bool = False
    """The name may stand before the JSON, which then holds the arguments alone."""
    native: bool = True
    """The chat template shows tools and calls to the model. Otherwise we do: see `tool_messages`."""
    token_ids: Mapping[str, int] = field(default_factory=dict)
    """The markers that are single tokens of the model's vocabulary."""

    def written(self, name: str, arguments: str) -> str:
        return f"{self.before}{name}{self.between}{arguments}{self.after}"


HERMES = ToolFormat(
    name="hermes",
    start="<tool_call>",
    end="</tool_call>",
    before='<tool_call>\n{"name": "',
    between='", "arguments": ',
    after="}\n</tool_call>",
    separator="\n",
    bare=True,
)
LLAMA3_JSON = ToolFormat(
    name="llama3_json",
    start="<|python_tag|>",
    before='{"name": "',
    between='", "parameters": ',
    after="}",
    bare=True,
)
MISTRAL = ToolFormat(
    name="mistral",
    start="[TOOL_CALLS]",
    first="[TOOL_CALLS] [",
    before='{"name": "',
    between='", "arguments": ',
    after="}",
    separator=", ",
    last="]",
    named=True,
)
MISTRAL_NAMED = ToolFormat(
    name="mistral",
    start="[TOOL_CALLS]",
    before="[TOOL_CALLS]",
    between="[ARGS]",
    separator="",
    named=True,
)
FORMATS = {"hermes": HERMES, "llama3_json": LLAMA3_JSON}
NAMED_MARKERS = ("[ARGS]", "[CALL_ID]")


def find_tool_format(
    chat_template: str | None, added_tokens: Mapping[str, int], parser: ToolCallParser | None = None
) -> ToolFormat | None:
    """Return the form in which a model writes calls; None where `parser` is "none".

    `chat_template` is the one used for requests with tools; `added_tokens` is the tokenizer's `get_added_vocab()`. A
    model whose template knows no tools, or a form of calls that we do not, is asked for calls in Hermes's form by a
    system message of ours.
    """
    if parser == "none":
        return None
    template = chat_template or ""
    known = _written_by(template, added_tokens)
    form = _set(parser, template, added_tokens) if parser else known or HERMES
    native = re.search(r"\btools\b", template) is not None and (parser is not None or known is not None)
    return _bound(form, native, added_tokens)


def _set(parser: ToolCallParser, template: str, added_tokens: Mapping[str, int]) -> ToolFormat:
    return _mistral(template, added_tokens) if parser == "mistral" else FORMATS[parser]


def _written_by(template: str, added_tokens: Mapping[str, int]) -> ToolFormat | None:
    if "[TOOL_CALLS]" in template:
        return _mistral(template, added_tokens)
    if "<tool_call>" in template and not re.search(r"<function=|<arg_key>", template):
        return HERMES
    if "<|python_tag|>" in template or '"parameters": dictionary of argument name' in template:
        return LLAMA3_JSON
    return None


def _mistral(template: str, added_tokens: Mapping[str, int]) -> ToolFormat:
    return MISTRAL_NAMED if "[ARGS]" in template or "[ARGS]" in added_tokens else MISTRAL


def _bound(form: ToolFormat, native: bool, added_tokens: Mapping[str, int]) -> ToolFormat:
    markers = (form.start, form.end, *(NAMED_MARKERS if form.named else ()))
    return replace(form, native=native, token_ids={m: added_tokens[m] for m in markers if m and m in added_tokens})
