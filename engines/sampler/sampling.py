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

import torch
from torch import Tensor

from engines.errors import EngineFailure, InvalidRequest, TuneserveError
from engines.sampler.by_torch import choose_by_torch, largest, logprobs_of, rows_at_once
from engines.sampler.edits import edited
from engines.sampler.native import SamplingKernel
from engines.sampler.row import SamplerRow
from engines.types import TokenLogprob


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
        token_ids, best = choose_by_torch(logits, rows, masks)
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
    return logprobs_of(logits, token_ids, tops, ranked=True)


def beam_candidates(
    logits: Tensor, rows: Sequence[SamplerRow], masks: Tensor | None, count: int
) -> list[list[tuple[int, float]]]:
    """The `count` best continuations of each beam with their logprobs, best first; fewer where fewer are allowed.

    As in transformers, penalties and bias change the logprobs, which are not normalised again.
    Raises SamplingError where a row's logits are not numbers.
    """
    scores = edited(logits.float().log_softmax(-1), rows, masks)
    values, ids = largest(scores, count)
    _check(values[:, 0].tolist(), dead_ends=True)
    return [
        [(token_id, value) for token_id, value in zip(some_ids, some_values, strict=True) if value > -torch.inf]
        for some_ids, some_values in zip(ids.tolist(), values.tolist(), strict=True)
    ]


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
    size = rows_at_once(logits)
    for start in range(0, len(changed), size):
        some = changed[start : start + size]
        own = [rows[i] for i in some]
        scores = edited(logits[some], own, None if masks is None else masks[some])
        for i, one in zip(some, kernel.choose(scores, own), strict=True):
            found[i] = one
    return _transposed(found)


def _transposed(found: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [token_id for token_id, _ in found], [best for _, best in found]


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
            found = logprobs_of(own, torch.tensor(ids, device=logits.device), tops)
        for (i, _), logprob in zip(wanted, found, strict=True):
            result[i] = logprob
    return result
