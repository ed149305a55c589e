"""The choice of tokens and the logprobs on a CPU, in C (`engines/pt/kernels/sampling.c`).

The rules are those of `sampling.py`, which has them in torch for everywhere else.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from engines.sampler.row import SamplerRow
from engines.types import LOWEST_LOGPROB, TokenLogprob


class _Choice(ctypes.Structure):
    _fields_ = (
        ("scores", ctypes.c_void_p),
        *((name, ctypes.c_double) for name in ("uniform", "top_p", "min_p")),
        ("temperature", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("top_k", "token")),
        ("best", ctypes.c_float),
    )


class _Telling(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("logits", "top_ids", "top_logprobs")),
        ("temperature", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("token", "top", "rank")),
        ("logprob", ctypes.c_float),
    )


class SamplingKernel:
    """Not for several threads at once: it has scratch memory."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def choose(self, scores: Tensor, rows: Sequence[SamplerRow]) -> list[tuple[int, float]]:
        """The token of each row, and its largest score: -inf where no token can come, and no finite number either
        where its scores are none. scores: (rows, width) float32, each row one after the other in memory."""
        address, stride, width = scores.data_ptr(), scores.stride(0) * scores.itemsize, scores.shape[1]
        choices = (_Choice * len(rows))(
            *(
                _Choice(address + i * stride)
                if row.greedy
                else _Choice(address + i * stride, row.uniform(), s.top_p, s.min_p, s.temperature, s.top_k)
                for i, row in enumerate(rows)
                for s in (row.sampling,)
            )
        )
        self._library.choose_tokens(ctypes.addressof(choices), len(rows), width, self._room(width))
        return [(choice.token, choice.best) for choice in choices]

    def logprobs(
        self, logits: Tensor, token_ids: Sequence[int], tops: Sequence[int], temperatures: Sequence[float], ranked: bool
    ) -> list[TokenLogprob]:
        """Of each row, its token's logprob and those of the likeliest few, at its temperature. logits: as `scores`."""
        address, stride, width = logits.data_ptr(), logits.stride(0) * logits.itemsize, logits.shape[1]
        most = min(max(tops), width)
        ids, values = torch.empty(len(tops), most, dtype=torch.int32), torch.empty(len(tops), most)
        found = (_Telling * len(tops))(
            *(
                _Telling(address + i * stride, ids.data_ptr() + 4 * i * most, values.data_ptr() + 4 * i * most, *each)
                for i, each in enumerate(zip(temperatures, token_ids, (min(top, width) for top in tops), strict=True))
            )
        )
        self._library.tell_logprobs(ctypes.addressof(found), len(found), width, self._room(width))
        likeliest = zip(ids.tolist(), values.clamp_(min=LOWEST_LOGPROB).tolist(), strict=True)
        return [
            TokenLogprob(
                one.token,
                max(one.logprob, LOWEST_LOGPROB),
                tuple(zip(some_ids[: one.top], some_values[: one.top], strict=True)),
                one.rank if ranked else None,
            )
            for one, (some_ids, some_values) in zip(found, likeliest, strict=True)
        ]

    def _room(self, width: int) -> int:
        needed = self._library.sampling_scratch(width)
        if len(self._scratch) < needed:
            self._scratch = torch.empty(needed, dtype=torch.uint8)
        return int(self._scratch.data_ptr())
