"""Run the engine's core by hand, one step after another, and compare what it says with plain transformers."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engines.errors import TuneserveError
from engines.process.resources import GIB
from engines.pt.config import PtConfig
from engines.pt.core import EngineCore
from engines.pt.runner import ModelRunner
from engines.sampler.grammar import GrammarCompiler
from engines.text.vocabulary import Vocabulary
from engines.types import FinishReason, GenerationRequest, PoolingRequest, Sampling, TokenLogprob, TokenOutput
from tests.engines.pt.tiny import EOS, VOCAB_SIZE, byte_level_tokenizer

BLOCK_SIZE = 8
TOLERANCE = 1e-3
NEAR_TIE = 1e-4


@dataclass
class Output:
    """One whole output of a request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None


@dataclass
class Answer:
    """All that the engine said about one request."""

    outputs: dict[int, Output] = field(default_factory=dict)
    pooled: list[float] | None = None
    error: TuneserveError | None = None
    first: TokenOutput | None = None

    @property
    def tokens(self) -> list[int]:
        return self.outputs[0].token_ids

    def add(self, output: TokenOutput) -> None:
        self.first = self.first or output
        whole = self.outputs.setdefault(output.index, Output())
        assert whole.finish_reason is None, "nothing comes after the finish"
        whole.token_ids += output.token_ids
        whole.logprobs += output.logprobs or ()
        whole.finish_reason = output.finish_reason
        whole.stop_token_id = output.stop_token_id


def settings(folder: Path, **changes: Any) -> PtConfig:
    """Float32, one thread, small blocks, and whatever else is asked for."""
    usual: dict[str, Any] = {"model": str(folder), "dtype": "float32", "block_size": BLOCK_SIZE, "threads": 1}
    return PtConfig(**usual | changes)


def cache_of(blocks: int, runner: ModelRunner) -> float:
    """The `kv_cache_memory` that comes to so many blocks of this model."""
    return (blocks + 0.5) * sum(tensor[0].nbytes for tensor in runner.cache.tensors) / GIB


def core_of(
    runner: Any, *, eos: tuple[int, ...] = (EOS,), grammars: GrammarCompiler | None = None, **changes: Any
) -> EngineCore:
    """A core with nothing in its cache, on a runner that may have served others, or on what stands for one."""
    return EngineCore(runner, settings(Path(), **changes), eos, grammars, vocabulary().token_bytes)


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(byte_level_tokenizer())


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random tokens, none of them special."""
    generator = torch.Generator().manual_seed(seed * 1000 + length)
    ids: list[int] = torch.randint(2, VOCAB_SIZE, (length,), generator=generator).tolist()
    return ids


def request(
    prompt_ids: list[int],
    request_id: str = "r",
    *,
    n: int = 1,
    adapter: str | None = None,
    priority: int = 0,
    max_new_tokens: int = 12,
    temperature: float = 0.0,
    **sampling: Any,
) -> GenerationRequest:
    return GenerationRequest(
        request_id=request_id,
        prompt_ids=prompt_ids,
        sampling=Sampling(max_new_tokens=max_new_tokens, temperature=temperature, **sampling),
        n=n,
        adapter=adapter,
        priority=priority,
    )


def run(
    core: EngineCore,
    requests: Iterable[GenerationRequest | PoolingRequest],
    *,
    between: Callable[[int], None] = lambda step: None,
    most_steps: int = 2000,
) -> dict[str, Answer]:
    """Add all requests and step until each has its answer; `between` is called with the number of steps so far."""
    answers = {}
    woken = threading.Event()
    core.adapters.wake = woken.set
    for one in requests:
        answers[one.request_id] = Answer()
        core.add(one)
    for step in range(most_steps):
        between(step)
        if not core.busy:
            break
        woken.clear()
        report = core.step()
        for request_id, output in report.outputs:
            answers[request_id].add(output)
        for request_id, numbers in report.pooled:
            answers[request_id].pooled = numbers
        for request_id, error in report.errors:
            answers[request_id].error = error
        if core.stalled:
            assert woken.wait(60), "an adapter never comes"
    assert not core.busy, f"still busy after {most_steps} steps"
    assert core.scheduler.pool.free == core.scheduler.pool.num_blocks, "blocks are left behind"
    return answers


class Reference:
    """The plain transformers model: one forward pass without a cache for each question."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._known: dict[tuple[int, ...], Tensor] = {}

    def logits(self, tokens: list[int]) -> Tensor:
        """(tokens, vocab_size) after each of the tokens."""
        key = tuple(tokens)
        if key not in self._known:
            with torch.inference_mode():
                self._known[key] = self.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()
        return self._known[key]

    def check_greedy(self, asked: GenerationRequest, output: Output) -> None:
        """Each token is the likeliest after those before it (or a tie), and has the logprob that the model gives it."""
        start = len(asked.prompt_ids)
        logits = self.logits(asked.prompt_ids + output.token_ids)[start - 1 : -1]
        logprobs = logits.log_softmax(-1)
        ids = torch.tensor(output.token_ids)
        own = logprobs[torch.arange(len(ids)), ids]
        assert (logprobs.max(-1).values - own).max() < NEAR_TIE, "a token is not the likeliest"
        self._check_logprobs(output.logprobs, logprobs)

    def check_prompt(self, prompt_ids: list[int], told: tuple[TokenLogprob | None, ...]) -> None:
        """The logprobs of the prompt's tokens are those that the model gives them."""
        assert told[0] is None and [t.token_id for t in told[1:] if t] == prompt_ids[1:]
        self._check_logprobs([t for t in told[1:] if t], self.logits(prompt_ids)[:-1].log_softmax(-1))

    def _check_logprobs(self, told: list[TokenLogprob], logprobs: Tensor) -> None:
        for one, truth in zip(told, logprobs, strict=True):
            assert abs(one.logprob - truth[one.token_id].item()) < TOLERANCE
            for token, value in one.top:
                assert abs(value - truth[token].item()) < TOLERANCE
            best = truth.topk(len(one.top)).values.tolist()
            assert all(abs(value - other) < TOLERANCE for (_, value), other in zip(one.top, best, strict=True))
