"""A cap on open connections. For one more, the connection that has been idle longest is closed."""

import resource
from collections.abc import Callable
from typing import Protocol

from engines.errors import TuneserveError

LEAST, DEFAULT_MOST = 16, 4096
FILES_FOR_OTHERS = 256
"""Open files that are kept free of connections: for the database, uploads, the engine and jobs."""
RESERVE = 64
"""Connections beyond the limit that may ask for the probes, and nothing else."""


class TooManyFiles(TuneserveError):
    """More connections are asked for than this process may have files open."""

    code = "too_many_files"


def most_connections(asked: int | None) -> int:
    """`asked`, or what this process's limit of open files has room for. Raises TooManyFiles."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return asked or DEFAULT_MOST
    if asked is None:
        return max(LEAST, min(DEFAULT_MOST, files - FILES_FOR_OTHERS - RESERVE))
    if asked > files - RESERVE:
        raise TooManyFiles(
            f"--max_connections {asked} needs more open files than this process may have, {files}: raise its limit "
            f"(ulimit -n), or give a smaller number"
        )
    return asked


class Connection(Protocol):
    def drop(self) -> None:
        """Close at once."""
        ...


class Room:
    """Holds at most `size` connections."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._inside: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # of those, the ones without a request; idle longest first

    def __len__(self) -> int:
        return len(self._inside)

    def enter(self, connection: Connection) -> bool:
        """Whether it is in: there was room, or one that was idle has been dropped for it."""
        if len(self._inside) >= self._size:
            longest = next(iter(self._idle), None)
            if longest is None:
                return False
            self.leave(longest)
            longest.drop()
        self._inside.add(connection)
        self._idle[connection] = None
        return True

    def rest(self, connection: Connection) -> None:
        """The connection has no request now."""
        if connection in self._inside:
            self._idle.pop(connection, None)
            self._idle[connection] = None

    def work(self, connection: Connection) -> None:
        """The connection has a request."""
        self._idle.pop(connection, None)

    def leave(self, connection: Connection) -> None:
        self._inside.discard(connection)
        self._idle.pop(connection, None)


class Connections:
    def __init__(self, most: int, on_refusal: Callable[[TuneserveError], None], *, root_path: str = "") -> None:
        """`on_refusal` is told of each error that ends a connection. `root_path`: what a proxy may leave before the
        paths of requests."""
        self._rooms = (Room(most), Room(RESERVE))
        self.on_refusal = on_refusal
        self.root_path = root_path

    def __len__(self) -> int:
        return sum(map(len, self._rooms))

    def find_room(self, connection: Connection) -> Room | None:
        """The room that it is in now; None where there is none left for it."""
        return next((room for room in self._rooms if room.enter(connection)), None)

    def is_reserve(self, room: Room) -> bool:
        return room is self._rooms[-1]
