"""Prompts that begin alike and arrive together: what they have in common is computed once.

A sequence waits while a running one computes the next full block that it needs itself, and shares it then, as it does
what was computed before it came. It only ever waits for a prompt of the same or a higher priority, which every step
takes further. Where that one ends, fails or gives its blocks back, it computes the rest itself.
"""

from collections.abc import Iterable

from engines.pt.sequences.kv_cache import BlockPool
from engines.pt.sequences.sequence import Sequence


def is_under_way(pool: BlockPool, sequence: Sequence, hashes: list[bytes], running: Iterable[Sequence]) -> bool:
    """Whether the first block of a waiting sequence that the cache does not know is about to be computed by another.

    `hashes`: those of the blocks that it would share.
    """
    priority = sequence.group.request.priority
    prompts = [one for one in running if one.remaining > 1 and one.group.request.priority <= priority]
    if not (pool.prefix_caching and prompts and hashes):
        return False
    known = len(pool.match(hashes))
    end = (known + 1) * pool.block_size
    return known < len(hashes) and any(
        one.computed < end <= len(one.tokens) and one.hashes.of(one.tokens, known + 1)[known] == hashes[known]
        for one in prompts
    )
