"""Tokens and logprobs of rows of logits, by torch: on a GPU, and on a CPU without kernels (native.py)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engines.sampler.edits import BLOCK, edited, padded
from engines.sampler.row import SamplerRow
from engines.types import LOWEST_LOGPROB, TokenLogprob

CANDIDATES = (256, 4096)
"""How many of the likeliest tokens of a filtered row are sorted first, and how many where that settles nothing."""

LANES = 16
"""A divisor of BLOCK."""

SORTED_WHOLE = 1024
"""Rows up to this width are sorted whole."""

CPU_ELEMENTS = 1 << 20
"""Logits that are worked on at once on a CPU. Larger buffers are given back to the kernel, which clears their pages
anew each time; clearing costs more than computing."""

CPU_CACHE_ELEMENTS = 1 << 18
"""The same where the work is a few operations and leaves no more than sums."""


def choose_by_torch(logits: Tensor, rows: Sequence[SamplerRow], masks: Tensor | None) -> tuple[list[int], list[float]]:
    size = rows_at_once(logits)
    starts = range(0, len(rows), size)
    parts = [
        _choose(logits[i : i + size], rows[i : i + size], None if masks is None else masks[i : i + size])
        for i in starts
    ]
    ids, best = torch.cat(parts, dim=1).tolist()
    return [int(token_id) for token_id in ids], best


def _choose(logits: Tensor, rows: Sequence[SamplerRow], masks: Tensor | None) -> Tensor:
    """(2, rows) float64: the chosen ids, which it holds exactly, and the best scores.

    One tensor: one copy to the host.
    """
    scores = edited(logits, rows, masks)
    block_maxima = scores.view(len(rows), -1, BLOCK).amax(-1)
    best = block_maxima.amax(-1)
    chosen = _argmax(scores, block_maxima)
    for draw, filtered in ((_draw_unfiltered, False), (_draw_filtered, True)):
        members = [i for i, row in enumerate(rows) if not row.greedy and row.filtered == filtered]
        if members:
            index = torch.tensor(members, device=scores.device)
            some = (scores, best) if len(members) == len(rows) else (scores[index], best[index])
            chosen[index] = draw(*some, _Params.of([rows[i] for i in members], scores.device))
    return torch.stack((chosen.double(), best.double()))


@dataclass(frozen=True, slots=True)
class _Params:
    """One value for each row."""

    uniform: Tensor  # float64
    temperature: Tensor  # float32
    top_k: Tensor  # int64, 0: off
    top_p: Tensor  # float64
    min_p: Tensor  # float64

    @staticmethod
    def of(rows: list[SamplerRow], device: torch.device) -> "_Params":
        columns = [(row.uniform(), s.temperature, s.top_k, s.top_p, s.min_p) for row in rows for s in (row.sampling,)]
        uniform, temperature, top_k, top_p, min_p = torch.tensor(columns, dtype=torch.float64).T.to(device)
        return _Params(uniform, temperature.float(), top_k.long(), top_p, min_p)

    def at(self, index: Tensor) -> "_Params":
        return _Params(*(column[index] for column in self))

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.uniform, self.temperature, self.top_k, self.top_p, self.min_p))


def _argmax(scores: Tensor, block_maxima: Tensor) -> Tensor:
    """The first of the largest, as `argmax` has it."""
    block = block_maxima.argmax(-1)
    return block * BLOCK + _of_block(scores, block).argmax(-1)


def _draw_unfiltered(scores: Tensor, best: Tensor, params: _Params) -> Tensor:
    masses = _block_masses(scores, best, params.temperature)
    cumulative = masses.cumsum(-1)
    target = params.uniform * cumulative[:, -1]
    block = _first_above(cumulative, target, cumulative[:, -1])
    before = (cumulative - masses).gather(1, block[:, None])[:, 0]
    inside = _weights(_of_block(scores, block), best, params.temperature).double().cumsum(-1)
    return block * BLOCK + _first_above(inside, target - before, inside[:, -1])


def _draw_filtered(scores: Tensor, best: Tensor, params: _Params) -> Tensor:
    mass = torch.ones_like(params.uniform)
    # The mass of the whole row matters only to a top_p that follows no top_k.
    needed = ((params.top_p < 1) & (params.top_k == 0)).nonzero()[:, 0]
    if len(needed):
        some = (scores, best) if len(needed) == len(scores) else (scores[needed], best[needed])
        mass[needed] = _block_masses(*some, params.temperature[needed]).sum(-1)
    chosen = torch.empty(scores.shape[:1], dtype=torch.int64, device=scores.device)
    pending = torch.arange(len(scores), device=scores.device)
    for count in (*CANDIDATES, scores.shape[1]):
        left = scores if len(pending) == len(scores) else scores[pending]
        values, ids = largest(left, count)
        chosen[pending], settled = _draw_sorted(
            values, ids, scores.shape[1], best[pending], mass[pending], params.at(pending)
        )
        pending = pending[~settled]
        if not len(pending):
            break
    return chosen


def _draw_sorted(
    values: Tensor, ids: Tensor, width: int, best: Tensor, mass: Tensor, params: _Params
) -> tuple[Tensor, Tensor]:
    """Draw from the likeliest tokens of each row, and say for which rows the rest cannot matter.

    values, ids: (rows, some), falling; width: of a whole row; mass: of a whole row, where a filter needs it
    """
    count = values.shape[1]
    weights = _weights(values, best, params.temperature).double()
    cumulative = weights.cumsum(1)
    before = functional.pad(cumulative[:, :-1], (1, 0))

    # 1. How long a prefix each filter keeps; top_k keeps ties of its last token.
    kth = values.gather(1, (params.top_k - 1).clamp(0, count - 1)[:, None])
    by_k = torch.where(params.top_k > 0, (values >= kth).sum(1), count)
    mass = torch.where(params.top_k > 0, cumulative.gather(1, by_k[:, None] - 1)[:, 0], mass)
    by_p = torch.where(params.top_p < 1, (before < (params.top_p * mass)[:, None]).sum(1), count)
    by_min_p = torch.where(params.min_p > 0, (weights >= params.min_p[:, None]).sum(1), count)
    kept = torch.minimum(torch.minimum(by_k, by_p), by_min_p).clamp(min=1)

    # 2. Is it certain? Ties of the last value we see may go on outside, so a prefix must end above it.
    last = values[:, -1]
    certain = (values > last[:, None]).sum(1)
    settled = (kept <= certain) & ((params.top_k == 0) | (by_k <= certain))
    settled |= (last == -torch.inf) | (count == width)

    # 3. Draw within the prefix.
    total = cumulative.gather(1, kept[:, None] - 1)[:, 0]
    place = _first_above(cumulative, params.uniform * total, total)
    return ids.gather(1, place[:, None])[:, 0], settled


def _block_masses(scores: Tensor, best: Tensor, temperature: Tensor) -> Tensor:
    """(rows, blocks) float64: the sums of the weights of each block."""
    size = rows_at_once(scores, CPU_CACHE_ELEMENTS)
    parts = zip(scores.split(size), best.split(size), temperature.split(size), strict=True)
    return torch.cat([_weights(*part).view(len(part[0]), -1, BLOCK).sum(-1) for part in parts]).double()


def _of_block(scores: Tensor, block: Tensor) -> Tensor:
    """(rows, BLOCK): one block of each row."""
    return scores.view(len(scores), -1, BLOCK)[torch.arange(len(scores), device=scores.device), block]


def _weights(scores: Tensor, best: Tensor, temperature: Tensor) -> Tensor:
    """Probabilities up to a factor: the likeliest token has 1."""
    return (scores - best[:, None]).mul_(1 / temperature[:, None]).exp_()


def _first_above(cumulative: Tensor, target: Tensor, total: Tensor) -> Tensor:
    """The first place in each row whose sum exceeds the target, never one without weight of its own."""
    below_total = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(target.clamp(min=0), below_total)
    found = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    # Only rows that are not numbers find nothing; these are refused later.
    return found.clamp(max=cumulative.shape[1] - 1)


def largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(values, ids) of the `count` largest of each row, falling."""
    width = scores.shape[1]
    if count * 2 >= width or width <= SORTED_WHOLE:
        values, ids = _falling(scores, torch.arange(width, device=scores.device).expand(len(scores), -1))
        return values[:, :count], ids[:, :count]
    if scores.device.type == "cpu" and count > CANDIDATES[0]:
        # numpy partitions with vector instructions; topk is as fast only for a few.
        partitioned = np.argpartition(scores.numpy(), width - count, axis=-1)
        return _falling(scores, torch.from_numpy(partitioned[:, width - count :]))
    if count < width // LANES:
        return _falling(scores, _largest_by_lanes(scores, count))
    return _falling(scores, scores.topk(count, sorted=False).indices)


