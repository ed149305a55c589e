"""From logits to tokens: one vectorised pass over the batch, every row with parameters of its own.

The order is: penalties, bias, bans, allowed tokens, grammar; then temperature, top_k, top_p, min_p; then one uniform
number for each token through the inverse of the distribution function. An unfiltered row orders its tokens by id. A
filtered row orders them from the likeliest down, ties by id, and what a filter keeps is always a prefix of that order;
so it suffices to sort the likeliest few, and to sort the whole row only where they do not settle how long the prefix
is. Both ways choose the same token: it depends on the row's logits, parameters, seed and position, never on the batch.

On a CPU all but the edits of the logits is in C (`native.py`), and rows that need none are read where they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engines.errors import EngineFailure, InvalidRequest, TuneserveError
from engines.sampler.native import SamplingKernel
from engines.sampler.row import SamplerRow
from engines.types import LOWEST_LOGPROB, TokenLogprob

__all__ = ["SampledBatch", "SamplerRow", "SamplingError", "beam_candidates", "sample", "token_logprobs"]

CANDIDATES = (256, 4096)
"""How many of the likeliest tokens of a filtered row are sorted first, and how many where that settles nothing."""

BLOCK = 64
"""Rows are padded to whole blocks of neighbours: reducing these first is several times faster than reducing a row."""

LANES = 16
"""A divisor of BLOCK."""

SORTED_WHOLE = 1024
"""Rows up to this width are sorted whole."""

CPU_ELEMENTS = 1 << 20
"""Logits that are worked on at once on a CPU. Larger buffers are given back to the kernel, which clears their pages
anew each time; clearing costs more than computing."""

CPU_CACHE_ELEMENTS = 1 << 18
"""The same where the work is a few operations and leaves no more than sums."""


@dataclass(frozen=True, slots=True)
class SampledBatch:
    token_ids: list[int]
    logprobs: list[TokenLogprob | None]
    """None for the rows that asked for none."""


class SamplingError(Exception):
    """Some rows have no token to choose. No row was changed: fail these, and sample the others again without them."""

    def __init__(self, failures: dict[int, TuneserveError]) -> None:
        super().__init__("; ".join(f"row {row}: {error.message}" for row, error in failures.items()))
        self.failures = failures


def sample(
    logits: Tensor,
    rows: Sequence[SamplerRow],
    masks: Tensor | None,
    *,
    tempered: bool = False,
    kernel: SamplingKernel | None = None,
) -> SampledBatch:
    """Choose the next token of each row. The rows are only read: `accept` what is returned.

    logits: (rows, vocab), any float dtype, left as it is
    masks: (rows, vocab in 32s) int32, a set bit for each allowed token; None where every token of every row is allowed
    tempered: logprobs are at each row's temperature (greedy rows': at 1), before all else, and not at 1
    kernel: for logits on a CPU; None: by torch
    Raises SamplingError where a row's logits are not numbers or nothing is allowed.
    """
    if kernel is not None:
        logits = logits.float().contiguous()
        token_ids, best = _choose_natively(kernel, logits, rows, masks)
    else:
        token_ids, best = _choose_by_torch(logits, rows, masks)
    _check(best)
    for i, token_id in _forced(rows, masks):
        token_ids[i] = token_id
    return SampledBatch(token_ids, _sampled_logprobs(logits, rows, token_ids, tempered, kernel))


def _forced(rows: Sequence[SamplerRow], masks: Tensor | None) -> Iterator[tuple[int, int]]:
    """Rows whose next token is settled, whatever their logits, and that token. A constraint comes first: one that does
    not take the token yet, as a character has only begun, is to go on until it does."""
    for i, row in enumerate(rows):
        if row.thinking is None or (token_id := row.thinking.forced) is None:
            continue
        if masks is None or int(masks[i, token_id >> 5]) >> (token_id & 31) & 1:
            yield i, token_id


def token_logprobs(
    logits: Tensor, token_ids: Tensor, top_k: int, *, kernel: SamplingKernel | None = None
) -> list[TokenLogprob]:
    """The logprob and rank of each position's token and the logprobs of its `top_k` likeliest, of the model's own
    distribution.

    logits: (positions, vocab); token_ids: (positions,)
    """
    tops = [top_k] * len(token_ids)
    if kernel is not None:
        return kernel.logprobs(
            logits.float().contiguous(), token_ids.tolist(), tops, [1.0] * len(token_ids), ranked=True
        )
    return _logprobs(logits, token_ids, tops, ranked=True)


def beam_candidates(
    logits: Tensor, rows: Sequence[SamplerRow], masks: Tensor | None, count: int
) -> list[list[tuple[int, float]]]:
    """The `count` best continuations of each beam with their logprobs, best first; fewer where fewer are allowed.

    As in transformers, penalties and bias change the logprobs, which are not normalised again.
    Raises SamplingError where a row's logits are not numbers.
    """
    scores = edited(logits.float().log_softmax(-1), rows, masks)
    values, ids = _largest(scores, count)
    _check(values[:, 0].tolist(), dead_ends=True)
    return [
        [(token_id, value) for token_id, value in zip(some_ids, some_values, strict=True) if value > -torch.inf]
        for some_ids, some_values in zip(ids.tolist(), values.tolist(), strict=True)
    ]


# Editing the logits


def edited(logits: Tensor, rows: Sequence[SamplerRow], masks: Tensor | None) -> Tensor:
    """In float32, padded to whole blocks with -inf, with all but the filters applied.

    A copy where that changes anything.
    """
    assert len(rows) == len(logits)
    changed = masks is not None or any(row.edits for row in rows)
    scores = _padded(logits.to(torch.float32, copy=changed))
    if not changed:
        return scores
    _apply_penalties(scores, rows)
    _apply_bias(scores, rows)
    _apply_bans(scores, rows)
    _apply_masks(scores, rows, masks)
    return scores


def _padded(scores: Tensor) -> Tensor:
    padding = -scores.shape[1] % BLOCK
    return functional.pad(scores, (0, padding), value=-torch.inf) if padding else scores


def _apply_penalties(scores: Tensor, rows: Sequence[SamplerRow]) -> None:
    positions, factors, subtracted = [], [], []
    for i, row in enumerate(rows):
        if row.penalties is not None:
            positions.append(row.penalties.ids + i * scores.shape[1])
            factors.append(np.full(len(positions[-1]), row.sampling.repetition_penalty, dtype=np.float32))
            subtracted.append(row.penalties.subtracted())
    if not positions:
        return
    at, factor, minus = (_joined(arrays, scores.device) for arrays in (positions, factors, subtracted))
    old = scores.view(-1)[at]
    scores.view(-1)[at] = torch.where(old < 0, old * factor, old / factor) - minus


def _apply_bias(scores: Tensor, rows: Sequence[SamplerRow]) -> None:
    biased = [(i, row) for i, row in enumerate(rows) if len(row.bias_ids)]
    if biased:
        at = _joined([row.bias_ids + i * scores.shape[1] for i, row in biased], scores.device)
        scores.view(-1)[at] += _joined([row.bias_values for _, row in biased], scores.device)


def _apply_bans(scores: Tensor, rows: Sequence[SamplerRow]) -> None:
    banned = [i * scores.shape[1] + token_id for i, row in enumerate(rows) for token_id in row.banned()]
    if banned:
        scores.view(-1).index_fill_(0, torch.tensor(banned, device=scores.device), -torch.inf)


def _apply_masks(scores: Tensor, rows: Sequence[SamplerRow], masks: Tensor | None) -> None:
    words = _restrictions(rows, masks, scores.shape[1])
    if words is None:
        return
    restricted = (words != -1).any(1).nonzero()[:, 0]
    padded = functional.pad(words[restricted], (0, scores.shape[1] // 32 - words.shape[1]))
    scores[restricted.to(scores.device)] += _as_addend(padded.to(scores.device))


def _restrictions(rows: Sequence[SamplerRow], masks: Tensor | None, width: int) -> Tensor | None:
    """Grammar masks and allowed tokens in one, on the device of the masks."""
    allowed = [(i, row.allowed_words) for i, row in enumerate(rows) if row.allowed_words is not None]
    if not allowed:
        return masks
    words = torch.full((len(rows), len(allowed[0][1])), -1, dtype=torch.int32) if masks is None else masks.clone()
    for i, own in allowed:
        words[i] &= own.to(words.device)
    return words


def _as_addend(words: Tensor) -> Tensor:
    """(rows, words) int32 -> (rows, 32 * words) float32: 0 for a set bit, else -inf. Adding beats masked filling 7x."""
    bits = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=words.device)
    clear = (torch.arange(256, dtype=torch.uint8, device=words.device)[:, None] & bits) == 0
    of_byte = torch.zeros(256, 8, device=words.device).masked_fill_(clear, -torch.inf)
    return of_byte.index_select(0, words.view(torch.uint8).view(-1).int()).view(len(words), -1)


def _joined(arrays: list[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays)).to(device)


def _check(best: list[float], *, dead_ends: bool = False) -> None:
    failures: dict[int, TuneserveError] = {}
    for i, value in enumerate(best):
        if value == -torch.inf and dead_ends:
            continue
        if value == -torch.inf:
            failures[i] = InvalidRequest(
                "no token may come next: the constraints of the request exclude each other or became too complex"
            )
        elif not value < torch.inf:
            failures[i] = EngineFailure("the model's logits are not finite numbers")
    if failures:
        raise SamplingError(failures)


# Choosing


def _choose_natively(
    kernel: SamplingKernel, logits: Tensor, rows: Sequence[SamplerRow], masks: Tensor | None
) -> tuple[list[int], list[float]]:
    """The chosen ids and the best scores. Only rows that are edited are copied."""
    masked = [False] * len(rows) if masks is None else (masks != -1).any(1).tolist()
    changed = [i for i, row in enumerate(rows) if masked[i] or row.edits]
    if not changed:
        return _transposed(kernel.choose(logits, rows))
    found: list[tuple[int, float]] = [(0, 0.0)] * len(rows)
    if len(changed) < len(rows):
        found = kernel.choose(logits, rows)
    size = _rows_at_once(logits)
    for start in range(0, len(changed), size):
        some = changed[start : start + size]
        own = [rows[i] for i in some]
        scores = edited(logits[some], own, None if masks is None else masks[some])
        for i, one in zip(some, kernel.choose(scores, own), strict=True):
            found[i] = one
    return _transposed(found)


def _transposed(found: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [token_id for token_id, _ in found], [best for _, best in found]


def _choose_by_torch(logits: Tensor, rows: Sequence[SamplerRow], masks: Tensor | None) -> tuple[list[int], list[float]]:
    size = _rows_at_once(logits)
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


def _rows_at_once(logits: Tensor, cpu_elements: int = CPU_ELEMENTS) -> int:
    rows, width = (int(size) for size in logits.shape)
    return max(1, cpu_elements // width) if logits.device.type == "cpu" else max(1, rows)


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
        values, ids = _largest(left, count)
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
    size = _rows_at_once(scores, CPU_CACHE_ELEMENTS)
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


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
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


# Logprobs


def _sampled_logprobs(
    logits: Tensor,
    rows: Sequence[SamplerRow],
    token_ids: list[int],
    tempered: bool,
    kernel: SamplingKernel | None,
) -> list[TokenLogprob | None]:
    result: list[TokenLogprob | None] = [None] * len(rows)
    wanted = [(i, row.sampling.logprobs) for i, row in enumerate(rows) if row.sampling.logprobs is not None]
    if wanted:
        index = torch.tensor([i for i, _ in wanted], device=logits.device)
        own = logits if len(wanted) == len(rows) else logits[index]
        temperatures = [1.0 if rows[i].greedy or not tempered else rows[i].sampling.temperature for i, _ in wanted]
        ids, tops = [token_ids[i] for i, _ in wanted], [top_k for _, top_k in wanted]
        if kernel is not None:
            found = kernel.logprobs(own, ids, tops, temperatures, ranked=False)
        else:
            if any(temperature != 1 for temperature in temperatures):
                own = own.float() / torch.tensor(temperatures, device=logits.device)[:, None]
            found = _logprobs(own, torch.tensor(ids, device=logits.device), tops)
        for (i, _), logprob in zip(wanted, found, strict=True):
            result[i] = logprob
    return result


def _logprobs(logits: Tensor, token_ids: Tensor, top_ks: list[int], *, ranked: bool = False) -> list[TokenLogprob]:
    size = _rows_at_once(logits)
    result: list[TokenLogprob] = []
    for i in range(0, len(top_ks), size):
        result += _some_logprobs(logits[i : i + size], token_ids[i : i + size], top_ks[i : i + size], ranked)
    return result


def _some_logprobs(logits: Tensor, token_ids: Tensor, top_ks: list[int], ranked: bool) -> list[TokenLogprob]:
    logprobs = _padded(logits.float().log_softmax(-1))
    own = logprobs.gather(1, token_ids[:, None])
    ranks = ((logprobs > own).sum(1) + 1).tolist() if ranked else [None] * len(top_ks)
    values_of_own = own.clamp(min=LOWEST_LOGPROB)[:, 0].tolist()
    tops: list[tuple[tuple[int, float], ...]] = [()] * len(top_ks)
    if count := min(max(top_ks), logits.shape[1]):
        values, ids = _largest(logprobs, count)
        pairs = zip(ids.tolist(), values.clamp(min=LOWEST_LOGPROB).tolist(), top_ks, strict=True)
        tops = [tuple(zip(some_ids[:k], some_values[:k], strict=True)) for some_ids, some_values, k in pairs]
    return [TokenLogprob(*each) for each in zip(token_ids.tolist(), values_of_own, tops, ranks, strict=True)]
