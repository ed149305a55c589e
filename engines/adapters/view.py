"""The adapters as the API's lists and cards and the metrics show them."""

from dataclasses import dataclass
from typing import Literal

from engines.adapters.held import HeldVersions
from engines.adapters.published import PublishedNames
from engines.adapters.table import Entry, Version, adapter_not_found
from engines.engine import Engine

AdapterState = Literal["slot", "host", "disk", "draining", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One version of an adapter, as it is now."""

    name: str
    version: str
    """`name@hash`, as `GenerationRequest.adapter` wants it; "" where it has failed."""
    source: str
    """Last part of the path that it was copied from."""
    rank: int
    num_bytes: int
    """Size of its weights' file."""
    state: AdapterState
    """Where its weights are; `draining`: replaced or unloaded, and in use until its last request ends; `failed`: not
    served, as `error` says."""
    error: str = ""
    """Also where it is served: why what `adapter_dir` has now is not."""
    pinned: bool
    created: int
    """Unix time at which this version was loaded."""
    requests: int
    """Requests that have begun since the server started."""
    in_flight: int
    """Requests that have begun and not ended."""
    last_used: int | None
    """Unix time at which its last request began."""

    @property
    def served(self) -> bool:
        """Whether requests get it by its name."""
        return self.state not in ("draining", "failed")


class AdapterView:
    def __init__(self, engine: Engine, names: PublishedNames, held: HeldVersions) -> None:
        self._engine = engine
        self._names = names
        self._held = held

    def get(self, name: str) -> Adapter:
        """The adapter that a name or an alias stands for. Raises ModelNotFound (code "adapter_not_found")."""
        name = self._names.table.resolve(name)
        entry = self._names.table.adapters.get(name)
        if entry is None:
            raise adapter_not_found(name)
        return self._describe(name, entry)

    def adapters(self) -> list[Adapter]:
        """All adapters: those that have a name, by name, and then the draining ones."""
        table = self._names.table
        named = [self._describe(name, entry) for name, entry in sorted(table.adapters.items())]
        draining = [version for version in self._held.by_id.values() if not table.names(version)]
        return named + [self._describe_version(version) for version in draining]

    def _describe(self, name: str, entry: Entry) -> Adapter:
        if entry.version is not None:
            return self._describe_version(entry.version, entry.error)
        record = entry.record
        return Adapter(
            name=name,
            version="",
            source=name if record is None else record.source,
            rank=0,
            num_bytes=0,
            state="failed",
            error=entry.error,
            pinned=entry.pinned,
            created=0 if record is None else record.created,
            requests=0,
            in_flight=0,
            last_used=None,
        )

    def _describe_version(self, version: Version, error: str = "") -> Adapter:
        return Adapter(
            name=version.name,
            version=version.id,
            source=version.source,
            rank=version.snapshot.spec.rank,
            num_bytes=version.snapshot.spec.num_bytes,
            state=self._state_of(version),
            error=error,
            pinned=version.pinned,
            created=version.created,
            requests=version.requests,
            in_flight=version.in_flight,
            last_used=version.last_used,
        )

    def _state_of(self, version: Version) -> AdapterState:
        if not self._names.table.names(version):
            return "draining"
        stats = self._engine.stats()
        if version.id in stats.adapter_slots:
            return "slot"
        return "host" if version.id in stats.adapter_host else "disk"
