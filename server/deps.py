"""The parts of a server: each is made once, and a route that needs one names its type."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request

Part = TypeVar("Part")


class Parts:
    """One object of each type: `parts[Files]` is the server's Files."""

    def __init__(self, *parts: object) -> None:
        self._parts: dict[type, Any] = {type(part): part for part in parts}
        assert len(self._parts) == len(parts), "two parts of one type"

    def __getitem__(self, kind: type[Part]) -> Part:
        part: Part = self._parts[kind]
        return part


def part(kind: type[Part]) -> Callable[[Request], Awaitable[Part]]:
    """A dependency that gives a route the part of this type: `Annotated[Files, Depends(part(Files))]`."""

    async def find(request: Request) -> Part:
        return find_part(request, kind)

    return find


def find_part(request: Request, kind: type[Part]) -> Part:
    """The same where there is no route: in an error handler, say."""
    parts: Parts = request.state.parts
    return parts[kind]
