"""Metrics: what a request leaves behind, in the format that Prometheus reads."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from engines.echo import EchoEngine, EchoFaults, echo_tokenizer
from engines.errors import EngineFailure, QueueFull
from engines.params.deploy import DeployParams
from engines.types import EngineStats, GenerationRequest, Sampling, StepSizes, TokenOutput
from server.app import create_app
from server.inference.inference import Inference
from server.parts import make_parts

LABELS = {"model_name": "echo", "engine": "pt"}


class Watched:
    """An engine and the metrics of what it is asked."""

    def __init__(self, engine: EchoEngine | None = None) -> None:
        self.engine = engine or EchoEngine(max_requests=1)
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
        "request_prefill_time_seconds_count": 1,
        "request_prompt_tokens_sum": 3,
        "request_generation_tokens_sum": 4,
        "request_params_n_sum": 1,
        "request_params_max_tokens_sum": 100,
        "request_num_preemptions_count": 1,
        "iteration_tokens_total_count": 4,
        "iteration_tokens_total_sum": 6,
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
        assert watched.value("tuneserve:request_success_total", finished_reason="error") == 0
        assert watched.value("tuneserve:e2e_request_latency_seconds_count") == 0


def test_refused_requests_are_counted_by_reason() -> None:
    watched = Watched()
    watched.engine.faults.start_delay = 60
    with TestClient(create_app(watched.parts), base_url="http://localhost") as client:
        assert client.get("/v1/models").status_code == client.get("/ready").status_code == 503
        reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    assert watched.value("tuneserve:admission_rejections_total", reason="unavailable") == 1


VLLMS: dict[str, tuple[str, set[str]]] = {
    "num_requests_running": ("gauge", set()),
    "num_requests_waiting": ("gauge", set()),
    "num_requests_waiting_by_reason": ("gauge", {"reason"}),
    "kv_cache_usage_perc": ("gauge", set()),
    "prefix_cache_queries": ("counter", set()),
    "prefix_cache_hits": ("counter", set()),
    "num_preemptions": ("counter", set()),
    "prompt_tokens": ("counter", set()),
    "prompt_tokens_cached": ("counter", set()),
    "generation_tokens": ("counter", set()),
    "request_success": ("counter", {"finished_reason"}),
    "request_prompt_tokens": ("histogram", {"le"}),
    "request_generation_tokens": ("histogram", {"le"}),
    "request_max_num_generation_tokens": ("histogram", {"le"}),
    "request_prefill_kv_computed_tokens": ("histogram", {"le"}),
    "request_params_n": ("histogram", {"le"}),
    "request_params_max_tokens": ("histogram", {"le"}),
    "request_num_preemptions": ("histogram", {"le"}),
    "iteration_tokens_total": ("histogram", {"le"}),
    "time_to_first_token_seconds": ("histogram", {"le"}),
    "inter_token_latency_seconds": ("histogram", {"le"}),
    "request_time_per_output_token_seconds": ("histogram", {"le"}),
    "e2e_request_latency_seconds": ("histogram", {"le"}),
    "request_queue_time_seconds": ("histogram", {"le"}),
    "request_prefill_time_seconds": ("histogram", {"le"}),
    "request_decode_time_seconds": ("histogram", {"le"}),
    "request_inference_time_seconds": ("histogram", {"le"}),
}
"""Of vLLM 0.32: name, type, and labels beside `model_name` and `engine`."""


async def test_families_have_vllms_names_types_and_labels(watched: Watched) -> None:
    assert [output async for output in watched.outputs()]
    families = {
        family.name.removeprefix("tuneserve:"): family
        for family in text_string_to_metric_families(watched.metrics.exposition().decode())
    }
    found = {
        name: (families[name].type, {label for sample in families[name].samples for label in sample.labels})
        for name in VLLMS
    }
    assert found == {name: (kind, {"model_name", "engine", *labels}) for name, (kind, labels) in VLLMS.items()}


class BusyEngine(EchoEngine):
    """What an engine tells of itself."""

    def stats(self) -> EngineStats:
        sizes = StepSizes()
        for tokens in (1, 3, 8, 9, 100_000):
            sizes.add(tokens)
        waiting_for = {"adapter": 2, "constraint": 1, "share": 5}
        return EngineStats(waiting=6, waiting_for=waiting_for, step_sizes=sizes.counts, step_tokens=sizes.tokens)


class GuessingEngine(EchoEngine):
    def stats(self) -> EngineStats:
        return EngineStats(spec_drafts=5, spec_draft_tokens=15, spec_accepted={0: 4, 1: 2})


async def test_guesses_at_next_tokens_are_counted_where_there_are_any() -> None:
    prefix = "tuneserve:spec_decode_num_"
    guessing, plain = Watched(GuessingEngine()), Watched()
    names = ("drafts_total", "draft_tokens_total", "accepted_tokens_total")
    assert [guessing.value(prefix + name) for name in names] == [5, 15, 6]
    places = [guessing.value(prefix + "accepted_tokens_per_pos_total", position=str(place)) for place in range(3)]
    assert places == [4, 2, None]
    assert {plain.value(prefix + name) for name in names} == {None}


async def test_what_requests_wait_for_comes_to_all_that_wait() -> None:
    watched = Watched(BusyEngine())
    name = "tuneserve:num_requests_waiting_by_reason"
    reasons = {reason: watched.value(name, reason=reason) for reason in ("adapter", "constraint", "share", "capacity")}
    assert reasons == {"adapter": 2, "constraint": 1, "share": 3, "capacity": 0}
    assert sum(filter(None, reasons.values())) == watched.value("tuneserve:num_requests_waiting")


async def test_steps_are_told_by_the_tokens_they_computed() -> None:
    watched = Watched(BusyEngine())
    name = "tuneserve:iteration_tokens_total"
    found = {bound: watched.value(f"{name}_bucket", le=bound) for bound in ("1.0", "8.0", "16.0", "16384.0", "+Inf")}
    assert found == {"1.0": 1, "8.0": 3, "16.0": 4, "16384.0": 4, "+Inf": 5}
    assert (watched.value(f"{name}_count"), watched.value(f"{name}_sum")) == (5, 100_021)


async def test_the_cache_is_described_once_the_engine_has_started() -> None:
    watched = Watched()
    assert "cache_config_info" not in watched.metrics.exposition().decode()
    await watched.engine.start()
    page = watched.metrics.exposition().decode()
    assert 'tuneserve:cache_config_info{block_size="1",engine="pt",num_gpu_blocks="4096"} 1.0' in page


async def test_no_series_tells_when_it_began(watched: Watched) -> None:
    assert [output async for output in watched.outputs()]
    page = watched.metrics.exposition().decode()
    assert "request_success_total" in page and "first_token_seconds_bucket" in page
    assert "_created" not in page


def test_two_apps_in_one_process_count_apart() -> None:
    one, two = Watched(), Watched()
    one.metrics.requests.count_prompt(5)
    assert (one.value("tuneserve:prompt_tokens_total"), two.value("tuneserve:prompt_tokens_total")) == (5, 0)
