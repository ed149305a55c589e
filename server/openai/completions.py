"""POST /v1/completions: prompts in, their continuations out."""

import codecs
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response

from engines.logs import current_http_request_id
from engines.text.logprob_entries import TokenEntry
from engines.text.output_text import TextDelta, TextOptions
from engines.text.vocabulary import Vocabulary
from engines.types import FinishReason, GenerationRequest, TokenLogprob
from server.http.body import json_body
from server.http.settings import HttpDep
from server.inference.inference import Inference, ReadyInference, lease
from server.model.served import ModelDep, ServedModel
from server.openai.convert import (
    Limits,
    bad_words_ids,
    check_capabilities,
    check_request,
    completion_logprobs,
    to_sampling,
    to_text_options,
)
from server.openai.generation import (
    FINISH_REASONS,
    Envelope,
    Usage,
    floored,
    read_constraint,
    respond,
    run,
    run_together,
    to_chunks,
    to_prompt_logprobs,
)
from server.openai.schema import CompletionRequest

router = APIRouter()

KIND = "text_completion"


@router.post("/v1/completions", response_model=None)
async def create_completion(
    request: Request,
    body: Annotated[CompletionRequest, json_body(CompletionRequest)],
    model: ModelDep,
    inference: ReadyInference,
    http: HttpDep,
) -> Response:
    check_request(body)
    leased = await lease(request, inference, body.model)
    return await respond(request, await prepare(body, model, inference, leased.version), body, http)


async def prepare(
    body: CompletionRequest, model: ServedModel, inference: Inference, adapter: str | None
) -> "CompletionAnswer":
    """Everything that can be refused of a checked request is refused here, but for what the engine itself refuses."""
    limits = Limits(capabilities=inference.engine.capabilities(), max_logprobs=model.max_logprobs)
    envelope = Envelope(id=f"cmpl-{uuid.uuid4().hex}", created=int(time.time()), model=body.model)
    logprobs = completion_logprobs(body, limits)
    structured = await read_constraint(body)
    bad_words = bad_words_ids(body.bad_words, model.tokenizer)
    prompts = [await _prompt(prompt, body, model, limits) for prompt in body.prompt]
    requests = []
    for number, prompt in enumerate(prompts):
        sampling = to_sampling(
            body,
            model.defaults,
            limits,
            prompt_length=len(prompt.ids),
            logprobs=0 if logprobs is None and body.best_of is not None else logprobs,
            structured=structured,
            bad_words_ids=bad_words,
        )
        if body.echo and logprobs is not None:
            sampling = replace(sampling, prompt_logprobs=max(logprobs, sampling.prompt_logprobs or 0))
        requests.append(
            GenerationRequest(
                request_id=f"{envelope.id}-{number}",
                prompt_ids=prompt.ids,
                sampling=sampling,
                n=body.best_of or body.n,
                adapter=adapter,
                priority=body.priority,
                http_request_id=current_http_request_id(),
            )
        )
        check_capabilities(requests[-1], limits.capabilities, body)
    options = to_text_options(body, model.defaults, starts_text=False, hidden_entries=body.echo)
    return CompletionAnswer(model, inference, body, envelope, prompts, requests, options)


@dataclass(frozen=True, slots=True)
class Prompt:
    ids: list[int]
    text: str
    """What `echo` says."""


async def _prompt(prompt: str | list[int], body: CompletionRequest, model: ServedModel, limits: Limits) -> Prompt:
    if isinstance(prompt, str):
        ids = await model.renderer.text(prompt, limits.capabilities, add_special_tokens=body.add_special_tokens)
        return Prompt(ids, prompt)
    ids = model.renderer.ids(prompt, limits.capabilities)
    if not body.echo:
        return Prompt(ids, "")
    return Prompt(ids, model.tokenizer.decode(ids, skip_special_tokens=body.skip_special_tokens))


