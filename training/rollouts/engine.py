"""Answers from our own engine, in the process that trains: continuous batching over paged attention, and one prompt's
answers share what was computed of it.

The engine keeps weights of its own, and takes memory for keys and values only while it draws. The policy of a step is
copied into it in memory; what the one before has left in the cache is forgotten, so that no answer is given by a stale
one. On the trainer's device the two take turns; on another, `AheadRollouts` draws while the trainer learns.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from engines.checkpoint.quantization import Quantization
from engines.errors import EngineFailure, InvalidRequest, TuneserveError, UnsupportedModel
from engines.pt.config import PtConfig
from engines.pt.core import EngineCore
from engines.pt.runner import ModelRunner
from engines.sampler.grammar import GrammarCompiler, GrammarState
from engines.types import FinishReason, GenerationRequest, Sampling, Structured, TokenOutput
from training.rollouts.policy import adapter_weights, base_weights, merged_weights, served_as_adapter
from training.rollouts.types import Asked, Drawing, Rollout

TOKENS_AT_ONCE = 1024
"""Tokens of a step: those of prompts that begin, beside one of each answer."""


@dataclass(slots=True)
class _Answer:
    """An answer that grows."""

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, output: TokenOutput) -> None:
        assert output.logprobs is not None, "asked for"
        self.token_ids += output.token_ids
        self.log_probs += [each.logprob for each in output.logprobs]
        self.finish_reason = output.finish_reason


class EngineRollouts:
    """Answers of a model in training: see `Rollouts`."""

    def __init__(
        self,
        model: nn.Module,
        *,
        source: str,
        revision: str | None = None,
        token: str | None = None,
        dtype: torch.dtype,
        quantization: Quantization | None = None,
        stop_token_ids: Sequence[int],
        max_model_len: int | None = None,
        rope_scaling: Literal["linear", "dynamic"] | None = None,
        max_num_seqs: int = 256,
        device: torch.device | None = None,
        tokenizer: Any = None,
        judges: bool = False,
        checkpoint: Callable[[], None] = lambda: None,
    ) -> None:
        """The policy is `model` as it is now, version 0.

        model: a `PreTrainedModel`, or a `PeftModel` over one; weights of `source` in it
        source, revision, token: where the engine loads its own base model from
        quantization: how its weights are quantised, as those of `model` are; None: they are not
        stop_token_ids: what an answer ends with
        max_model_len: tokens of a prompt with its answer at most; None: what the model can
        rope_scaling: how its positions are stretched to that, as in the model in training
        max_num_seqs: answers that are drawn at a time
        device: where they are drawn; None: where the model is
        tokenizer: the model's, where the base model is to be asked, or answers are held to a form
        judges: whether the base model is to be asked. Where the policy is written over the engine's weights, those of
            the base model are kept for it in this machine's memory
        checkpoint: called between two steps of the engine; what it raises ends a draw
        Raises UnsupportedModel where the engine cannot run the model.
        """
        self.version = 0
        self._model = model
        self._checkpoint = checkpoint
        device = device or next(model.parameters()).device
        config = PtConfig(
            model=source,
            revision=revision,
            token=token,
            dtype=str(dtype).removeprefix("torch."),  # type: ignore[arg-type]  # torch has the names that it takes
            quantization=quantization,
            max_model_len=max_model_len,
            rope_scaling=rope_scaling,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=TOKENS_AT_ONCE + max_num_seqs,
            max_loras=1,
            device_map=str(device),
            tempered_logprobs=True,
        )
        with _current(device):
            runner = ModelRunner(config)
        self._grammars = None if tokenizer is None else GrammarCompiler(tokenizer, runner.vocab_size, stop_token_ids)
        self._core = EngineCore(runner, config, tuple(stop_token_ids), self._grammars, lambda _: b"")
        self._core.sleep()
        self._in_slot = served_as_adapter(model, runner.lora.support)
        if quantization is not None and not self._in_slot:
            message = (
                "what is learned would have to be written over weights that are quantised, to draw answers with it"
            )
            raise UnsupportedModel(message, param="quant_method")
        self._base = base_weights(source, config) if judges and not self._in_slot else None
        self._stopped = False
        self._put()

    def draw(
        self, prompts: Sequence[Sequence[int]], n: int, drawing: Drawing, *, seed: int, places: Sequence[int] = ()
    ) -> list[list[Rollout]]:
        """See `Rollouts`. Raises InvalidRequest where a prompt leaves no room for an answer, EngineFailure."""
        return list(self.groups(prompts, n, drawing, seed=seed, places=places))

    def groups(
        self, prompts: Sequence[Sequence[int]], n: int, drawing: Drawing, *, seed: int, places: Sequence[int] = ()
    ) -> Iterator[list[Rollout]]:
        """The answers to each prompt in turn, as soon as they and all before them are there: drawn while they are asked
        for, to the end. Raises as `draw`."""
        if not prompts:
            return
        answers = [[_Answer() for _ in range(n)] for _ in prompts]
        seeds = [random.Random(f"{seed} {place}").getrandbits(63) for place in places or range(len(prompts))]
        sampling = replace(_sampling(drawing), logprobs=0)
        longest = max(map(len, prompts)) + drawing.max_new_tokens
        with self._awake(self._blocks(n * len(prompts), longest)):
            for number, prompt in enumerate(prompts):
                request = GenerationRequest(
                    request_id=str(number),
                    prompt_ids=list(prompt),
                    sampling=replace(sampling, seed=seeds[number]),
                    n=n,
                    adapter=self._adapter if self._in_slot else None,
                )
                self._core.add(request, self._grammar(drawing.structured))
            whole = 0
            for request_id, output in self._outputs():
                answers[int(request_id)][output.index].add(output)
                while whole < len(prompts) and all(one.finish_reason for one in answers[whole]):
                    yield [self._rollout(prompts[whole], one) for one in answers[whole]]
                    whole += 1

    def ask_base(self, asked: Sequence[Asked]) -> list[list[int] | TuneserveError]:
        """See `JudgingRollouts`. The policy is the one that was last taken over: nothing was learned since."""
        assert self._grammars is not None, "a tokenizer was given"
        if not asked:
            return []
        said: list[list[int]] = [[] for _ in asked]
        refused: dict[str, TuneserveError] = {}
        longest = max(len(one.prompt_ids) + one.drawing.max_new_tokens for one in asked)
        with self._as_base(), self._awake(self._blocks(len(asked), longest)):
            for number, one in enumerate(asked):
                structured = Structured(kind="json_schema", value=one.schema)
                sampling = replace(_sampling(one.drawing), seed=one.seed, structured=structured)
                request = GenerationRequest(request_id=str(number), prompt_ids=list(one.prompt_ids), sampling=sampling)
                try:
                    self._core.add(request, self._grammars.compile(structured))
                except InvalidRequest as error:
                    refused[str(number)] = error
            for request_id, output in self._outputs(refused):
                said[int(request_id)] += output.token_ids
        return [refused.get(str(number), ids) for number, ids in enumerate(said)]

    def take_over(self) -> None:
        """See `Rollouts`. Raises EngineFailure."""
        if self._in_slot:
            self._core.adapters.unload(self._adapter)
        self.version += 1
        self._put()

    def stop(self) -> None:
        """End a draw that another thread has begun, with EngineFailure there, at its next step."""
        self._stopped = True

    def close(self) -> None:
        """Give up the engine's memory."""
        del self._core

    @property
    def _adapter(self) -> str:
        return f"policy@{self.version}"

    def _put(self) -> None:
        """Copy the policy into the engine."""
        if self._in_slot:
            runner: Any = self._core.runner
            weights = adapter_weights(self._model, linears=runner.lora.exact, others=runner.dtype)
            self._core.adapters.put(self._adapter, weights)
        else:
            with _current(self._core.runner.device):
                self._core.write(merged_weights(self._model))

    @contextmanager
    def _as_base(self) -> Iterator[None]:
        """The engine computes as the base model, where no adapter is named, and then as the policy again."""
        if self._in_slot:
            yield
            return
        assert self._base is not None, "the base model is to judge"
        with _current(self._core.runner.device):
            self._core.write(self._base)
        try:
            yield
        finally:
            self._put()

    def _grammar(self, structured: Structured | None) -> GrammarState | None:
        """Raises InvalidRequest."""
        if structured is None:
            return None
        assert self._grammars is not None, "a tokenizer was given"
        return self._grammars.compile(structured)

    def _blocks(self, count: int, longest: int) -> int:
        """Blocks of the cache with which none of `count` outputs that runs ever waits for one. `longest`: tokens of a
        prompt with its output."""
        at_a_time = min(count, self._core.scheduler.max_num_seqs)
        longest = min(longest, self._core.runner.max_model_len)
        return at_a_time * self._core.scheduler.pool.blocks_for(longest)

    @contextmanager
    def _awake(self, blocks: int) -> Iterator[None]:
        """Memory for keys and values, so many blocks at most, and nothing left over in the end, whatever happens."""
        device = self._core.runner.device
        self._core.wake(blocks)
        try:
            with _current(device), torch.autocast(device.type, enabled=False):
                yield
        finally:
            self._core.requests.abort_all()
            self._core.sleep()

    def _outputs(self, refused: dict[str, TuneserveError] | None = None) -> Iterator[tuple[str, TokenOutput]]:
        """What the engine makes, until all requests have ended. What fails is noted in `refused`, or ends them all."""
        while self._core.busy:
            self._checkpoint()
            if self._stopped:
                raise EngineFailure("the draw was given up")
            try:
                report = self._core.step()
            except TuneserveError:
                raise
            except Exception as error:
                raise EngineFailure(f"the engine failed while it drew answers: {error}") from error
            for request_id, failure in report.errors:
                if refused is None:
                    raise failure
                refused[request_id] = failure
            yield from report.outputs

    def _rollout(self, prompt: Sequence[int], answer: _Answer) -> Rollout:
        return Rollout(
            prompt_ids=prompt,
            token_ids=answer.token_ids,
            log_probs=answer.log_probs,
            ended=answer.finish_reason is FinishReason.STOP,
            version=self.version,
        )


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """`device` as the one on which kernels run in this thread."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _sampling(drawing: Drawing) -> Sampling:
    return Sampling(
        max_new_tokens=drawing.max_new_tokens,
        temperature=drawing.temperature,
        top_k=drawing.top_k,
        top_p=drawing.top_p,
        min_p=drawing.min_p,
        repetition_penalty=drawing.repetition_penalty,
        structured=drawing.structured,
    )
