"""Pages of the key-value cache: who holds which, and which of them a later prompt can use again.

Only bookkeeping; the tensors live in `engines/pt/attention.py`. A page holds the keys and values of `page_size`
consecutive tokens in every layer. Full pages are named by a hash of everything that determines their content (all
tokens up to their end, and the adapter version), so an equal prefix finds them again: PagedAttention with automatic
prefix caching (Kwon et al. 2023, arXiv:2309.06180, section 4).
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence


class PagePool:
    """Reference-counted pages. A page without references keeps its content until the space is needed (LRU)."""

    def __init__(self, num_pages: int, page_size: int, *, prefix_caching: bool = True) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._prefix_caching = prefix_caching
        self._references = [0] * num_pages
        self._hash_of: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._blank = list(range(num_pages - 1, -1, -1))  # free, nothing worth keeping in them
        self._idle: OrderedDict[int, None] = OrderedDict()  # free, content kept; oldest first

    @property
    def free(self) -> int:
        """Pages that can be allocated now."""
        return len(self._blank) + len(self._idle)

    @property
    def usage(self) -> float:
        """Share of the pages that running requests hold, 0 to 1."""
        return 1 - self.free / self.num_pages

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blank pages, forgetting the least recently used content. The caller checked `free`."""
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        page = self._blank.pop() if self._blank else self._evict()
        self._references[page] = 1
        return page

    def _evict(self) -> int:
        page, _ = self._idle.popitem(last=False)
        name = self._hash_of[page]
        assert name is not None, "an idle page has a name"
        del self._page_of[name]
        self._hash_of[page] = None
        return page

    def share(self, pages: Sequence[int]) -> None:
        """Add a reference to each page; pages that were free are in use again."""
        for page in pages:
            self._references[page] += 1
            self._idle.pop(page, None)

    def release(self, pages: Sequence[int]) -> None:
        """Drop a reference of each page. Last pages first, so that the ends of prefixes are forgotten before their heads."""
        for page in reversed(pages):
            self._references[page] -= 1
            if self._references[page] == 0:
                if self._hash_of[page] is None:
                    self._blank.append(page)
                else:
                    self._idle[page] = None

    def name(self, page: int, name: bytes) -> None:
        """Make a computed, full page findable. Where an equal page has the name already, that one keeps it."""
        if self._prefix_caching and name not in self._page_of and self._hash_of[page] is None:
            self._page_of[name] = page
            self._hash_of[page] = name

    def match(self, names: Sequence[bytes]) -> list[int]:
        """Return the pages of the longest known prefix of `names`, without taking a reference."""
        pages: list[int] = []
        for name in names:
            page = self._page_of.get(name)
            if page is None:
                break
            pages.append(page)
        return pages


class PageNames:
    """The hash chain over a growing token list: one name for each full page of it."""

    def __init__(self, page_size: int, salt: str) -> None:
        self._page_size = page_size
        self._names: list[bytes] = []
        self._salt = salt.encode()

    def of(self, tokens: Sequence[int], count: int) -> list[bytes]:
        """Return the names of the first `count` pages of `tokens`, which may only ever be appended to."""
        for i in range(len(self._names), count):
            page = array("q", tokens[i * self._page_size : (i + 1) * self._page_size]).tobytes()
            parent = self._names[i - 1] if i else self._salt
            self._names.append(hashlib.blake2b(parent + page, digest_size=16).digest())
        return self._names[:count]

    def copy(self) -> "PageNames":
        twin = PageNames(self._page_size, "")
        twin._salt, twin._names = self._salt, list(self._names)
        return twin
