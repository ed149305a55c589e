"""A constraint that a request asks for, before it is known whether an engine can enforce it."""

import time
from dataclasses import dataclass

from engines.errors import InvalidRequest
from engines.text.grammar_check import is_quick, validate
from engines.types import Structured
from server.pools import Pools

SEARCH_SECONDS = 5.0
"""After so long no more parts are looked at for the one at fault."""


@dataclass(frozen=True, slots=True)
class Constraint:
    structured: Structured
    param: str
    """The field that asks for it."""
    parts: tuple["Constraint", ...] = ()
    """What it is made of, where that has fields of its own: the first at fault is told in place of the whole."""

    def checked(self) -> Structured:
        """The constraint as engines take it. Raises InvalidRequest where none can enforce it.

        May take seconds: call it in a thread.
        """
        try:
            return validate(self.structured, self.param)
        except InvalidRequest:
            until = time.monotonic() + SEARCH_SECONDS
            for part in self.parts:
                if time.monotonic() < until:
                    part.checked()
            raise


async def check(constraint: Constraint | None, pools: Pools) -> Structured | None:
    """The same off the event loop. What is quick to check does not wait for what is not."""
    if constraint is None:
        return None
    pool = pools.text if is_quick(constraint.structured) else pools.grammar
    return await pool.run(constraint.checked)