def _largest_by_lanes(scores: Tensor, count: int) -> Tensor:
    """The ids of the `count` largest: these lie in the lanes with the largest maxima.

    Half the time of topk on a CPU.
    """
    # A lane's tokens are far apart, so that the maxima of many lanes are one vector operation.
    stride = scores.shape[1] // LANES
    lanes = scores.view(len(scores), LANES, stride).amax(1).topk(count, sorted=False).indices
    steps = torch.arange(LANES, device=scores.device) * stride
    ids = (lanes[:, None, :] + steps[None, :, None]).view(len(scores), -1)
    return ids.gather(1, scores.gather(1, ids).topk(count, sorted=False).indices)


def _falling(scores: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(values, ids), each row's ids sorted by falling score and then by id."""
    bits = scores.gather(1, ids).view(torch.int32)
    # Flipping the magnitude of negative floats gives integers in the order of the floats; ~ turns it round.
    falling = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))
    ids = _sorted((falling.long() << 32) | ids) & 0xFFFFFFFF
    return scores.gather(1, ids), ids


def _sorted(keys: Tensor) -> Tensor:
    # numpy sorts integers with vector instructions, 6 times as fast as torch on a CPU.
    return torch.from_numpy(np.sort(keys.numpy())) if keys.device.type == "cpu" else keys.sort().values


