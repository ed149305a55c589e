"""Logprobs on the wire: chat completions' entries, completions' parallel lists, and vLLM's of the prompt.

Those of each token are written as JSON at once, which takes a tenth of the memory until the answer is whole.
"""

import codecs
from collections.abc import Sequence
from typing import Any

import orjson

from engines.text.logprob_entries import TokenEntry
from engines.text.prompt import Prompt
from engines.text.vocabulary import Vocabulary
from engines.types import LOWEST_LOGPROB, TokenLogprob

Top = tuple[tuple[int, float], ...]
"""The likeliest tokens with their logprobs."""


def floored(logprob: float) -> float:
    return max(logprob, LOWEST_LOGPROB)


def named(token_id: int) -> str:
    """How vLLM writes a token where `return_tokens_as_token_ids` is set."""
    return f"token_id:{token_id}"


def chat_entry(entry: TokenEntry, vocabulary: Vocabulary, *, as_ids: bool = False) -> orjson.Fragment:
    """One of `logprobs.content`, as JSON. The sampled token looks the same where it is among the likeliest."""

    def to_token(token_id: int, logprob: float) -> dict[str, Any]:
        data = entry.shown if token_id == entry.token_id else vocabulary.token_bytes(token_id)
        token = named(token_id) if as_ids else data.decode(errors="replace")
        return {"token": token, "logprob": floored(logprob), "bytes": list(data)}

    top = [to_token(token_id, logprob) for token_id, logprob in entry.top]
    return orjson.Fragment(orjson.dumps({**to_token(entry.token_id, entry.logprob), "top_logprobs": top}))


def likeliest(top: Top, count: int) -> Top:
    """The first of them; -1: all."""
    return top if count == -1 else top[:count]


def to_prompt_logprobs(
    logprobs: Sequence[TokenLogprob | None], count: int, vocabulary: Vocabulary
) -> list[orjson.Fragment | None]:
    """vLLM's `prompt_logprobs`: every prompt token's own logprob and the likeliest ones', by token id."""
    return [None if entry is None else _rivals(entry, count, vocabulary) for entry in logprobs]


def _rivals(entry: TokenLogprob, count: int, vocabulary: Vocabulary) -> orjson.Fragment:
    ranked = {
        str(token_id): {"logprob": floored(logprob), "rank": rank, "decoded_token": vocabulary.token_text(token_id)}
        for rank, (token_id, logprob) in enumerate(likeliest(entry.top, count), 1)
    }
    text = vocabulary.token_text(entry.token_id)
    own = {"logprob": floored(entry.logprob), "rank": entry.rank, "decoded_token": text}
    return orjson.Fragment(orjson.dumps({str(entry.token_id): own, **ranked}))


class LogprobLists:
    """Completions' logprobs: parallel lists, and where in the text each token begins."""

    def __init__(self, vocabulary: Vocabulary, *, as_ids: bool = False) -> None:
        self._vocabulary = vocabulary
        self._as_ids = as_ids
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
                self._append(
                    token_id, shown, entry.logprob, {token_id: entry.logprob, **dict(likeliest(entry.top, count))}
                )

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

    def _labelled(self, top: dict[int, float], sampled: int, shown: bytes) -> orjson.Fragment:
        """Likeliest first. Of tokens that look the same the likelier one stays."""
        labelled: dict[str, float] = {}
        for token_id, logprob in sorted(top.items(), key=lambda item: -item[1]):
            label = self._label(token_id, shown if token_id == sampled else b"")
            labelled.setdefault(label, floored(logprob))
        return orjson.Fragment(orjson.dumps(labelled))

    def _label(self, token_id: int, shown: bytes) -> str:
        """The token's text as shown, or its own where it is hidden; a part of a character is spelt in bytes."""
        if self._as_ids:
            return named(token_id)
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
