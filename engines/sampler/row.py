"""What the sampler remembers of one sequence: its parameters, its tokens so far, its place in its random stream."""

import copy
import os
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engines.errors import InvalidRequest
from engines.text.thinking import Thinking
from engines.types import Sampling

GREEDY_BELOW = 1e-5
"""A temperature below this one means greedy: dividing by it would overflow."""

UNIFORMS_AT_ONCE = 64


class SamplerRow:
    """The sampler's state for one sequence, made when the sequence is admitted and told of each token it then gets.

    Nothing but `accept` changes it: sampling twice without `accept` gives the same token twice.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: Sequence[int],
        eos_token_ids: tuple[int, ...],
        index: int,
        vocab_size: int,
        thinking: Thinking | None = None,
    ) -> None:
        """`index` says which of the request's n outputs this is; `vocab_size` is the width of the logits; `thinking`
        keeps the output to its budget of reasoning.

        Raises InvalidRequest where a parameter names a token outside the vocabulary.
        """
        _check_ids(sampling, vocab_size)
        self.sampling = sampling
        self.greedy = sampling.temperature < GREEDY_BELOW
        self.filtered = sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0
        self.penalties = _Penalties.of(sampling, prompt_ids)
        self.bias_ids = np.array(list(sampling.logit_bias.keys()), dtype=np.int64)
        self.bias_values = np.array(list(sampling.logit_bias.values()), dtype=np.float32)
        self.allowed_words = _packed(sampling.allowed_token_ids, vocab_size)
        self.thinking = thinking
        self._stop_ids = tuple(dict.fromkeys((*eos_token_ids, *sampling.stop_token_ids)))
        self._bad_words = _BadWords(sampling.bad_words_ids)
        self._output: list[int] = []
        self._stream = None if self.greedy else _UniformStream(sampling.seed, index)

    def accept(self, token_id: int) -> None:
        """Take note of the token that the sequence was given."""
        self._output.append(token_id)
        if self.penalties is not None:
            self.penalties.add_output(token_id)
        if self.thinking is not None:
            self.thinking.accept(token_id)
            if self.thinking.over:
                self.thinking = None

    @property
    def edits(self) -> bool:
        """Whether anything but temperature and filters bears on the next token."""
        steady = self.penalties is not None or len(self.bias_ids) > 0 or self.allowed_words is not None
        return steady or bool(self.banned())

    def banned(self) -> list[int]:
        """The tokens that must not come next: they end the output too early, or would complete a bad word."""
        too_short = len(self._output) < self.sampling.min_new_tokens
        banned = self._bad_words.completed_by_next(self._output)
        return [*banned, *self._stop_ids] if too_short else banned

    def uniform(self) -> float:
        """The number in [0, 1) that decides the next token. It depends on the stream and the position alone."""
        assert self._stream is not None, "a greedy row draws no numbers"
        return self._stream.at(len(self._output))

    def fork(self) -> "SamplerRow":
        """A copy that goes its own way from here: for the beams of a search."""
        twin = copy.copy(self)
        twin._output = self._output.copy()
        twin.penalties = copy.deepcopy(self.penalties)
        twin._stream = copy.deepcopy(self._stream)
        return twin


class _UniformStream:
    """Uniform numbers by position, from a counter-based generator that belongs to one sequence alone."""

    def __init__(self, seed: int | None, index: int) -> None:
        key = int.from_bytes(os.urandom(8), "little") if seed is None else (seed + index) % 2**64
        self._generator = np.random.Generator(np.random.Philox(key=key))
        self._block = -1
        self._uniforms: list[float] = []

    def at(self, position: int) -> float:
        """Positions must not go back by more than a block; they never do, because outputs only grow."""
        while self._block < position // UNIFORMS_AT_ONCE:
            self._uniforms = self._generator.random(UNIFORMS_AT_ONCE).tolist()
            self._block += 1
        return self._uniforms[position % UNIFORMS_AT_ONCE]


class _Penalties:
    """The distinct tokens that penalties fall on, and how often each is in the output, as arrays that grow in place."""

    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int]) -> None:
        self._sampling = sampling
        known = list(dict.fromkeys(prompt_ids))
        self._slots = {token_id: slot for slot, token_id in enumerate(known)}
        self._ids = np.array(known or [0], dtype=np.int64)
        self._counts = np.zeros(len(self._ids), dtype=np.float32)

    @staticmethod
    def of(sampling: Sampling, prompt_ids: Iterable[int]) -> "_Penalties | None":
        """None where every penalty is neutral."""
        if sampling.repetition_penalty != 1.0:
            return _Penalties(sampling, prompt_ids)
        if sampling.presence_penalty or sampling.frequency_penalty:
            return _Penalties(sampling, ())
        return None

    def add_output(self, token_id: int) -> None:
        slot = self._slots.setdefault(token_id, len(self._slots))
        if slot == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[slot] = token_id
        self._counts[slot] += 1

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        return self._ids[: len(self._slots)]

    def subtracted(self) -> npt.NDArray[np.float32]:
        """What presence and frequency penalties take off the logit of each of `ids`."""
        counts = self._counts[: len(self._slots)]
        penalty = counts * self._sampling.frequency_penalty + (counts > 0) * self._sampling.presence_penalty
        return penalty.astype(np.float32)


class _BadWords:
    """Token sequences that must not appear, found by the token before their last."""

    def __init__(self, words: Iterable[tuple[int, ...]]) -> None:
        self._single: list[int] = []
        self._longer: dict[int, list[tuple[int, ...]]] = {}
        for word in words:
            if len(word) == 1:
                self._single.append(word[0])
            else:
                self._longer.setdefault(word[-2], []).append(word)

    def completed_by_next(self, output: list[int]) -> list[int]:
        if not self._longer or not output:
            return list(self._single)
        words = self._longer.get(output[-1], ())
        return self._single + [word[-1] for word in words if _ends_with(output, word[:-1])]


def _ends_with(output: list[int], prefix: tuple[int, ...]) -> bool:
    return tuple(output[-len(prefix) :]) == prefix


def _packed(token_ids: tuple[int, ...] | None, vocab_size: int) -> Tensor | None:
    """One bit for each token of the vocabulary, set for these: int32 words as grammar masks have them."""
    if token_ids is None:
        return None
    bits = np.zeros(-(-vocab_size // 32) * 32, dtype=np.uint8)
    bits[list(token_ids)] = 1
    return torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32))


def _check_ids(sampling: Sampling, vocab_size: int) -> None:
    named: dict[str, Iterable[int]] = {
        "logit_bias": sampling.logit_bias,
        "allowed_token_ids": sampling.allowed_token_ids or (),
        "stop_token_ids": sampling.stop_token_ids,
        "thinking_token_budget": () if sampling.thinking_budget is None else sampling.thinking_budget.end_ids,
        "bad_words": [token_id for word in sampling.bad_words_ids for token_id in word],
    }
    for name, ids in named.items():
        for token_id in ids:
            if not 0 <= token_id < vocab_size:
                raise InvalidRequest(
                    f"{name} names the token {token_id}, but token ids of this model are 0 to {vocab_size - 1}",
                    param=name,
                )