def rows_at_once(logits: Tensor, cpu_elements: int = CPU_ELEMENTS) -> int:
    rows, width = (int(size) for size in logits.shape)
    return max(1, cpu_elements // width) if logits.device.type == "cpu" else max(1, rows)


def logprobs_of(logits: Tensor, token_ids: Tensor, top_ks: list[int], *, ranked: bool = False) -> list[TokenLogprob]:
    size = rows_at_once(logits)
    result: list[TokenLogprob] = []
    for i in range(0, len(top_ks), size):
        result += _some_logprobs(logits[i : i + size], token_ids[i : i + size], top_ks[i : i + size], ranked)
    return result


def _some_logprobs(logits: Tensor, token_ids: Tensor, top_ks: list[int], ranked: bool) -> list[TokenLogprob]:
    logprobs = padded(logits.float().log_softmax(-1))
    own = logprobs.gather(1, token_ids[:, None])
    ranks = ((logprobs > own).sum(1) + 1).tolist() if ranked else [None] * len(top_ks)
    values_of_own = own.clamp(min=LOWEST_LOGPROB)[:, 0].tolist()
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(top_ks)
    if count := min(max(top_ks), logits.shape[1]):
        values, ids = largest(logprobs, count)
        pairs = zip(ids.tolist(), values.clamp(min=LOWEST_LOGPROB).tolist(), top_ks, strict=True)
        tops = [tuple(zip(some_ids[:k], some_values[:k], strict=True)) for some_ids, some_values, k in pairs]
    return [TokenLogprob(*each) for each in zip(token_ids.tolist(), values_of_own, tops, ranks, strict=True)]
