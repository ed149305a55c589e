"""An answer as completions have it: texts, or pieces of texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engines.text.prompt import Prompt
from engines.text.vocabulary import Vocabulary
from engines.types import TokenLogprob
from server.http.sse import CHUNKS
from server.openai.answer import AnswerDelta
from server.openai.asked import Asked
from server.openai.chunks import Chunks, Envelope
from server.openai.logprobs import LogprobLists, to_prompt_logprobs
from server.openai.schema import CompletionRequest
from server.openai.usage import Usage


class CompletionRenderer:
    events = CHUNKS

    def __init__(self, body: CompletionRequest, asked: Asked, envelope: Envelope, vocabulary: Vocabulary) -> None:
        self._n = body.n
        self._outputs_each = asked.n
        self._head = envelope.to_wire("text_completion")
        self._chunks = Chunks(self._head, body.stream_options, asked)
        self._choices = [
            CompletionChoice(number * asked.n + output, scored, body, vocabulary)
            for number, scored in enumerate(map(ScoredPrompt, asked.prompts))
            for output in range(asked.n)
        ]

    def chunks(self, delta: AnswerDelta) -> list[dict[str, Any]]:
        return self._chunks.of(self._choices[delta.text.index].pieces(delta), delta)

    def last_chunks(self, usage: Usage) -> list[dict[str, Any]]:
        return self._chunks.last(usage)

    def add(self, delta: AnswerDelta) -> None:
        self._choices[delta.text.index].add(delta)

    def whole(self, usage: Usage) -> dict[str, Any]:
        choices = [choice.to_wire(index) for index, choice in enumerate(self._best())]
        return {**self._head, "choices": choices, "usage": usage.to_wire()}

    def _best(self) -> "list[CompletionChoice]":
        """The n outputs of each prompt that the model finds likeliest, by the mean logprob of their tokens."""
        n, each = self._n, self._outputs_each
        groups = [self._choices[start : start + each] for start in range(0, len(self._choices), each)]
        if each > n:
            groups = [sorted(group, key=CompletionChoice.mean_logprob, reverse=True)[:n] for group in groups]
        return [choice for group in groups for choice in group]


@dataclass(slots=True)
class ScoredPrompt:
    prompt: Prompt
    logprobs: Sequence[TokenLogprob | None] | None = None
    """They come with the first output, and are told with each choice."""


class CompletionChoice:
    """One of the answer's choices while it grows."""

    def __init__(self, index: int, scored: ScoredPrompt, body: CompletionRequest, vocabulary: Vocabulary) -> None:
        self._index = index
        self._scored = scored
        self._prompt = scored.prompt
        self._body = body
        self._vocabulary = vocabulary
        as_ids = body.return_tokens_as_token_ids
        self._logprobs = LogprobLists(vocabulary, as_ids=as_ids) if body.logprobs is not None else None
        self._begun = False
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._scores: list[float] = []
        self._prompt_logprobs: list[Any] | None = None
        self._finish: dict[str, Any] = {}

    def add(self, delta: AnswerDelta) -> None:
        """Take a delta into the whole."""
        if not self._begun:
            self._begin(delta)
        text = delta.text
        self._texts.append(text.text)
        self._token_ids += text.token_ids
        self._scores += [entry.logprob for entry in text.entries]
        if self._logprobs is not None:
            self._logprobs.extend(text.entries)
        self._finish = delta.finish_to_wire()

    def _begin(self, delta: AnswerDelta) -> None:
        self._begun = True
        if self._body.echo:
            self._texts.append(self._prompt.text)
        if delta.text.prompt_logprobs is not None:
            self._scored.logprobs = delta.text.prompt_logprobs
        logprobs = self._scored.logprobs
        if logprobs is None:
            return
        if self._body.echo and self._logprobs is not None:
            self._logprobs.extend_by_prompt(self._prompt, logprobs, self._body.logprobs or 0)
        if self._body.prompt_logprobs is not None:
            self._prompt_logprobs = to_prompt_logprobs(logprobs, self._body.prompt_logprobs, self._vocabulary)

    def mean_logprob(self) -> float:
        return sum(self._scores) / max(len(self._scores), 1)

    def to_wire(self, index: int) -> dict[str, Any]:
        choice = {
            "index": index,
            "text": "".join(self._texts),
            "logprobs": None if self._logprobs is None else self._logprobs.take(),
            **self._finish,
        }
        if self._prompt_logprobs is not None:
            choice["prompt_logprobs"] = self._prompt_logprobs
        if self._body.return_token_ids:
            choice["prompt_token_ids"], choice["token_ids"] = self._prompt.ids, self._token_ids
        return choice

    def pieces(self, delta: AnswerDelta) -> list[dict[str, Any]]:
        """The delta as a choice of a chunk; none where it has nothing to say."""
        first = not self._begun
        self._texts, self._token_ids = [], []
        self.add(delta)
        text = "".join(self._texts)
        logprobs = None if self._logprobs is None else self._logprobs.take()
        speaks = text or (logprobs is not None and logprobs["tokens"]) or delta.finish
        if not speaks and not self._body.return_token_ids:
            return []
        choice = {"index": self._index, "text": text, "logprobs": logprobs, **self._finish}
        if self._body.return_token_ids:
            choice["token_ids"] = delta.text.token_ids
            if first:
                choice["prompt_token_ids"] = self._prompt.ids
        return [choice]
