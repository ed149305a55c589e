"""Apps on EchoEngine whose model has a head, or none."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engines.echo import EchoEngine
from engines.types import Head, PoolingRequest
from tests.server.client import ReadyClient, echo_client

Made = Callable[..., ReadyClient]


class Recording(EchoEngine):
    """Remembers what it was asked."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.requests: list[PoolingRequest] = []

    async def pool(self, request: PoolingRequest) -> list[float]:
        self.requests.append(request)
        return await super().pool(request)

    def texts(self) -> list[str]:
        """The prompts so far, which are one token a byte, but for the three special ones."""
        marks = {256: b"<|endoftext|>", 257: b"<|im_start|>", 258: b"<|im_end|>"}
        return [b"".join(marks.get(id) or bytes([id]) for id in one.prompt_ids).decode() for one in self.requests]


@pytest.fixture
def make() -> Iterator[Made]:
    """Makes servers of a test's own: with `labels`, the model has a head."""
    clients: list[ReadyClient] = []

    def make(*labels: str, engine: EchoEngine | None = None, **params: Any) -> ReadyClient:
        problem_type = params.pop("problem_type", None)
        head = Head(labels=labels, problem_type=problem_type, padding=params.pop("padding", None)) if labels else None
        clients.append(echo_client(engine or EchoEngine(head=head), **params))
        return clients[-1].__enter__()

    yield make
    for client in clients:
        client.__exit__(None, None, None)
