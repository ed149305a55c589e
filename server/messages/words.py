"""Names of fields as Anthropic's API has them, where chat completions have others: errors name the client's own."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from engines.errors import InvalidRequest

NAMES = (
    (r"^(tools\[\d+\])\.function\.parameters\b", r"\1.input_schema"),
    (r"^(tools\[\d+\])\.function\b", r"\1"),
    (r"^tool_choice\.function\b", "tool_choice"),
    (r"^response_format(\.json_schema)?\b", "output_config.format"),
    (r"^reasoning_effort$", "output_config.effort"),
    (r"^thinking_token_budget$", "thinking.budget_tokens"),
    (r"^stop\b(?!_)", "stop_sequences"),
)
"""Names in chat completions, and what the client called them."""


def renamed(path: str) -> str:
    """`tools[0].input_schema` for `tools[0].function.parameters`."""
    for pattern, name in NAMES:
        path = re.sub(pattern, name, path)
    return path


@contextmanager
def in_own_words() -> Iterator[None]:
    """Errors about fields of the chat that a request is answered as tell of the fields that the client gave."""
    try:
        yield
    except InvalidRequest as error:
        if error.param is not None:
            name = renamed(error.param)
            error.message = error.message.replace(f"'{error.param}'", f"'{name}'")
            error.param = name
        raise
