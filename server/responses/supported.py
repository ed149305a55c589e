"""What a request for a response may say that this server cannot honour, whatever the model: refused, or told."""

from collections.abc import Iterator

from engines.errors import UnsupportedParameter
from server.responses.schema import PromptFields, ResponsesRequest
from server.responses.words import ENCRYPTED, LOGPROBS

UNSUPPORTED = {
    "prompt": "There are no stored prompts here: send 'instructions' and 'input'.",
    "context_management": "The context is not compacted: 'truncation' may drop what is oldest.",
}
"""Fields that ask for something where they are not null or false, and why they are refused."""


def check_supported(body: PromptFields) -> None:
    """Raises UnsupportedParameter."""
    for name, reason in UNSUPPORTED.items():
        if getattr(body, name, None):
            raise UnsupportedParameter(f"{name!r} is not supported. {reason}", param=name)


def without_effect(body: ResponsesRequest) -> Iterator[str]:
    """Names of fields that are taken and change nothing: there are no tools of the server, and no images."""
    if body.max_tool_calls is not None:
        yield "max_tool_calls"
    if set(body.include) - {ENCRYPTED, LOGPROBS}:
        yield "include"
    if body.summary == "concise":
        yield "reasoning.summary"
