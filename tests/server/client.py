"""A client of an app in the test's own process."""

import time
from typing import Any, Self

from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx2 import Response

from engines.echo import EchoEngine, echo_tokenizer
from engines.errors import EngineUnavailable
from engines.params.deploy import DeployParams
from server.app import create_app
from server.deps import Parts
from server.inference.inference import Inference
from server.parts import make_parts
from tests.server.states import new_state

__all__ = ["ReadyClient", "Response", "echo_client"]


class ReadyClient(TestClient):
    """Entered, it waits until the engine and its adapters are there. `parts` are those of its server."""

    def __init__(self, parts: Parts, **options: Any) -> None:
        super().__init__(create_app(parts), **{"base_url": "http://localhost", **options})
        self.parts = parts

    app: FastAPI

    def __enter__(self) -> Self:
        super().__enter__()
        lifecycle = self.parts[Inference].lifecycle
        while not lifecycle.failed.is_set():
            try:
                lifecycle.check_ready()
                break
            except EngineUnavailable:
                time.sleep(0.001)
        return self


def echo_client(
    engine: EchoEngine | None = None,
    *,
    generation_config: dict[str, Any] | None = None,
    raise_server_exceptions: bool = True,
    **params: Any,
) -> ReadyClient:
    """A client, to be entered, of a server on EchoEngine with these parameters of `deploy`, and a state of its own."""
    state = {} if "without_state" in params else {"state_dir": new_state()}
    given = DeployParams(**{"model": "echo"} | state | params)
    parts = make_parts(engine or EchoEngine(), echo_tokenizer(), given, generation_config)
    return ReadyClient(parts, raise_server_exceptions=raise_server_exceptions)
