"""Whose rows somebody may see and change: a row says in its column `owner` by whom it was made.

Every query on behalf of a client takes an Access, so that none can forget to ask whose the rows are.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Table, false, true


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """To what is `owner`'s, or to everything.

    A row without an owner was made where no key was needed: it is nobody's, and who sees everything sees it.
    """

    owner: str | None
    """Name of who asks: what they make is theirs."""
    everything: bool

    def rows(self, table: Table) -> ColumnElement[bool]:
        """Whether it is a row of `table` to see, as a condition of a query."""
        if self.everything:
            return true()
        return false() if self.owner is None else table.c.owner == self.owner

    def covers(self, owner: str | None) -> bool:
        """Whether what is this owner's is to be seen."""
        return self.everything or (owner is not None and owner == self.owner)


SERVER = Access(owner=None, everything=True)
"""The server's own access, for what it does by itself."""
