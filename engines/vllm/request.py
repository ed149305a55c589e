"""A request as vLLM computes it: each of its outputs is a request of its own there, so that each can be ended alone."""

from collections.abc import Callable

import msgspec
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from engines.capabilities import Capabilities
from engines.errors import EngineFailure, InvalidRequest
from engines.types import FinishReason, GenerationRequest, TokenOutput
from engines.vllm import sampling
from engines.vllm.adapters import VllmSlots


class VllmRequest:
    def __init__(
        self,
        llm: AsyncLLM,
        slots: VllmSlots | None,
        request: GenerationRequest,
        capabilities: Capabilities,
        grammar_end: int | None,
    ) -> None:
        """`grammar_end`: the token that ends structured output."""
        self._llm = llm
        self._slots = slots
        self._request = request
        self._capabilities = capabilities
        self._grammar_end = grammar_end
        self._lora: LoRARequest | None = None

    async def prepare(self) -> None:
        """vLLM compiles grammars itself."""

    async def begin(self, adapter: str | None) -> None:
        self._lora = None if self._slots is None or adapter is None else self._slots.requests[adapter]

    async def compute(self, index: int, tell: Callable[[TokenOutput], None]) -> None:
        request = self._request
        told = False
        try:
            outputs = self._llm.generate(
                tokens_input(request.prompt_ids, cache_salt=request.cache_salt),
                sampling.to_vllm(request, index, self._capabilities, self._grammar_end),
                f"{request.request_id}-{index}",
                lora_request=self._lora,
                priority=request.priority,
            )
            async for made in outputs:
                output = _with_preemptions(self._output(index, made), made)
                tell(output if told else self._with_prompt(output, made))
                told = True
        except VLLMClientError as error:
            raise InvalidRequest(str(error.args[0]), param=getattr(error, "parameter", None)) from error
        except EngineDeadError as error:
            raise EngineFailure("vLLM's processes ended while they ran this request") from error

    def _output(self, index: int, made: RequestOutput) -> TokenOutput:
        output = sampling.to_output(index, made.outputs[0], self._request.sampling.logprobs)
        if self._request.sampling.max_new_tokens == 0:  # vLLM makes one token at least
            none = None if output.logprobs is None else ()
            return TokenOutput(index=index, logprobs=none, finish_reason=FinishReason.LENGTH)
        return output

    def _with_prompt(self, output: TokenOutput, made: RequestOutput) -> TokenOutput:
        metrics, prompt = made.metrics, made.prompt_logprobs
        count = self._request.sampling.prompt_logprobs or 0
        return msgspec.structs.replace(
            output,
            cached_tokens=made.num_cached_tokens or 0,
            queue_seconds=0.0 if metrics is None else max(0.0, metrics.scheduled_ts - metrics.queued_ts),
            prompt_logprobs=None if prompt is None else tuple(sampling.token_logprobs(prompt, count)),
        )


def _with_preemptions(output: TokenOutput, made: RequestOutput) -> TokenOutput:
    if output.finish_reason is None or made.metrics is None:
        return output
    return msgspec.structs.replace(output, preemptions=made.metrics.num_preemptions)
