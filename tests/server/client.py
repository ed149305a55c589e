"""A client of an app in the test's own process."""

import time
from typing import Self

from fastapi.testclient import TestClient

from engines.errors import EngineUnavailable


class ReadyClient(TestClient):
    """Entered, it waits until the engine and its adapters are there."""

    def __enter__(self) -> Self:
        super().__enter__()
        lifecycle = self.app.state.serving.lifecycle
        while not lifecycle.start_failed.is_set():
            try:
                lifecycle.check_ready()
                break
            except EngineUnavailable:
                time.sleep(0.001)
        return self
