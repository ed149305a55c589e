"""The table of names at one moment. A change makes another table, and refuses what must not be."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from engines.adapters.snapshot import Snapshot
from engines.adapters.state import Record, State
from engines.adapters.watched import Signature
from engines.errors import Conflict, InvalidRequest, ModelNotFound

VERSION_DIGITS = 12


@dataclass(slots=True, eq=False)
class Version:
    """One version of an adapter, as the engine holds it. Only its counts and its pin change."""

    name: str
    snapshot: Snapshot
    source: str
    pinned: bool
    created: int
    requests: int = 0
    in_flight: int = 0
    last_used: int | None = None

    @property
    def id(self) -> str:
        return f"{self.name}@{self.snapshot.content_hash[:VERSION_DIGITS]}"

    def to_record(self) -> Record:
        return Record(snapshot=self.snapshot.id, source=self.source, pinned=self.pinned, created=self.created)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The adapter that one name stands for."""

    version: Version | None
    """None where it cannot be served, for the reason in `error`."""
    record: Record | None = None
    """Its record in the state file; None where it is not durable."""
    found: Signature | None = None
    """Signature of its subfolder of `adapter_dir`; None where it does not come from there."""
    error: str = ""

    @property
    def pinned(self) -> bool:
        kept = self.version or self.record
        return kept is not None and kept.pinned


@dataclass(frozen=True, slots=True)
class Table:
    adapters: Mapping[str, Entry] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    def resolve(self, name: str) -> str:
        """The adapter's own name, where `name` is an alias; else `name`."""
        return self.aliases.get(name, name)

    def names(self, version: Version) -> bool:
        """Whether some name stands for the version."""
        entry = self.adapters.get(version.name)
        return entry is not None and entry.version is version

    def check_free(self, name: str, *, replace: bool) -> None:
        """Raises Conflict where no adapter may take this name."""
        if name in self.aliases:
            raise Conflict(
                f"{name!r} is an alias of {self.aliases[name]!r}: unload it first, or load under another name"
            )
        entry = self.adapters.get(name)
        if entry is not None and not replace:
            state = "is loaded already" if entry.version else f"is kept, but cannot be served ({entry.error})"
            raise Conflict(f"the adapter {name!r} {state}: replace it, or unload it first")

    def with_adapter(self, name: str, entry: Entry) -> "Table":
        return Table({**self.adapters, name: entry}, self.aliases)

    def with_alias(self, alias: str, target: str) -> "Table":
        """Raises Conflict, InvalidRequest, ModelNotFound."""
        if alias in self.adapters:
            raise Conflict(f"{alias!r} is an adapter: unload it first, or take another alias")
        if target in self.aliases:
            message = f"{target!r} is an alias itself, of {self.aliases[target]!r}: name that adapter"
            raise InvalidRequest(message, param="target")
        entry = self.adapters.get(target)
        if entry is None or entry.version is None:
            reason = (
                f"there is no adapter {target[:100]!r}" if entry is None else f"{target!r} is not served: {entry.error}"
            )
            raise ModelNotFound(reason, param="target", code="adapter_not_found")
        return Table(self.adapters, {**self.aliases, alias: target})

    def without(self, name: str) -> "Table":
        """A table in which the name stands for nothing."""
        adapters = {other: entry for other, entry in self.adapters.items() if other != name}
        return Table(adapters, {alias: target for alias, target in self.aliases.items() if alias != name})

    def check_unused(self, name: str) -> None:
        """Raises ModelNotFound where nothing has this name, Conflict where aliases stand for it."""
        if name not in self.adapters and name not in self.aliases:
            raise adapter_not_found(name)
        aliases = [alias for alias, target in self.aliases.items() if target == name]
        if aliases:
            message = f"{', '.join(map(repr, aliases))} stands for {name!r}: repoint or unload that first"
            raise Conflict(message)

    def to_state(self) -> State:
        records = {name: entry.record for name, entry in self.adapters.items() if entry.record is not None}
        return State(adapters=records, aliases=dict(self.aliases))


def adapter_not_found(name: str) -> ModelNotFound:
    return ModelNotFound(f"there is no adapter {name[:100]!r}", param="name", code="adapter_not_found")
