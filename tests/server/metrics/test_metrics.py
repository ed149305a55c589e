"""Metrics: what a request leaves behind, in the format that Prometheus reads."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from engines.echo import EchoEngine, EchoFaults, echo_tokenizer
from engines.errors import EngineFailure, QueueFull
from engines.params.deploy import DeployParams
from engines.types import GenerationRequest, Sampling, TokenOutput
from server.app import create_app
from server.inference.inference import Inference
from server.parts import make_parts

LABELS = {"model_name": "echo", "engine": "pt"}


class Watched:
    """An engine and the metrics of what it is asked."""

    def __init__(self) -> None:
        self.engine = EchoEngine(max_requests=1)
        self.parts = make_parts(self.engine, echo_tokenizer(), DeployParams(model="echo"))
        self.metrics = self.parts[Inference].metrics

    async def outputs(
        self, text: str = "abc", *, n: int = 1, max_new_tokens: int = 100
    ) -> AsyncGenerator[TokenOutput, None]:
        request = GenerationRequest(
            request_id="r", prompt_ids=list(text.encode()), n=n, sampling=Sampling(max_new_tokens=max_new_tokens)
        )
        with self.metrics.watch(request) as watch:
            async with aclosing(self.engine.generate(request)) as outputs:
                async for output in outputs:
                    watch.see(output)
                    yield output

    def value(self, name: str, **labels: str) -> float | None:
        families = text_string_to_metric_families(self.metrics.exposition().decode())
        samples = (sample for family in families for sample in family.samples)
        return next(
            (sample.value for sample in samples if (sample.name, sample.labels) == (name, LABELS | labels)), None
        )


@pytest.fixture
async def watched() -> Watched:
    watched = Watched()
    await watched.engine.start()
    return watched


async def test_a_finished_request_is_counted_and_timed(watched: Watched) -> None:
    outputs = [output async for output in watched.outputs()]
    assert len(outputs) == 4  # a, b, c, the end
    expected = {
        "prompt_tokens_total": 3,
        "generation_tokens_total": 4,
        "time_to_first_token_seconds_count": 1,
        "inter_token_latency_seconds_count": 3,
        "e2e_request_latency_seconds_count": 1,
        "request_queue_time_seconds_count": 1,
    }
    assert {name: watched.value(f"tuneserve:{name}") for name in expected} == expected
    assert watched.value("tuneserve:request_success_total", finished_reason="stop") == 1
    assert watched.metrics.tokens == (3, 4)


async def test_each_of_n_outputs_is_counted_and_the_prompt_once(watched: Watched) -> None:
    assert [output async for output in watched.outputs(n=3, max_new_tokens=2)]
    assert watched.value("tuneserve:request_success_total", finished_reason="length") == 3
    assert watched.value("tuneserve:prompt_tokens_total") == 3
    assert watched.value("tuneserve:inter_token_latency_seconds_count") == 3


async def test_an_output_that_a_stop_string_ended_counts_as_stopped(watched: Watched) -> None:
    async for _ in watched.outputs():
        watched.engine.finish("r", 0)
    assert watched.value("tuneserve:request_success_total", finished_reason="stop") == 1


async def test_a_request_that_is_closed_early_counts_as_aborted_and_is_closed_below_too(watched: Watched) -> None:
    async with aclosing(watched.outputs(n=2)) as outputs:
        await anext(outputs)
        assert watched.value("tuneserve:num_requests_running") == 1
    assert watched.value("tuneserve:num_requests_running") == 0
    assert watched.value("tuneserve:request_success_total", finished_reason="abort") == 2


async def test_a_request_that_fails_half_way_counts_as_an_error(watched: Watched) -> None:
    watched.engine.faults = EchoFaults(die_after=1)
    with pytest.raises(EngineFailure):
        assert [output async for output in watched.outputs()]
    assert watched.value("tuneserve:request_success_total", finished_reason="error") == 1


async def test_a_request_that_was_not_taken_is_no_request(watched: Watched) -> None:
    async with aclosing(watched.outputs()) as running:
        await anext(running)
        with pytest.raises(QueueFull):
            await anext(watched.outputs())
        assert watched.value("tuneserve:request_success_total", finished_reason="error") is None
        assert watched.value("tuneserve:e2e_request_latency_seconds_count") == 0


def test_refused_requests_are_counted_by_reason_and_every_family_of_the_page_parses() -> None:
    watched = Watched()
    watched.engine.faults.start_delay = 60
    with TestClient(create_app(watched.parts), base_url="http://localhost") as client:
        assert client.get("/v1/models").status_code == client.get("/ready").status_code == 503
        reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    assert watched.value("tuneserve:admission_rejections_total", reason="unavailable") == 1
    names = {family.name for family in text_string_to_metric_families(reply.text)}
    assert {
        f"tuneserve:{name}"
        for name in (
            "num_requests_running",
            "num_requests_waiting",
            "kv_cache_usage_perc",
            "prompt_tokens",
            "generation_tokens",
            "prefix_cache_queries",
            "prefix_cache_hits",
            "request_success",
            "admission_rejections",
            "time_to_first_token_seconds",
            "inter_token_latency_seconds",
            "e2e_request_latency_seconds",
            "request_queue_time_seconds",
        )
    } <= names


async def test_no_series_tells_when_it_began(watched: Watched) -> None:
    assert [output async for output in watched.outputs()]
    page = watched.metrics.exposition().decode()
    assert "request_success_total" in page and "first_token_seconds_bucket" in page
    assert "_created" not in page


def test_two_apps_in_one_process_count_apart() -> None:
    one, two = Watched(), Watched()
    one.metrics.count_tokens(prompt=5)
    assert (one.value("tuneserve:prompt_tokens_total"), two.value("tuneserve:prompt_tokens_total")) == (5, 0)
