"""No page is in two places, none gets lost, and equal prefixes find their pages again."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engines.pt.kv_cache import PageNames, PagePool

PAGES = 6


class Pool(RuleBasedStateMachine):
    """A pool with its holders, beside a plain model of who holds what and what was last let go of."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES, 4)
        self.holders: list[list[int]] = []
        self.names: dict[int, bytes] = {}
        self.idle: list[int] = []  # oldest first

    @rule(count=st.integers(1, PAGES))
    def allocate(self, count) -> None:
        if count <= self.pool.free:
            blank = PAGES - len(self.idle) - len({page for pages in self.holders for page in pages})
            for page in self.idle[: max(0, count - blank)]:  # the least recently used content goes first
                self.idle.remove(page)
                del self.names[page]
            self.holders.append(self.pool.allocate(count))

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), name=st.integers(0, 9))
    def name(self, data, name) -> None:
        page = data.draw(st.sampled_from(data.draw(st.sampled_from(self.holders))))
        key = bytes([name])
        self.pool.name(page, key)
        if page not in self.names and key not in self.names.values():
            self.names[page] = key

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data) -> None:
        pages = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.release(pages)
        held = {page for pages in self.holders for page in pages}
        self.idle += [page for page in reversed(pages) if page in self.names and page not in held]

    @rule(names=st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True))
    def share_a_known_prefix(self, names) -> None:
        pages = self.pool.match([bytes([name]) for name in names])
        page_of = {name: page for page, name in self.names.items()}
        known = [page_of.get(bytes([name])) for name in names]
        assert pages == (known[: known.index(None)] if None in known else known)
        if pages:
            self.pool.share(pages)
            self.holders.append(pages)
            self.idle = [page for page in self.idle if page not in pages]

    @invariant()
    def every_page_is_free_or_held(self) -> None:
        held = Counter(page for pages in self.holders for page in pages)
        assert self.pool.free + len(held) == PAGES
        assert self.pool.usage == 1 - self.pool.free / PAGES

    @invariant()
    def names_are_unique_and_known(self) -> None:
        assert len(set(self.names.values())) == len(self.names)
        assert all(self.pool.match([name]) == [page] for page, name in self.names.items())


Pool.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestPool = Pool.TestCase


def test_the_end_of_a_prefix_is_forgotten_before_its_head() -> None:
    pool = PagePool(3, 4)
    pages = pool.allocate(3)
    for page, name in zip(pages, (b"a", b"b", b"c"), strict=True):
        pool.name(page, name)
    pool.release(pages)
    pool.allocate(1)
    assert pool.match([b"a", b"b", b"c"]) == pages[:2]


def test_nothing_is_found_again_without_prefix_caching() -> None:
    pool = PagePool(3, 4, prefix_caching=False)
    pages = pool.allocate(1)
    pool.name(pages[0], b"a")
    pool.release(pages)
    assert pool.match([b"a"]) == []
    assert pool.free == 3


def names(tokens, count, salt=""):
    return PageNames(4, salt).of(tokens, count)


def test_a_name_stands_for_all_tokens_up_to_the_end_of_its_page_and_for_the_adapter() -> None:
    tokens = list(range(12))
    assert names(tokens, 3)[:2] == names(tokens[:8] + [99] * 4, 3)[:2]
    assert names(tokens, 3)[2] != names(tokens[:8] + [99] * 4, 3)[2]
    assert names(tokens, 3)[2] != names([99, *tokens[1:]], 3)[2]
    assert not {*names(tokens, 3)} & {*names(tokens, 3, "adapter@1")}
    assert not {*names(tokens, 3, "adapter@2")} & {*names(tokens, 3, "adapter@1")}


def test_names_grow_with_the_tokens_and_a_copy_goes_its_own_way() -> None:
    chain = PageNames(4, "")
    tokens = list(range(8))
    assert chain.of(tokens, 1) == names(tokens, 1)
    twin = chain.copy()
    assert chain.of(tokens, 2) == names(tokens, 2)
    other = tokens[:4] + [7] * 4
    assert twin.of(other, 2) == names(other, 2)
