"""What HTTP itself is told about a server: limits, and whom to tell of refusals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends

from server.deps import part
from server.pools import Pools


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings:
    max_body_bytes: int
    """Largest JSON body of a request."""
    keep_alive_seconds: float
    """Longest silence of a stream before a comment is sent."""
    refuse_unknown: bool
    """Whether a body with an unknown field is refused; else the field is ignored, and the answer tells of it."""
    on_refusal: Callable[[Exception], None]
    """Called with each error that a request is answered with."""


HttpDep = Annotated[HttpSettings, Depends(part(HttpSettings))]
PoolsDep = Annotated[Pools, Depends(part(Pools))]
