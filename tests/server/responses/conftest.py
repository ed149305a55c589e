"""An app on EchoEngine in the test's own process, which says the last message back."""

from tests.server.openai.conftest import api, make_api

__all__ = ["api", "make_api"]
