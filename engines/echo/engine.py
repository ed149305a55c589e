"""The engine itself: what runs, what has been asked to stop, what fails."""

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from engines.capabilities import Capabilities
from engines.echo.adapters import HIDDEN_SIZE, Adapters, adapter_support
from engines.echo.answer import outputs
from engines.echo.tokenizer import END_OF_TEXT, IM_END, VOCAB_SIZE
from engines.engine import check_ready
from engines.errors import (
    EngineFailure,
    EngineUnavailable,
    InvalidRequest,
    QueueFull,
    TuneserveError,
    UnsupportedParameter,
)
from engines.types import (
    EngineState,
    EngineStats,
    GenerationRequest,
    Head,
    Health,
    PoolingRequest,
    StepSizes,
    StructuredKind,
    TokenOutput,
)


@dataclass(kw_only=True)
class EchoFaults:
    """Faults that the engine shall show. Tests change them while it runs."""

    start_delay: float = 0.0
    start_error: TuneserveError | None = None
    token_delay: float = 0.0
    """Seconds before every step, the first too."""
    die_after: int | None = None
    """The engine dies before this step (counted from 0) of a request."""
    adapter_delay: float = 0.0
    """Seconds that the loading of an adapter takes."""
    adapter_error: TuneserveError | None = None
    """Error that the loading of an adapter ends with."""


