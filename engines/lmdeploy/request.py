"""A request as LMDeploy computes it: first what is asked about its prompt, then each of its outputs apart."""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
from lmdeploy.messages import EngineOutput, EventType, RequestMetrics, ResponseType

from engines.capabilities import Capabilities
from engines.lmdeploy.edits import OutputEdits
from engines.lmdeploy.library import Library
from engines.lmdeploy.prompts import PromptObserver, compute_prompt
from engines.lmdeploy.translate import generation_config, token_logprob
from engines.sampler.grammar import GrammarCompiler, GrammarState, MaskWorker
from engines.types import FinishReason, GenerationRequest, TokenLogprob, TokenOutput


@dataclass(frozen=True, slots=True)
class Constraints:
    """What structured output is made with."""

    compiler: GrammarCompiler
    masks: MaskWorker


class LmdeployRequest:
    def __init__(
        self,
        library: Library,
        request: GenerationRequest,
        capabilities: Capabilities,
        constraints: Constraints | None,
        seeds: random.Random,
    ) -> None:
        """`seeds`: for a request that brings none."""
        self._library = library
        self._request = request
        self._capabilities = capabilities
        self._constraints = constraints
        self._seeds = seeds
        self._grammar: GrammarState | None = None
        self._adapter: str | None = None
        self._prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None

    async def prepare(self) -> None:
        structured = self._request.sampling.structured
        if structured is not None:
            assert self._constraints is not None, "capabilities tell what can be asked for"
            self._grammar = await asyncio.to_thread(self._constraints.compiler.compile, structured)

    async def begin(self, adapter: str | None) -> None:
        self._adapter = adapter
        prompt_ids, count = self._request.prompt_ids, self._request.sampling.prompt_logprobs
        if count is not None:
            observer = PromptObserver(prompt_ids, top_logprobs=count, head=self._library.head)
            await compute_prompt(self._library, prompt_ids, adapter, observer)
            self._prompt_logprobs = (None, *observer.logprobs)

    async def compute(self, index: int, tell: Callable[[TokenOutput], None]) -> None:
        began = time.time()  # a time of day, as LMDeploy's are
        room = self._room
        if room == 0:
            tell(self._with_prompt(TokenOutput(index=index, finish_reason=FinishReason.LENGTH), began, None))
            return
        masks = None if self._constraints is None else self._constraints.masks
        limits = self._capabilities
        edits = OutputEdits(self._request, limits.eos_token_ids, limits.vocab_size, self._grammar, masks)
        config = generation_config(
            self._request.sampling,
            seed=self._seed(index),
            max_new_tokens=room,
            eos_token_ids=limits.eos_token_ids,
            vocab_size=limits.vocab_size,
            observer=edits if edits.needed else None,
        )
        count = 0
        salt = self._request.cache_salt
        async with aclosing(self._library.infer(self._request.prompt_ids, config, self._adapter, salt)) as steps:
            async for step in steps:
                output = self._output(index, step, edits, count)
                if output.token_ids or output.finish_reason is not None:
                    tell(output if count else self._with_prompt(output, began, step.req_metrics))
                count += len(output.token_ids)
                if output.finish_reason is not None:
                    return

    @property
    def _room(self) -> int:
        """The most tokens that an output can have."""
        return min(
            self._request.sampling.max_new_tokens, self._capabilities.max_model_len - len(self._request.prompt_ids)
        )

    def _seed(self, index: int) -> int:
        seed = self._request.sampling.seed
        return self._seeds.getrandbits(32) if seed is None else seed + index

    def _output(self, index: int, step: EngineOutput, edits: OutputEdits, count: int) -> TokenOutput:
        """What a step adds to an output of `count` tokens. Raises the failure of its edits."""
        if edits.failure is not None:
            raise edits.failure
        room, wanted = self._room, self._request.sampling.logprobs
        end = room if edits.complete_at is None else min(room, edits.complete_at)
        tokens = tuple(step.token_ids[: end - count])
        count += len(tokens)
        stop = tokens[-1] if tokens and tokens[-1] in edits.stops else None
        reason = None
        if stop is not None or count == edits.complete_at:
            reason = FinishReason.STOP
        elif count == room or step.status is ResponseType.FINISH:
            reason = FinishReason.LENGTH
        logprobs = None
        if wanted is not None:
            rows = zip(tokens, step.logprobs or (), strict=False)
            logprobs = tuple(token_logprob(token, row, wanted) for token, row in rows)
        return TokenOutput(index=index, token_ids=tokens, logprobs=logprobs, finish_reason=reason, stop_token_id=stop)

    def _with_prompt(self, output: TokenOutput, began: float, metrics: RequestMetrics | None) -> TokenOutput:
        return msgspec.structs.replace(
            output,
            cached_tokens=0 if metrics is None else int(metrics.cached_tokens),
            queue_seconds=_queue_seconds(began, metrics),
            prompt_logprobs=self._prompt_logprobs,
        )


def _queue_seconds(began: float, metrics: RequestMetrics | None) -> float:
    """Seconds until the first step."""
    events = () if metrics is None else metrics.engine_events
    scheduled = [event.timestamp for event in events if event.type == EventType.SCHEDULED]
    return max(0.0, scheduled[0] - began) if scheduled else 0.0
