"""The fixtures of the server's own tests: a server process, and the SDK as its client."""

from tests.server.conftest import async_openai_client, echo_url, openai_client, start_echo

__all__ = ["async_openai_client", "echo_url", "openai_client", "start_echo"]
