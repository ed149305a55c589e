"""Who asks: the roles, and the name, of the key that a request brought."""

from dataclasses import dataclass
from enum import StrEnum

from server.store.access import Access


class Role(StrEnum):
    INFER = "infer"
    """Ask for answers."""
    TRAIN = "train"
    """Run jobs."""
    ADMIN = "admin"
    """Administer the server."""
    METRICS = "metrics"
    """Read the metrics, as Prometheus does, and nothing else."""


ALL_ROLES = frozenset(Role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    name: str | None
    """Name of the key, which is no secret; None where no key is needed."""
    roles: frozenset[Role]

    @property
    def is_admin(self) -> bool:
        return Role.ADMIN in self.roles

    @property
    def access(self) -> Access:
        return Access(owner=self.name, everything=self.is_admin)


def in_background(name: str | None, *, by_admin: bool) -> Caller:
    """Who asks what a key of this name has left to the server to ask; `by_admin`: it had every right."""
    return Caller(name=name, roles=ALL_ROLES if by_admin else frozenset({Role.INFER}))


ANYBODY = Caller(name=None, roles=ALL_ROLES)
"""Who asks where no key is needed."""
