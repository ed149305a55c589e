"""The fixtures of the server's own tests: a server process, and the SDKs as its clients."""

from tests.server.conftest import (
    anthropic_client,
    async_anthropic_client,
    async_openai_client,
    echo_url,
    openai_client,
    start_echo,
)

__all__ = [
    "anthropic_client",
    "async_anthropic_client",
    "async_openai_client",
    "echo_url",
    "openai_client",
    "start_echo",
]
