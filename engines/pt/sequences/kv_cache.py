"""Blocks of the key-value cache: who holds which, and which of them a later prompt can use again.

Only bookkeeping; the tensors live in `layers/attention.py`. A block holds the keys and values of `block_size`
consecutive tokens in every layer. A full block is known by a hash of everything that determines its content (all
tokens up to its end, and the adapter version) and of its request's salt, so an equal prefix finds it again:
PagedAttention with automatic prefix caching (Kwon et al. 2023, arXiv:2309.06180, section 4). Requests of different
salts find nothing of each other's: neither `cached_tokens` nor the time tells one client what another has asked.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence


class BlockPool:
    """Reference-counted blocks. A block without references keeps its content until the space is needed (LRU)."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._references = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._blank = list(range(num_blocks - 1, -1, -1))  # free, nothing worth keeping in them
        self._idle: OrderedDict[int, None] = OrderedDict()  # free, content kept; oldest first

    @property
    def free(self) -> int:
        """Number of blocks that can be allocated now."""
        return len(self._blank) + len(self._idle)

    @property
    def usage(self) -> float:
        """Share of the blocks that running requests hold, 0 to 1."""
        return 1 - self.free / self.num_blocks

    def blocks_for(self, tokens: int) -> int:
        """Number of blocks that hold so many tokens."""
        return -(-tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blank blocks, forgetting the least recently used content. The caller checked `free`."""
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        block = self._blank.pop() if self._blank else self._evict()
        self._references[block] = 1
        return block

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        block_hash = self._hash_of[block]
        assert block_hash is not None, "an idle block has a hash"
        del self._block_of[block_hash]
        self._hash_of[block] = None
        return block

    def share(self, blocks: Sequence[int]) -> None:
        """Add a reference to each block; blocks that were free are in use again."""
        for block in blocks:
            self._references[block] += 1
            self._idle.pop(block, None)

    def release(self, blocks: Sequence[int]) -> None:
        """Drop a reference of each block.

        Last blocks first, so that the ends of prefixes are forgotten before their heads.
        """
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._hash_of[block] is None:
                    self._blank.append(block)
                else:
                    self._idle[block] = None

    def cache(self, block: int, block_hash: bytes) -> None:
        """Make a computed, full block findable. Where an equal block has the hash already, that one keeps it."""
        if self.prefix_caching and block_hash not in self._block_of and self._hash_of[block] is None:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def forget(self) -> None:
        """Forget the content of all free blocks."""
        while self._idle:
            self._blank.append(self._evict())

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """Return the blocks of the longest known prefix of `hashes`, without taking a reference."""
        blocks: list[int] = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks


class BlockHashes:
    """The hash chain over a growing token list: one hash for each full block of it."""

    def __init__(self, block_size: int, *, adapter: str | None = None, salt: str | None = None) -> None:
        self._block_size = block_size
        self._hashes: list[bytes] = []
        # The length says where the adapter ends: no pair of the two looks like another.
        self._root = f"{len(adapter or '')} {adapter or ''}{salt or ''}".encode()

    def of(self, tokens: Sequence[int], count: int) -> list[bytes]:
        """Return the hashes of the first `count` blocks of `tokens`, which may only ever be appended to."""
        for i in range(len(self._hashes), count):
            block = array("q", tokens[i * self._block_size : (i + 1) * self._block_size]).tobytes()
            parent = self._hashes[i - 1] if i else self._root
            self._hashes.append(hashlib.blake2b(parent + block, digest_size=16).digest())
        return self._hashes[:count]

    def copy(self) -> "BlockHashes":
        copied = BlockHashes(self._block_size)
        copied._root, copied._hashes = self._root, list(self._hashes)
        return copied
