"""Metrics of requests: how many, how large, how long.

Of a request's prompt everything is counted once, whatever its `n`; of its outputs, each. How long one of a batch takes
says nothing about how long others wait: it is left out of all times.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from engines.errors import TuneserveError
from engines.types import BATCH_PRIORITY, FinishReason, GenerationRequest, TokenOutput
from server.metrics.adapters import AdapterCounts
from server.metrics.families import Families
from server.metrics.tokens import TOKEN_SECONDS, TokenMetrics

FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
REQUEST_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
TOKENS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))
OUTPUTS = (1, 2, 5, 10, 20)
PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)
FINISHED_REASONS = ("stop", "length", "abort", "error")


class RequestMetrics:
    """The families, and the tokens so far."""

    def __init__(self, families: Families) -> None:
        histogram = families.histogram
        reasons = FINISHED_REASONS
        self._finished = families.counters(
            "request_success", "Outputs that ended, by reason.", "finished_reason", reasons
        )
        self._prompt_tokens = families.counter("prompt_tokens", "Tokens of the prompts that were answered.")
        self._cached_tokens = families.counter("prompt_tokens_cached", "Those of them that the prefix cache had.")
        self.of_tokens = TokenMetrics(families)
        self._prompted = 0
        # sizes
        self.prompt = histogram("request_prompt_tokens", "Tokens of a request's prompt.", TOKENS)
        self.computed = histogram(
            "request_prefill_kv_computed_tokens", "Tokens of a request's prompt that the prefix cache had not.", TOKENS
        )
        self.generated = histogram("request_generation_tokens", "Tokens of an output.", TOKENS)
        self.longest = histogram("request_max_num_generation_tokens", "Tokens of a request's longest output.", TOKENS)
        self.n = histogram("request_params_n", "Outputs that a request asks for.", OUTPUTS)
        self.max_tokens = histogram("request_params_max_tokens", "Most tokens that an output may have.", TOKENS)
        self.preemptions = histogram(
            "request_num_preemptions", "How often an output was put back to make room.", PREEMPTIONS
        )
        # times
        self.first_token = histogram(
            "time_to_first_token_seconds", "From the request to its first token.", FIRST_TOKEN_SECONDS
        )
        self.per_token = histogram(
            "request_time_per_output_token_seconds", "Between two tokens of one output, in the mean.", TOKEN_SECONDS
        )
        self.end_to_end = histogram(
            "e2e_request_latency_seconds", "From the request to its last token.", REQUEST_SECONDS
        )
        self.queue = histogram("request_queue_time_seconds", "From the request to its first step.", FIRST_TOKEN_SECONDS)
        self.prefill = histogram(
            "request_prefill_time_seconds", "From a request's first step to its first token.", REQUEST_SECONDS
        )
        self.decode = histogram(
            "request_decode_time_seconds", "From a request's first token to its last.", REQUEST_SECONDS
        )
        self.inference = histogram(
            "request_inference_time_seconds", "From a request's first step to its last token.", REQUEST_SECONDS
        )

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of prompts and of outputs so far."""
        return self._prompted, self.of_tokens.generated

    def count_finished(self, reason: str) -> None:
        self._finished.of(reason).inc()

    def count_prompt(self, tokens: int, cached: int = 0) -> None:
        """Count a prompt whose answer begins."""
        self._prompt_tokens.inc(tokens)
        self._cached_tokens.inc(cached)
        self.prompt.observe(tokens)
        self.computed.observe(tokens - cached)
        self._prompted += tokens

    @contextmanager
    def watch(
        self, request: GenerationRequest, adapter: AdapterCounts | None, clock: Callable[[], float] = time.perf_counter
    ) -> "Iterator[Watch]":
        """Measure a request from here to the end of the block, which shows each output to `see`.

        Outputs that are still open when the engine ends by itself were finished from above, by a stop string. Those
        that are open when the block is left early were aborted.
        """
        watch = Watch(self, request, adapter, clock)
        how_the_rest_ended = "abort"
        try:
            yield watch
            how_the_rest_ended = "stop"
        except TuneserveError:
            how_the_rest_ended = "abort" if watch.aborted else "error"
            raise
        finally:
            watch.end(how_the_rest_ended)


