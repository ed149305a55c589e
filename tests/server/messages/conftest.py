"""An app on EchoEngine in the test's own process."""

from tests.server.openai.conftest import api, make_api

__all__ = ["api", "make_api"]
