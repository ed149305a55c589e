"""The names that this API has for what a chat has too, for errors of the steps that both share."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager

from engines.errors import TuneserveError

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
"""Names of `include`."""

RENAMED = (
    (re.compile(r"^messages\b.*"), "input"),
    (re.compile(r"^(max_tokens|max_completion_tokens)$"), "max_output_tokens"),
    (re.compile(r"^response_format\.json_schema\b"), "text.format"),
    (re.compile(r"^response_format\b"), "text.format"),
    (re.compile(r"^verbosity$"), "text.verbosity"),
    (re.compile(r"^reasoning_effort$"), "reasoning.effort"),
    (re.compile(r"^(tools\[\d+\])\.function\b"), r"\1"),
    (re.compile(r"^tool_choice\.allowed_tools\b"), "tool_choice"),
    (re.compile(r"^(tool_choice\b.*?)\.function\b"), r"\1"),
)
"""Beginning of a field's path in a chat -> in a response. A message has no place of its own in the input."""


def renamed(path: str) -> str:
    """`tools[0].name` for `tools[0].function.name`."""
    for pattern, name in RENAMED:
        path = pattern.sub(name, path)
    return path


@contextmanager
def in_own_words() -> Iterator[None]:
    """Name the field at fault as this API does, in the error's `param` and where its message quotes it."""
    try:
        yield
    except TuneserveError as error:
        if error.param is None or (name := renamed(error.param)) == error.param:
            raise
        told = copy.copy(error)
        told.param = name
        told.message = error.message.replace(f"'{error.param}'", f"'{name}'")
        raise told from error
