"""What one request leaves behind: counted once, whatever its outputs and however it ends."""

from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from engines.errors import EngineFailure
from engines.types import BATCH_PRIORITY, FinishReason, GenerationRequest, Sampling, TokenOutput
from server.metrics.families import PREFIX, Families
from server.metrics.requests import RequestMetrics, Watch

TIMES = ("time_to_first_token", "request_queue_time", "request_prefill_time", "request_decode_time")
ALL_TIMES = (*TIMES, "request_inference_time", "request_time_per_output_token", "e2e_request_latency")


@dataclass
class Bench:
    """Metrics, and a clock that stands until it is set."""

    now: float = 100.0
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.metrics = RequestMetrics(Families(self.registry, {"model_name": "m", "engine": "e"}))

    def watch(self, *, n: int = 1, prompt: int = 7, max_new_tokens: int = 50, priority: int = 0) -> Any:
        sampling = Sampling(max_new_tokens=max_new_tokens)
        request = GenerationRequest(request_id="r", prompt_ids=[1] * prompt, n=n, sampling=sampling, priority=priority)
        return self.metrics.watch(request, None, lambda: self.now)

    def step(self, watch: Watch, at: float, index: int = 0, tokens: int = 1, **facts: Any) -> None:
        self.now = 100.0 + at
        watch.see(TokenOutput(index=index, token_ids=(5,) * tokens, **facts))

    def value(self, name: str, **labels: str) -> float:
        found = self.registry.get_sample_value(PREFIX + name, {"model_name": "m", "engine": "e", **labels})
        return 0.0 if found is None else found

    def count(self, name: str) -> float:
        return self.value(f"{name}_count")

    def sum(self, name: str) -> float:
        return self.value(f"{name}_sum")

    def finished(self) -> dict[str, float]:
        reasons = ("stop", "length", "abort", "error")
        counts = {reason: self.value("request_success_total", finished_reason=reason) for reason in reasons}
        return {reason: count for reason, count in counts.items() if count}


def test_the_phases_of_a_request_add_up_to_all_of_it() -> None:
    bench = Bench()
    with bench.watch() as watch:
        bench.step(watch, 3, cached_tokens=2, queue_seconds=1.0)
        bench.step(watch, 5)
        bench.step(watch, 9, finish_reason=FinishReason.STOP, preemptions=2)
    sums = {
        "time_to_first_token_seconds": 3,
        "request_queue_time_seconds": 1,
        "request_prefill_time_seconds": 2,
        "request_decode_time_seconds": 6,
        "request_inference_time_seconds": 8,
        "e2e_request_latency_seconds": 9,
        "request_time_per_output_token_seconds": 3,
        "request_prompt_tokens": 7,
        "request_prefill_kv_computed_tokens": 5,
        "request_generation_tokens": 3,
        "request_max_num_generation_tokens": 3,
        "request_params_n": 1,
        "request_params_max_tokens": 50,
        "request_num_preemptions": 2,
    }
    assert {name: bench.sum(name) for name in sums} == sums
    assert {bench.count(name) for name in sums} == {1}
    assert bench.value("prompt_tokens_cached_total") == 2
    assert bench.finished() == {"stop": 1}


def test_outputs_are_counted_each_and_what_they_share_once() -> None:
    bench = Bench()
    with bench.watch(n=2) as watch:
        bench.step(watch, 1, index=0, cached_tokens=0, queue_seconds=0.0)
        bench.step(watch, 2, index=1)
        bench.step(watch, 3, index=1, finish_reason=FinishReason.LENGTH, preemptions=0)
        bench.step(watch, 7, index=0, finish_reason=FinishReason.STOP, preemptions=1)
    assert (bench.count("request_generation_tokens"), bench.sum("request_generation_tokens")) == (2, 4)
    assert bench.sum("request_generation_tokens") == bench.value("generation_tokens_total")
    assert (bench.count("request_prompt_tokens"), bench.sum("request_prompt_tokens")) == (1, 7)
    assert bench.sum("request_prompt_tokens") == bench.value("prompt_tokens_total")
    assert (bench.count("request_params_n"), bench.sum("request_params_n")) == (1, 2)
    assert (bench.count("request_num_preemptions"), bench.sum("request_num_preemptions")) == (2, 1)
    assert (bench.count("request_decode_time_seconds"), bench.sum("request_decode_time_seconds")) == (1, 6)
    assert bench.finished() == {"stop": 1, "length": 1}


def aborted(bench: Bench, *, after: int) -> None:
    """A request for two outputs whose client leaves after so many steps; the second of them ends one."""

    def steps() -> Generator[None, None, None]:
        with bench.watch(n=2) as watch:
            bench.step(watch, 1, index=0, cached_tokens=0, queue_seconds=0.0)
            yield
            bench.step(watch, 2, index=1, finish_reason=FinishReason.STOP, preemptions=0)
            yield

    running = steps()
    for _ in range(after):
        next(running)
    running.close()


def test_an_aborted_request_is_counted_once_with_what_it_got() -> None:
    bench = Bench()
    aborted(bench, after=2)
    assert bench.finished() == {"stop": 1, "abort": 1}
    assert bench.count("request_generation_tokens") == bench.sum("request_generation_tokens") == 2
    for name in ("request_prompt_tokens", "request_params_n", *(f"{time}_seconds" for time in TIMES)):
        assert bench.count(name) == 1, name


def test_of_an_output_that_never_began_only_its_end_is_counted() -> None:
    bench = Bench()
    aborted(bench, after=1)
    assert bench.finished() == {"abort": 2}
    assert bench.count("request_generation_tokens") == 1


def test_a_request_that_is_aborted_while_it_waits_has_no_sizes_and_no_phases() -> None:
    bench = Bench()
    with suppress(GeneratorExit), bench.watch():
        raise GeneratorExit
    assert bench.finished() == {"abort": 1}
    assert bench.count("e2e_request_latency_seconds") == 1
    for name in (
        "request_prompt_tokens",
        "request_params_n",
        "request_generation_tokens",
        "request_queue_time_seconds",
    ):
        assert bench.count(name) == 0, name


def test_a_request_that_fails_half_way_is_counted_as_an_error_with_what_it_got() -> None:
    bench = Bench()
    with suppress(EngineFailure), bench.watch() as watch:
        bench.step(watch, 1, cached_tokens=0, queue_seconds=0.0)
        raise EngineFailure("died")
    assert bench.finished() == {"error": 1}
    assert bench.count("request_generation_tokens") == bench.count("request_decode_time_seconds") == 1


def test_a_request_of_a_batch_is_counted_and_not_timed() -> None:
    bench = Bench()
    with bench.watch(priority=BATCH_PRIORITY) as watch:
        bench.step(watch, 1, cached_tokens=0, queue_seconds=0.0)
        bench.step(watch, 2, finish_reason=FinishReason.STOP, preemptions=0)
    assert bench.count("request_prompt_tokens") == bench.count("request_generation_tokens") == 1
    assert [bench.count(f"{name}_seconds") for name in (*ALL_TIMES, "inter_token_latency")] == [0] * 8