@dataclass(slots=True)
class _Output:
    """What has been seen of one output."""

    first: float
    """When its first token came."""
    last: float
    tokens: int = 0
    ended: bool = False


class Watch:
    """One request, measured."""

    def __init__(
        self,
        metrics: RequestMetrics,
        request: GenerationRequest,
        adapter: AdapterCounts | None,
        clock: Callable[[], float],
    ) -> None:
        self._metrics = metrics
        self._request = request
        self._adapter = adapter
        self._clock = clock
        self._timed = request.priority < BATCH_PRIORITY
        self._outputs: dict[int, _Output] = {}
        self._queued = 0.0
        self._unfinished = request.n
        self.aborted = False
        """The engine gave an output up."""
        self._began = clock()

    def see(self, step: TokenOutput) -> None:
        now, tokens = self._clock(), len(step.token_ids)
        output = self._outputs.get(step.index)
        if output is None:
            if not self._outputs:
                self._begin(step, now - self._began)
            output = self._outputs[step.index] = _Output(now, now)
        elif self._timed and tokens:
            self._metrics.of_tokens.count_gap(now - output.last, tokens)
        output.last = now
        output.tokens += tokens
        self._metrics.of_tokens.generated += tokens
        if self._adapter is not None:
            self._adapter.generation_tokens.inc(tokens)
        if step.finish_reason is not None:
            self._unfinished -= 1
            self.aborted |= step.finish_reason is FinishReason.ABORT
            self._metrics.count_finished(step.finish_reason)
            self._end_output(output)
            if step.preemptions is not None:
                self._metrics.preemptions.observe(step.preemptions)

    def _begin(self, step: TokenOutput, seconds: float) -> None:
        """The first output is there."""
        self._metrics.count_prompt(len(self._request.prompt_ids), step.cached_tokens or 0)
        if self._adapter is not None:
            self._adapter.requests.inc()
            self._adapter.prompt_tokens.inc(len(self._request.prompt_ids))
        if not self._timed:
            return
        self._metrics.first_token.observe(seconds)
        if self._adapter is not None:
            self._adapter.first_token.observe(seconds)
        if step.queue_seconds is not None:
            self._queued = min(step.queue_seconds, seconds)
            self._metrics.queue.observe(step.queue_seconds)

    def _end_output(self, output: _Output) -> None:
        output.ended = True
        self._metrics.generated.observe(output.tokens)
        if self._timed:
            self._metrics.per_token.observe((output.last - output.first) / max(output.tokens - 1, 1))

    def end(self, how_the_rest_ended: str) -> None:
        """The request is over; one that failed before its first token was never taken."""
        if how_the_rest_ended == "error" and not self._outputs:
            return
        for output in self._outputs.values():
            if not output.ended:
                self._end_output(output)
        if self._outputs:
            self._end_request()
        if self._timed:
            self._metrics.end_to_end.observe(self._clock() - self._began)
        for _ in range(self._unfinished):
            self._metrics.count_finished(how_the_rest_ended)

    def _end_request(self) -> None:
        metrics, outputs = self._metrics, self._outputs.values()
        metrics.n.observe(self._request.n)
        metrics.max_tokens.observe(self._request.sampling.max_new_tokens)
        metrics.longest.observe(max(output.tokens for output in outputs))
        if self._timed:
            begun, first = self._began + self._queued, min(output.first for output in outputs)
            last = max(output.last for output in outputs)
            metrics.prefill.observe(first - begun)
            metrics.decode.observe(last - first)
            metrics.inference.observe(last - begun)