class CompletionAnswer:
    """One answer, as a whole or in chunks. Choice `i` of prompt `p` has the index `p * n + i`."""

    def __init__(
        self,
        model: ServedModel,
        inference: Inference,
        body: CompletionRequest,
        envelope: Envelope,
        prompts: list[Prompt],
        requests: list[GenerationRequest],
        options: TextOptions,
    ) -> None:
        self._model = model
        self._inference = inference
        self._body = body
        self._head = envelope.to_wire(KIND)
        self._prompts = prompts
        self._requests = requests
        self._options = options
        self._outputs_each = requests[0].n
        self._usage = Usage(sum(len(prompt.ids) for prompt in prompts))

    def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        return to_chunks(self._pieces(), self._head, self._usage, self._body.stream_options)

    async def _pieces(self) -> AsyncGenerator[dict[str, Any], None]:
        choices = self._choices()
        async with aclosing(self._deltas()) as deltas:
            async for delta in deltas:
                for piece in choices[delta.index].pieces(delta):
                    yield piece

    async def completion(self) -> dict[str, Any]:
        choices = self._choices()
        async with aclosing(self._deltas()) as deltas:
            async for delta in deltas:
                choices[delta.index].add(delta)
        chosen = self._best(choices)
        return {**self._head, "choices": [c.to_wire(i) for i, c in enumerate(chosen)], "usage": self._usage.to_wire()}

    def _choices(self) -> list["Choice"]:
        return [
            Choice(number * self._outputs_each + output, prompt, self._body, self._model.vocabulary)
            for number, prompt in enumerate(self._prompts)
            for output in range(self._outputs_each)
        ]

    async def _deltas(self) -> AsyncGenerator[TextDelta, None]:
        runs = [run(self._inference, request, self._model.vocabulary, self._options) for request in self._requests]
        together = runs[0] if len(runs) == 1 else run_together(runs, self._outputs_each)
        async with aclosing(together) as deltas:
            async for delta in deltas:
                if self._body.max_tokens == 0:
                    delta = _without_output(delta)
                self._usage.add(delta)
                yield delta

    def _best(self, choices: list["Choice"]) -> list["Choice"]:
        """Of each prompt's outputs the n that the model finds likeliest, by the mean logprob of their tokens."""
        n, each = self._body.n, self._outputs_each
        groups = [choices[start : start + each] for start in range(0, len(choices), each)]
        if each > n:
            groups = [sorted(group, key=Choice.mean_logprob, reverse=True)[:n] for group in groups]
        return [choice for group in groups for choice in group]


def _without_output(delta: TextDelta) -> TextDelta:
    """With `max_tokens` 0 the prompt is scored; the one token that was generated on the way is not the client's."""
    reason = None if delta.finish_reason is None else FinishReason.LENGTH
    return replace(delta, text="", token_ids=(), entries=(), finish_reason=reason, stop_reason=None)


class Choice:
    """One of the answer's choices while it grows."""

    def __init__(self, index: int, prompt: Prompt, body: CompletionRequest, vocabulary: Vocabulary) -> None:
        self._index = index
        self._prompt = prompt
        self._body = body
        self._vocabulary = vocabulary
        self._logprobs = LogprobLists(vocabulary) if body.logprobs is not None else None
        self._begun = False
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._scores: list[float] = []
        self._prompt_logprobs: list[Any] | None = None
        self._last: TextDelta | None = None

    def add(self, delta: TextDelta) -> None:
        """Take a delta into the whole."""
        if not self._begun:
            self._begin(delta)
        self._texts.append(delta.text)
        self._token_ids += delta.token_ids
        self._scores += [entry.logprob for entry in delta.entries]
        if self._logprobs is not None:
            self._logprobs.extend(delta.entries)
        self._last = delta

    def _begin(self, delta: TextDelta) -> None:
        self._begun = True
        if self._body.echo:
            self._texts.append(self._prompt.text)
        if delta.prompt_logprobs is None:
            return
        if self._body.echo and self._logprobs is not None:
            self._logprobs.extend_by_prompt(self._prompt, delta.prompt_logprobs, self._body.logprobs or 0)
        if self._body.prompt_logprobs is not None:
            self._prompt_logprobs = to_prompt_logprobs(
                delta.prompt_logprobs, self._body.prompt_logprobs, self._vocabulary
            )

    def mean_logprob(self) -> float:
        return sum(self._scores) / max(len(self._scores), 1)

    def to_wire(self, index: int) -> dict[str, Any]:
        assert self._last is not None
        choice = {
            "index": index,
            "text": "".join(self._texts),
            "logprobs": None if self._logprobs is None else self._logprobs.take(),
            **_finish(self._last),
        }
        if self._prompt_logprobs is not None:
            choice["prompt_logprobs"] = self._prompt_logprobs
        if self._body.return_token_ids:
            choice["prompt_token_ids"], choice["token_ids"] = self._prompt.ids, self._token_ids
        return choice

    def pieces(self, delta: TextDelta) -> list[dict[str, Any]]:
        """The delta as a choice of a chunk; none where it has nothing to say."""
        first = not self._begun
        self._texts, self._token_ids = [], []
        self.add(delta)
        text = "".join(self._texts)
        logprobs = None if self._logprobs is None else self._logprobs.take()
        speaks = text or (logprobs is not None and logprobs["tokens"]) or delta.finish_reason
        if not speaks and not self._body.return_token_ids:
            return []
        choice = {"index": self._index, "text": text, "logprobs": logprobs, **_finish(delta)}
        if self._body.return_token_ids:
            choice["token_ids"] = delta.token_ids
            if first:
                choice["prompt_token_ids"] = self._prompt.ids
        return [choice]


