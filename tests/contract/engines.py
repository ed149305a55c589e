"""The engines that the contract is tested on: each with a model of its own, driven through the same requests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engines.engine import Engine
from engines.types import FinishReason, GenerationRequest, Sampling, TokenLogprob, TokenOutput


@dataclass(frozen=True)
class Contestant:
    """One kind of engine."""

    make: Callable[[], Engine]
    """A new engine, not started."""
    decode: Callable[[Sequence[int]], str]
    """The text of its tokens, without special ones."""
    samples: bool = True
    """Whether it has a distribution of tokens that sampling parameters can reshape."""
    counts_steps: bool = True
    """Whether it tells of its steps, its cache and what was put back."""


@dataclass(frozen=True)
class Whole:
    """One output from its first token to its last."""

    token_ids: list[int]
    logprobs: list[TokenLogprob]
    finish_reason: FinishReason | None
    stop_token_id: int | None


def request(
    text: str = "hello world",
    request_id: str = "r",
    *,
    n: int = 1,
    adapter: str | None = None,
    max_new_tokens: int = 8,
    **sampling: Any,
) -> GenerationRequest:
    """Greedy unless asked otherwise. Bytes of the text are tokens in every model here."""
    usual: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": 0.0}
    chosen = Sampling(**usual | sampling)
    return GenerationRequest(
        request_id=request_id, prompt_ids=list(text.encode()), sampling=chosen, n=n, adapter=adapter
    )


async def collect(engine: Engine, asked: GenerationRequest) -> list[TokenOutput]:
    return [output async for output in engine.generate(asked)]


def whole(outputs: Sequence[TokenOutput], index: int = 0) -> Whole:
    mine = [output for output in outputs if output.index == index]
    return Whole(
        [token for output in mine for token in output.token_ids],
        [logprob for output in mine for logprob in output.logprobs or ()],
        mine[-1].finish_reason,
        mine[-1].stop_token_id,
    )


async def answer(engine: Engine, asked: GenerationRequest) -> Whole:
    return whole(await collect(engine, asked))
