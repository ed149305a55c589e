"""Which form of tool calls a model writes."""

import re
from collections.abc import Mapping
from dataclasses import replace

from engines.params.parsers import ToolCallParser
from engines.text.tool_families import FAMILIES, HERMES, MISTRAL, MISTRAL_NAMED, NAMED
from engines.text.tool_prompts import PROMPTS, tools_prompt_of
from engines.text.tool_syntax import ToolFormat

MORE_MARKERS = ("[ARGS]", "[CALL_ID]")
READS_TOOLS_OF_MESSAGE = re.compile(r"""message(\.|\[["'])tools\b|["']tools["'] in message""")
"""Templates that show the tools that a system message brings, as JSON: those of Phi 4."""


def find_tool_format(
    chat_template: str | None, added_tokens: Mapping[str, int], parser: ToolCallParser | None = None
) -> ToolFormat | None:
    """Return the form in which a model writes calls; None where `parser` is "none".

    `chat_template` is the one used for requests with tools; `added_tokens` is the tokenizer's `get_added_vocab()`. A
    model whose template knows no tools, or a form of calls that we do not, is asked for calls in Hermes's form by a
    system message of ours. One whose template shows calls but no tools is told of the tools by such a message, and so
    is one whose template holds the name of such a message (`tools_prompt`).
    """
    if parser == "none":
        return None
    template = chat_template or ""
    chosen = tools_prompt_of(template)
    if chosen is not None and parser is None:
        return replace(_bound(PROMPTS[chosen].form, added_tokens), native=False, prompt=chosen)
    known = next((form for form in FAMILIES if form.known_by and re.search(form.known_by, template)), None)
    form = NAMED[parser] if parser else known or HERMES
    shows_tools = re.search(r"\btools\b", READS_TOOLS_OF_MESSAGE.sub("", template)) is not None
    native = (shows_tools or "tool_calls" in template) and (parser is not None or known is not None)
    bound = _bound(_variant(form, template, added_tokens), added_tokens)
    shows_calls = "tool_calls" in template
    return replace(bound, native=native, shows_calls=shows_calls, shows_tools=native and shows_tools)


def _variant(form: ToolFormat, template: str, added_tokens: Mapping[str, int]) -> ToolFormat:
    """Newer models of Mistral write the name before the arguments."""
    return MISTRAL_NAMED if form is MISTRAL and ("[ARGS]" in template or "[ARGS]" in added_tokens) else form


def _bound(form: ToolFormat, added_tokens: Mapping[str, int]) -> ToolFormat:
    markers = {*form.markers, *MORE_MARKERS} if form.name == "mistral" else form.markers
    token_ids = {marker: added_tokens[marker] for marker in markers if marker in added_tokens}
    return replace(form, token_ids=token_ids)
