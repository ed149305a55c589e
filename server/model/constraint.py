"""A constraint that a request asks for, before it is known whether an engine can enforce it."""

import time
from contextlib import suppress
from dataclasses import dataclass

from engines.errors import InvalidRequest
from engines.text.grammar_check import is_quick, validated
from engines.types import Structured
from server.pools import Pools

SEARCH_SECONDS = 5.0
"""Seconds after which the search for the part at fault is given up."""


@dataclass(frozen=True, slots=True)
class Constraint:
    structured: Structured
    param: str
    """The field that asks for it."""
    plainer: Structured | None = None
    """The same with less white space in its JSON, for where `structured` fails to compile."""
    parts: tuple["Constraint", ...] = ()
    """Its parts that are fields of their own: an error names the first of them that is at fault."""

    def checked(self) -> "Checked":
        """The constraint as engines take it. Raises InvalidRequest where none can enforce it.

        May take seconds: call it in a thread.
        """
        try:
            return self._validated()
        except InvalidRequest:
            until = time.monotonic() + SEARCH_SECONDS
            for part in self.parts:
                if time.monotonic() < until:
                    part.checked()
            raise

    def _validated(self) -> "Checked":
        if self.plainer is not None:
            with suppress(InvalidRequest):
                return self._of(self.structured)
        return self._of(self.plainer or self.structured)

    def _of(self, structured: Structured) -> "Checked":
        written, left_out = validated(structured, self.param)
        return Checked(written, tuple(f"{self.param}.{keyword}" for keyword in left_out))


@dataclass(frozen=True, slots=True)
class Checked:
    structured: Structured
    """What engines enforce."""
    left_out: tuple[str, ...]
    """The fields that they do not: keywords of a schema that is not strict."""


async def check(constraint: Constraint | None, pools: Pools) -> Checked | None:
    """The same off the event loop. What is quick to check does not wait for what is not."""
    if constraint is None:
        return None
    pool = pools.text if is_quick(constraint.structured) else pools.grammar
    return await pool.run(constraint.checked)
