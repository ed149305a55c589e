"""Which rows a client may see and change: the column `owner` of a row names who made it.

Every query on behalf of a client takes an Access, so that none can forget to ask whose the rows are.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Access to the rows of `owner`, or to all.

    A row without an owner was made where no key was needed: only an access to everything shows it.
    """

    owner: str | None
    """Name of the client: what it makes is its own."""
    everything: bool

    def rows(self, table: "Table") -> "ColumnElement[bool]":
        """Whether a row of `table` may be seen, as a condition of a query."""
        from sqlalchemy import false, true  # here, as keys are read before anything of the database is imported

        if self.everything:
            return true()
        return false() if self.owner is None else table.c.owner == self.owner

    def covers(self, owner: str | None) -> bool:
        """Whether the things of this owner may be seen."""
        return self.everything or (owner is not None and owner == self.owner)


SERVER = Access(owner=None, everything=True)
"""The server's own access, for what it does by itself."""
