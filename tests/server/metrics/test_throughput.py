"""The log line about throughput: what went through since the last one, and nothing while nothing does."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from engines.echo import EchoEngine, echo_tokenizer
from engines.params.deploy import DeployParams
from engines.types import EngineStats
from server.inference.inference import Inference
from server.metrics import throughput
from server.metrics.metrics import Metrics
from server.parts import make_parts

INTERVAL = 20.0


class Engine(EchoEngine):
    now = EngineStats()

    def stats(self) -> EngineStats:
        return self.now


@pytest.fixture
def log_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[..., Awaitable[list[list[str]]]]:
    """Logs while one function after another tells what happens in each interval; returns the lines of each."""
    caplog.set_level(logging.INFO, logger="server.metrics.throughput")

    async def run(*events: Callable[[Metrics, Engine], None]) -> list[list[str]]:
        engine = Engine()
        inference = make_parts(engine, echo_tokenizer(), DeployParams(model="echo"))[Inference]
        clock, left, told = [100.0], list(events), []

        async def sleep(seconds: float) -> None:
            told.append([record.getMessage() for record in caplog.records])
            caplog.clear()
            if not left:
                raise asyncio.CancelledError
            left.pop(0)(inference.metrics, engine)
            clock[0] += seconds

        monkeypatch.setattr(throughput, "asyncio", SimpleNamespace(sleep=sleep))
        monkeypatch.setattr(throughput, "time", SimpleNamespace(monotonic=lambda: clock[0]))
        with pytest.raises(asyncio.CancelledError):
            await throughput.log_throughput(engine, inference.metrics, INTERVAL)
        return told[1:]

    return run


def nothing(metrics: Metrics, engine: Engine) -> None:
    engine.now = EngineStats()


def tokens(metrics: Metrics, engine: Engine) -> None:
    metrics.requests.count_prompt(200)
    metrics.requests.of_tokens.generated += 50


def waiting(metrics: Metrics, engine: Engine) -> None:
    engine.now = EngineStats(running=2, waiting=3, kv_cache_usage=0.125)


async def test_an_idle_server_says_nothing(log_of: Callable[..., Awaitable[list[list[str]]]]) -> None:
    assert await log_of(nothing, nothing) == [[], []]


async def test_tokens_are_told_once_as_a_rate_over_their_interval(
    log_of: Callable[..., Awaitable[list[list[str]]]],
) -> None:
    line = "10.0 prompt tokens/s, 2.5 generated tokens/s, 0 running, 0 waiting, KV cache 0.0% full"
    assert await log_of(nothing, tokens, nothing, tokens) == [[], [line], [], [line]]


async def test_requests_that_wait_are_told_though_no_token_comes(
    log_of: Callable[..., Awaitable[list[list[str]]]],
) -> None:
    line = "0.0 prompt tokens/s, 0.0 generated tokens/s, 2 running, 3 waiting, KV cache 12.5% full"
    assert await log_of(waiting, nothing) == [[line], []]
