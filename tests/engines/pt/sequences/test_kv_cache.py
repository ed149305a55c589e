"""No block is in two places, none gets lost, and equal prefixes find their blocks again."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engines.pt.sequences.kv_cache import BlockHashes, BlockPool

BLOCKS = 6


class Pool(RuleBasedStateMachine):
    """A pool with its holders, beside a plain model of who holds what and what was last let go of."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS, 4)
        self.holders: list[list[int]] = []
        self.hashes: dict[int, bytes] = {}
        self.idle: list[int] = []  # oldest first

    @rule(count=st.integers(1, BLOCKS))
    def allocate(self, count: int) -> None:
        if count <= self.pool.free:
            blank = BLOCKS - len(self.idle) - len({block for blocks in self.holders for block in blocks})
            for block in self.idle[: max(0, count - blank)]:  # the least recently used content goes first
                self.idle.remove(block)
                del self.hashes[block]
            self.holders.append(self.pool.allocate(count))

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), name=st.integers(0, 9))
    def cache(self, data: st.DataObject, name: int) -> None:
        block = data.draw(st.sampled_from(data.draw(st.sampled_from(self.holders))))
        key = bytes([name])
        self.pool.cache(block, key)
        if block not in self.hashes and key not in self.hashes.values():
            self.hashes[block] = key

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        blocks = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.release(blocks)
        held = {block for blocks in self.holders for block in blocks}
        self.idle += [block for block in reversed(blocks) if block in self.hashes and block not in held]

    @rule(hashes=st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True))
    def share_a_known_prefix(self, hashes: list[int]) -> None:
        blocks = self.pool.match([bytes([name]) for name in hashes])
        block_of = {block_hash: block for block, block_hash in self.hashes.items()}
        known = [block_of.get(bytes([name])) for name in hashes]
        assert blocks == (known[: known.index(None)] if None in known else known)
        if blocks:
            self.pool.share(blocks)
            self.holders.append(blocks)
            self.idle = [block for block in self.idle if block not in blocks]

    @invariant()
    def every_block_is_free_or_held(self) -> None:
        held = Counter(block for blocks in self.holders for block in blocks)
        assert self.pool.free + len(held) == BLOCKS
        assert self.pool.usage == 1 - self.pool.free / BLOCKS

    @invariant()
    def hashes_are_unique_and_known(self) -> None:
        assert len(set(self.hashes.values())) == len(self.hashes)
        assert all(self.pool.match([block_hash]) == [block] for block, block_hash in self.hashes.items())


Pool.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestPool = Pool.TestCase


def test_the_end_of_a_prefix_is_forgotten_before_its_head() -> None:
    pool = BlockPool(3, 4)
    blocks = pool.allocate(3)
    for block, block_hash in zip(blocks, (b"a", b"b", b"c"), strict=True):
        pool.cache(block, block_hash)
    pool.release(blocks)
    pool.allocate(1)
    assert pool.match([b"a", b"b", b"c"]) == blocks[:2]


def test_nothing_is_found_again_without_prefix_caching() -> None:
    pool = BlockPool(3, 4, prefix_caching=False)
    blocks = pool.allocate(1)
    pool.cache(blocks[0], b"a")
    pool.release(blocks)
    assert pool.match([b"a"]) == []
    assert pool.free == 3


def hashes(tokens: list[int], count: int, adapter: str | None = None, salt: str | None = None) -> list[bytes]:
    return BlockHashes(4, adapter=adapter, salt=salt).of(tokens, count)


def test_a_hash_stands_for_all_tokens_up_to_the_end_of_its_block_for_the_adapter_and_for_the_salt() -> None:
    tokens = list(range(12))
    assert hashes(tokens, 3)[:2] == hashes(tokens[:8] + [99] * 4, 3)[:2]
    assert hashes(tokens, 3)[2] != hashes(tokens[:8] + [99] * 4, 3)[2]
    assert hashes(tokens, 3)[2] != hashes([99, *tokens[1:]], 3)[2]
    assert not {*hashes(tokens, 3)} & {*hashes(tokens, 3, "adapter@1")}
    assert not {*hashes(tokens, 3, "adapter@2")} & {*hashes(tokens, 3, "adapter@1")}
    assert not {*hashes(tokens, 3, "a", "b")} & {*hashes(tokens, 3, "a")}
    assert not {*hashes(tokens, 3, "a", "b")} & {*hashes(tokens, 3, "ab")}
    assert not {*hashes(tokens, 3, "a", "b")} & {*hashes(tokens, 3, None, "ab")}


def test_hashes_grow_with_the_tokens_and_a_copy_goes_its_own_way() -> None:
    chain = BlockHashes(4)
    tokens = list(range(8))
    assert chain.of(tokens, 1) == hashes(tokens, 1)
    twin = chain.copy()
    assert chain.of(tokens, 2) == hashes(tokens, 2)
    other = tokens[:4] + [7] * 4
    assert twin.of(other, 2) == hashes(other, 2)
