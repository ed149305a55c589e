"""A server on EchoEngine in its own process, and the SDKs of OpenAI and Anthropic as its clients."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest

from server.store import database, spare
from tests.server.process import ServerProcess
from tests.until import until


@pytest.fixture(scope="session", autouse=True)
def databases_are_light() -> Iterator[None]:
    """They need not outlive the machine, nor hold a megabyte each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "SYNCHRONOUS", "OFF")
        patch.setattr(spare, "SIZE", 4096)
        yield


@pytest.fixture(scope="session")
def echo_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that all tests share: they must leave it as it was. Its state is its own: tests start others, too."""
    state = tmp_path_factory.mktemp("shared-state")
    server = ServerProcess.echo(params={"verbose": False, "max_body_size": 8, "state_dir": str(state)})
    try:
        url = server.wait_until_listening()
        until(server.is_ready)
        yield url
    finally:
        server.close()


@pytest.fixture
def start_echo() -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers of a test's own; see `echo_server.py` for the settings."""
    servers: list[ServerProcess] = []

    def start(**settings: Any) -> ServerProcess:
        servers.append(ServerProcess.echo(**settings))
        servers[-1].wait_until_listening()
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def openai_client(echo_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{echo_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_openai_client(echo_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{echo_url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def anthropic_client(echo_url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=echo_url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_anthropic_client(echo_url: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=echo_url, api_key="none", max_retries=0) as client:
        yield client
