"""Fields of requests that have no effect: the client is told in a header of the answer, the operator in the log."""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

log = logging.getLogger(__name__)

HEADER = "x-ignored-fields"
MOST_NAMES = 16
"""Names that one request's header tells."""
MOST_CHARACTERS = 64
"""Characters of a name."""
MOST_LOGGED = 1000
"""Names that are logged in the life of a server."""
UNFIT = re.compile(r"[^\w.\[\]-]", re.ASCII)
"""What clients may write in a name, and neither a header nor a line of a log should hold."""


@dataclass(slots=True)
class Ignored:
    """Names of one request's fields that have no effect on its answer. Whatever reads the request may add some, until
    its answer begins."""

    _names: dict[str, None] = field(default_factory=dict)
    """A set that keeps its order."""

    def add(self, *names: str) -> None:
        """More names than a header tells are counted as one, `...`."""
        for name in names:
            known = len(self._names) < MOST_NAMES
            self._names[UNFIT.sub("?", name[:MOST_CHARACTERS]) if known else "..."] = None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __bool__(self) -> bool:
        return bool(self._names)

    def to_header(self) -> str:
        return ",".join(self._names)


class IgnoredFields:
    """Tells a server's operator which fields have no effect: each name once in the log, each answer in the metrics."""

    def __init__(self, count: Callable[[str], None]) -> None:
        """`count` is called with the path of each route whose answer tells of such fields."""
        self._count = count
        self._logged: set[str] = set()

    def tell(self, path: str, ignored: Ignored) -> None:
        self._count(path)
        for name in ignored:
            if name not in self._logged and len(self._logged) < MOST_LOGGED:
                self._logged.add(name)
                log.warning("The field %s of a request to %s has no effect; said once.", name, path)
