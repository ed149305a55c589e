"""An app on EchoEngine in the test's own process, for answers that are looked at byte by byte."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engines.echo import EchoEngine
from tests.server.api import Api
from tests.server.client import ReadyClient, echo_client


@pytest.fixture
def make_api() -> Iterator[Callable[..., Api]]:
    """Makes APIs of a test's own: `params` for the server, `generation_config` for the model."""
    clients: list[ReadyClient] = []

    def make(
        *, generation_config: dict[str, Any] | None = None, engine: EchoEngine | None = None, **params: Any
    ) -> Api:
        clients.append(echo_client(engine, generation_config=generation_config, **params))
        clients[-1].__enter__()
        return Api(clients[-1])

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with echo_client() as client:
        yield Api(client)
