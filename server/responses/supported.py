"""What is refused of a request for a response whatever the model: fields that this server cannot honour."""

from engines.errors import UnsupportedParameter
from server.responses.schema import PromptFields

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
