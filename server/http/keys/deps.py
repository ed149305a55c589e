"""How a route gets who asks, and what they may see."""

from typing import Annotated

from fastapi import Depends, Request

from server.http.keys.caller import Caller
from server.store.access import Access


async def find_caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


CallerDep = Annotated[Caller, Depends(find_caller)]
"""For routes that treat callers differently."""


async def find_access(caller: CallerDep) -> Access:
    return caller.access


AccessDep = Annotated[Access, Depends(find_access)]
"""For routes to things that have an owner."""