def _finish(delta: TextDelta) -> dict[str, Any]:
    reason = None if delta.finish_reason is None else FINISH_REASONS[delta.finish_reason]
    extra = {} if delta.stop_reason is None else {"stop_reason": delta.stop_reason}
    return {"finish_reason": reason, **extra}


class LogprobLists:
    """Completions' logprobs: parallel lists, and where in the text each token begins."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0
        self._lists: dict[str, list[Any]] = {}
        self._clear()

    def extend(self, entries: Sequence[TokenEntry]) -> None:
        for entry in entries:
            top = {entry.token_id: entry.logprob, **dict(entry.top)}
            self._append(entry.token_id, entry.shown, entry.logprob, top)

    def extend_by_prompt(self, prompt: Prompt, logprobs: Sequence[TokenLogprob | None], count: int) -> None:
        """The prompt's tokens come before, the first of them with nothing to follow from."""
        for token_id, entry, shown in zip(prompt.ids, logprobs, self._shown(prompt), strict=True):
            if entry is None:
                self._append(token_id, shown, None, None)
            else:
                self._append(token_id, shown, entry.logprob, {token_id: entry.logprob, **dict(entry.top[:count])})

    def take(self) -> dict[str, list[Any]]:
        """The lists since the last call."""
        lists = self._lists
        self._clear()
        return lists

    def _clear(self) -> None:
        self._lists = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def _append(self, token_id: int, shown: bytes, logprob: float | None, top: dict[int, float] | None) -> None:
        lists = self._lists
        lists["tokens"].append(self._label(token_id, shown))
        lists["token_logprobs"].append(None if logprob is None else floored(logprob))
        lists["top_logprobs"].append(None if top is None else self._labelled(top, token_id, shown))
        lists["text_offset"].append(self._offset)
        self._offset += len(self._utf8.decode(shown))

    def _labelled(self, top: dict[int, float], sampled: int, shown: bytes) -> dict[str, float]:
        """Likeliest first. Of tokens that look the same the likelier one stays."""
        labelled: dict[str, float] = {}
        for token_id, logprob in sorted(top.items(), key=lambda item: -item[1]):
            label = self._label(token_id, shown if token_id == sampled else b"")
            labelled.setdefault(label, floored(logprob))
        return labelled

    def _label(self, token_id: int, shown: bytes) -> str:
        """The token's text as shown, or its own where it is hidden; a part of a character is spelt in bytes."""
        data = shown or self._vocabulary.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _shown(self, prompt: Prompt) -> list[bytes]:
        """The bytes of each token in the prompt's text; special tokens that the text does not spell have none."""
        whole = [self._vocabulary.token_bytes(token_id) for token_id in prompt.ids]
        if b"".join(whole) == prompt.text.encode():
            return whole
        special = self._vocabulary.special_ids
        return [b"" if token_id in special else data for token_id, data in zip(prompt.ids, whole, strict=True)]
