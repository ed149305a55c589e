"""A model on one of our engines, in the process that a server would give it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import wait
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from engines.adapters.source import fetch_adapter, name_adapters
from engines.build import build_engine
from engines.checkpoint.loading import load_tokenizer
from engines.errors import (
    EngineFailure,
    EngineUnavailable,
    InvalidRequest,
    QueueFull,
    TuneserveError,
    UnsupportedParameter,
)
from engines.types import EngineState, GenerationRequest, Sampling, TokenLogprob, TokenOutput
from training.evaluation.asking import Scored, Told, ToWrite, cut
from training.params.eval import EvalParams

ADAPTER = "measured@1"
AT_ONCE = 32
"""Questions that the engine has at a time, unless somebody says."""
LOOK_SECONDS = 0.2
MAX_DEATHS = 3
"""Deaths of the engine under one question before the evaluation fails."""

One = TypeVar("One")
Answer = TypeVar("Answer")


class EngineModel:
    """See `Model`. The tokenizer is the model's own, as transformers has it."""

    def __init__(self, params: EvalParams, told: Told, checkpoint: Callable[[], None]) -> None:
        """`checkpoint` is called a few times a second, and may raise. Raises UnsupportedModel, InvalidAdapter,
        InvalidRequest, EngineFailure."""
        assert params.model is not None, "refused without"
        adapters = [fetch_adapter(one, token=params.hub_token) for one in name_adapters(params.adapters).values()]
        if len(adapters) > 1:
            raise InvalidRequest("one at a time is measured", param="adapters")
        self._told, self._checkpoint = told, checkpoint
        self._at_once = questions_at_once(params)
        self._ids = count()
        self._engine = build_engine(on_engine(params), several_owners=False)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self.tokenizer = load_tokenizer(params.model, revision=params.model_revision, token=params.hub_token)
            self._call(self._start(adapters))
        except BaseException:
            self.close()
            raise
        self._adapter = ADAPTER if adapters else None
        self.max_length = self._engine.capabilities().max_model_len
        self.end_token_id = int(self.tokenizer.eos_token_id)
        bos = self.tokenizer.bos_token_id
        self.prefix_token_id = self.end_token_id if bos is None else int(bos)

    async def _start(self, adapters: Sequence[Path]) -> None:
        await self._engine.start()
        for folder in adapters:
            await self._engine.load_adapter(ADAPTER, folder)

    # ---- texts

    def encode(self, text: str, *, add_special_tokens: bool | None = None) -> list[int]:
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        if add_special_tokens is None and text.startswith(self.tokenizer.decode([self.prefix_token_id])):
            given = {"add_special_tokens": False}
        ids: list[int] = self.tokenizer.encode(text, **given)
        return ids

    def end_text(self) -> str:
        return str(self.tokenizer.decode([self.end_token_id]))

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    # ---- questions

    def score(self, texts: Sequence[tuple[Sequence[int], int]]) -> list[Scored]:
        if "prompt_logprobs" in self._engine.capabilities().unsupported:
            message = "this engine tells no log-probabilities of a text: it can be asked for written answers only"
            raise UnsupportedParameter(message, param="infer_backend")
        return self._all(self._score, texts)

    async def _score(self, asked: tuple[Sequence[int], int]) -> Scored:
        ids, last = asked
        outputs = await self._again_after_death(lambda: self._outputs(ids, SCORING))
        found = next(output.prompt_logprobs for output in outputs if output.prompt_logprobs is not None)
        return _scored(found[len(found) - last :])

    def write(self, asked: Sequence[ToWrite]) -> list[str]:
        return self._all(self._write, asked)

    async def _write(self, one: ToWrite) -> str:
        sampling = Sampling(max_new_tokens=one.max_tokens, **one.sampling)

        def ended(outputs: Sequence[TokenOutput]) -> bool:
            return bool(one.stops) and cut(self._text(outputs), one.stops)[1]

        outputs = await self._again_after_death(lambda: self._outputs(one.prompt_ids, sampling, ended))
        return cut(self._text(outputs), one.stops)[0]

    def _text(self, outputs: Sequence[TokenOutput]) -> str:
        ids = [id for output in outputs for id in output.token_ids]
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    async def _outputs(
        self, ids: Sequence[int], sampling: Sampling, ended: Callable[[Sequence[TokenOutput]], bool] = lambda _: False
    ) -> list[TokenOutput]:
        """What comes, until it has ended by itself or `ended` says so."""
        request = GenerationRequest(
            request_id=str(next(self._ids)), prompt_ids=list(ids), sampling=sampling, adapter=self._adapter
        )
        coming, found = self._engine.generate(request), []
        try:
            async for output in coming:
                found.append(output)
                if ended(found):
                    break
        finally:
            await coming.aclose()
        return found

    async def _again_after_death(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """A new process takes over where the engine's has died."""
        deaths = 0
        while True:
            try:
                return await ask()
            except EngineFailure:
                deaths += 1
                if deaths == MAX_DEATHS:
                    raise
            except QueueFull:
                pass
            except EngineUnavailable:
                health = self._engine.health()
                if health.state is EngineState.FAILED:
                    raise EngineFailure(health.detail) from None
            await asyncio.sleep(LOOK_SECONDS)

    # ---- the engine's thread

    def _all(self, ask: Callable[[One], Awaitable[Answer]], asked: Sequence[One]) -> list[Answer]:
        """The answers in order, so many questions at a time."""
        found: dict[int, Answer] = {}
        left = iter(enumerate(asked))

        async def one_after_another() -> None:
            for number, one in left:
                found[number] = await ask(one)

        async def all_of_them() -> None:
            workers = [asyncio.ensure_future(one_after_another()) for _ in range(min(self._at_once, len(asked)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

        told = 0

        def tell() -> None:
            nonlocal told
            while told < len(found):
                told += 1
                self._told(told, len(asked))

        self._call(all_of_them(), tell)
        return [found[number] for number in range(len(asked))]

    def _call(self, work: Coroutine[Any, Any, Answer], look: Callable[[], None] = lambda: None) -> Answer:
        """What `work` returns or raises in the engine's thread; `look` is called here meanwhile."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while not wait([future], LOOK_SECONDS).done:
                self._checkpoint()
                look()
            answer = future.result()
            look()
            return answer
        finally:
            future.cancel()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._engine.stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


SCORING = Sampling(max_new_tokens=0, prompt_logprobs=0)


def _scored(logprobs: Sequence[TokenLogprob | None]) -> Scored:
    told = [each for each in logprobs if each is not None]
    if len(told) < len(logprobs):
        raise TuneserveError("nothing comes before the first token of a text, so that it has no logprob")
    return Scored(logprob=sum(each.logprob for each in told), greedy=all(each.rank == 1 for each in told))


def on_engine(params: EvalParams) -> EvalParams:
    """What the engine is started with: room for the questions and for the adapter, unless somebody says."""
    given, changes = params.model_fields_set, {}
    if not {"max_num_seqs", "max_batch_size"} & given:
        changes["max_num_seqs"] = questions_at_once(params)
    if "max_loras" not in given:
        changes["max_loras"] = len(params.adapters)
    return params.model_copy(update=changes)


def questions_at_once(params: EvalParams) -> int:
    slots = params.max_batch_size or (params.max_num_seqs if "max_num_seqs" in params.model_fields_set else AT_ONCE)
    return params.eval_num_proc or slots
