"""The versions that the engine holds: loaded before a name stands for them, unloaded once nothing needs them any
more."""

import asyncio

from engines.adapters.published import PublishedNames
from engines.adapters.snapshot import Snapshots
from engines.adapters.table import Entry, Version
from engines.capabilities import AdapterSupport
from engines.engine import Engine
from engines.errors import EngineUnavailable, UnsupportedParameter
from engines.types import EngineState

RETRY_SECONDS = 0.2
"""Seconds between two attempts to load into an engine that is being restarted."""


class HeldVersions:
    def __init__(self, engine: Engine, names: PublishedNames, snapshots: Snapshots) -> None:
        self.by_id: dict[str, Version] = {}
        self._engine = engine
        self._names = names
        self._snapshots = snapshots

    def support(self) -> AdapterSupport:
        """The kinds of adapters that the engine can serve. Raises UnsupportedParameter where it serves none."""
        support = self._engine.capabilities().adapters
        if support is None:
            raise UnsupportedParameter("this engine serves the base model only")
        return support

    async def load(self, version: Version) -> None:
        await self._engine.load_adapter(version.id, version.snapshot.spec.folder, pinned=version.pinned)
        self.by_id[version.id] = version

    async def load_patiently(self, version: Version) -> None:
        """Load a version, waiting out a death of the engine, of which another adapter may be the cause."""
        while True:
            try:
                return await self.load(version)
            except EngineUnavailable:
                if self._engine.health().state not in (EngineState.READY, EngineState.RESTARTING):
                    raise
            await asyncio.sleep(RETRY_SECONDS)

    async def unload(self, version: Version) -> None:
        del self.by_id[version.id]
        await self._engine.unload_adapter(version.id)

    async def pin(self, version: Version, pinned: bool) -> None:
        if version.pinned != pinned:
            await self._engine.load_adapter(version.id, version.snapshot.spec.folder, pinned=pinned)
            version.pinned = pinned

    async def unload_unused(self, version: Version) -> None:
        """Unload a version and drop its copy, unless some name or request needs it."""
        if version.in_flight or self._names.table.names(version) or self.by_id.get(version.id) is not version:
            return
        await self.unload(version)
        await self._snapshots.drop(version.snapshot.id)

    async def let_go(self, before: Entry | None) -> None:
        """Drop what `before` needed, now that no name stands for it any more."""
        if before is None:
            return
        if before.version is not None:
            await self.unload_unused(before.version)
        elif before.record is not None:
            await self._snapshots.drop(before.record.snapshot)