class EchoEngine:
    """Answers with the content of the last ChatML message, or with the whole prompt where there is none.

    It always takes its likeliest token, so parameters that only reshape the distribution change nothing; those that
    forbid tokens (structured output, bad words, allowed tokens, a bias of -100, a minimum length) do.

    An adapter puts its version before the answer, `name@hash: `, where no structure is asked for.

    With a head, its own or an adapter's, it classifies instead, by numbers that depend on the whole prompt.
    """

    def __init__(
        self,
        *,
        max_model_len: int = 4096,
        max_requests: int | None = None,
        max_loras: int = 8,
        head: Head | None = None,
        faults: EchoFaults | None = None,
    ) -> None:
        """With `max_requests`, more than that at once are refused as by a full queue."""
        self.faults = faults or EchoFaults()
        self._max_requests = max_requests
        self._state = EngineState.STARTING
        self._unfinished: dict[str, set[int]] = {}  # request id -> outputs that still yield
        self._adapters = Adapters(max_loras)
        self._sizes = StepSizes()
        self._capabilities = Capabilities(
            max_model_len=max_model_len,
            vocab_size=VOCAB_SIZE,
            max_logprobs=-1,
            eos_token_ids=(IM_END, END_OF_TEXT),
            structured=frozenset(get_args(StructuredKind)),
            unsupported=frozenset({"num_beams"}),
            embeddings=True,
            head=head,
            cache_config={"block_size": "1", "num_gpu_blocks": str(max_model_len)},
            adapters=adapter_support(max_loras),
            sleep=True,
        )

    async def start(self) -> None:
        await asyncio.sleep(self.faults.start_delay)
        if self.faults.start_error is not None:
            self._state = EngineState.FAILED
            raise self.faults.start_error
        self._state = EngineState.READY

    async def stop(self) -> None:
        self._state = EngineState.STOPPED

    def die(self) -> None:
        """Behave as an engine whose process was killed: running requests fail. `start` brings it back."""
        self._state = EngineState.RESTARTING

    def fail(self) -> None:
        """Behave as an engine that no restart helps any more."""
        self._state = EngineState.FAILED

    def capabilities(self) -> Capabilities:
        if self._state is EngineState.STARTING:
            raise EngineUnavailable("The model is still loading.")
        return self._capabilities

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        self._admit(request)
        unfinished = self._unfinished[request.request_id] = set(range(request.n))
        answers = [outputs(request, index) for index in range(request.n)]
        try:
            for step in itertools.count():
                await asyncio.sleep(self.faults.token_delay)
                self._run_step(step, request.adapter)
                self._sizes.add(len(unfinished) if step else len(request.prompt_ids))
                for index in sorted(unfinished):
                    if index not in unfinished:
                        continue  # `finish` came while an earlier output of this step was read
                    output = next(answers[index])
                    if output.finish_reason is not None:
                        unfinished.discard(index)
                    yield output
                if not unfinished:
                    return
        finally:
            del self._unfinished[request.request_id]

    def finish(self, request_id: str, index: int) -> None:
        self._unfinished.get(request_id, set()).discard(index)

    async def pool(self, request: PoolingRequest) -> list[float]:
        self._check_prompt(request.prompt_ids)
        self._adapters.use(request.adapter)
        labels = self._num_labels(request.adapter)
        if request.task == "classify" and not labels:
            raise UnsupportedParameter("The model has no head to classify with.", param="model")
        await asyncio.sleep(self.faults.token_delay)
        self._run_step(0, request.adapter)
        seed = sum(request.prompt_ids) + sum((request.adapter or "").encode())
        values = [math.sin(1 + i * (1 + seed)) for i in range(HIDDEN_SIZE)]
        if request.task == "classify":
            return values[1 : 1 + labels]
        norm = math.sqrt(sum(value * value for value in values))
        return [value / norm for value in values]

    async def load_adapter(self, version: str, folder: Path, *, pinned: bool = False) -> None:
        check_ready(self)
        await asyncio.sleep(self.faults.adapter_delay)
        if self.faults.adapter_error is not None:
            raise self.faults.adapter_error
        check_ready(self)
        self._adapters.load(version, folder, pinned)

    async def unload_adapter(self, version: str) -> None:
        self._adapters.unload(version)

    async def sleep(self) -> None:
        if self._state is EngineState.SLEEPING:
            return
        check_ready(self)
        self._state = EngineState.SLEEPING
        while self._unfinished:
            await asyncio.sleep(0.001)

    async def wake_up(self) -> None:
        if self._state is not EngineState.SLEEPING:
            return check_ready(self)
        self._state = EngineState.READY

    def health(self) -> Health:
        return Health(self._state)

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._unfinished),
            step_sizes=self._sizes.counts,
            step_tokens=self._sizes.tokens,
            adapter_slots=tuple(self._adapters.slots),
            adapter_host=tuple(self._adapters.folders),
            adapter_loads=dict(self._adapters.loads),
            adapter_evictions=dict(self._adapters.evictions),
        )

    def _admit(self, request: GenerationRequest) -> None:
        self._check_prompt(request.prompt_ids)
        check_ready(self)
        if self._max_requests is not None and len(self._unfinished) >= self._max_requests:
            raise QueueFull(f"{self._max_requests} requests are running already.")
        self._adapters.use(request.adapter)
        if self._num_labels(request.adapter):
            raise UnsupportedParameter("The model has a head that classifies, and generates no text.", param="model")

    def _num_labels(self, adapter: str | None) -> int:
        """Labels of the head that a request is answered by; 0: none, the model generates."""
        own = self._adapters.num_labels.get(adapter or "", 0)
        head = self._capabilities.head
        return own or (0 if head is None else len(head.labels))

    def _check_prompt(self, prompt_ids: list[int]) -> None:
        if not prompt_ids or not all(0 <= token < VOCAB_SIZE for token in prompt_ids):
            raise InvalidRequest(f"A prompt is one or more token ids below {VOCAB_SIZE}.", param="prompt")

    def _run_step(self, step: int, adapter: str | None) -> None:
        if step == self.faults.die_after:
            self.die()
        if self._state is EngineState.STOPPED:
            raise EngineUnavailable("The server is shutting down.")
        if self._state not in (EngineState.READY, EngineState.SLEEPING):
            raise EngineFailure(f"The engine is {self._state}.")
        self._adapters.check(adapter)
