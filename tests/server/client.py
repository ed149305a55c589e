"""A client of an app in the test's own process."""

import time
from typing import Any, Self

from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx2 import Response

from engines.errors import EngineUnavailable
from server.app import create_app
from server.deps import Parts
from server.inference.inference import Inference

__all__ = ["ReadyClient", "Response"]


class ReadyClient(TestClient):
    """Entered, it waits until the engine and its adapters are there. `parts` are those of its server."""

    def __init__(self, parts: Parts, **options: Any) -> None:
        super().__init__(create_app(parts), **options)
        self.parts = parts

    app: FastAPI

    def __enter__(self) -> Self:
        super().__enter__()
        lifecycle = self.parts[Inference].lifecycle
        while not lifecycle.start_failed.is_set():
            try:
                lifecycle.check_ready()
                break
            except EngineUnavailable:
                time.sleep(0.001)
        return self
