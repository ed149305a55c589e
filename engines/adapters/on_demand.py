"""Adapters on demand: the subfolders of `adapter_dir`, loaded when a request names them, and again where they
changed."""

import asyncio
import logging
from dataclasses import replace

from engines.adapters.changes import Changes
from engines.adapters.loading import AdapterLoader, LoadOrder
from engines.adapters.names import check_name
from engines.adapters.published import PublishedNames
from engines.adapters.table import Entry
from engines.adapters.watched import Found, WatchedFolder
from engines.errors import InvalidAdapter, InvalidRequest, NotFound

log = logging.getLogger(__name__)


class OnDemandAdapters:
    def __init__(
        self, watched: WatchedFolder, names: PublishedNames, loader: AdapterLoader, changes: Changes, *, base_name: str
    ) -> None:
        self._watched = watched
        self._names = names
        self._loader = loader
        self._changes = changes
        self._base_name = base_name

    async def look(self, name: str) -> None:
        """Have `name` stand for what its subfolder holds now, unless it stands for something else.

        Raises EngineUnavailable, EngineFailure and Conflict, as a load. A subfolder that cannot be served is an entry
        that says why.
        """
        entry = self._names.table.adapters.get(name)
        if name in self._names.table.aliases or (entry is not None and entry.found is None):
            return
        try:
            check_name(name, base_name=self._base_name)
        except InvalidRequest:
            return
        found = await asyncio.to_thread(self._watched.find, name)
        if not self._is_current(name, found):
            await self._changes.run(name, self._update(name))

    async def _update(self, name: str) -> None:
        """Runs alone: who came first has done it for the others."""
        found = await asyncio.to_thread(self._watched.find, name)
        if self._is_current(name, found):
            return
        if found is None:
            await self._loader.unload(name, aliased=True)
            return
        before = self._names.table.adapters.get(name)
        order = LoadOrder(name=name, folder=found.folder, source=found.folder.name, replace=True, found=found.signature)
        try:
            await self._loader.load(order)
        except (InvalidAdapter, NotFound) as error:
            log.warning("The adapter in the folder %r cannot be served: %s", name, error)
            refused = replace(before or Entry(version=None), found=found.signature, error=error.message)
            await self._names.change(lambda table: table.with_adapter(name, refused))

    def _is_current(self, name: str, found: Found | None) -> bool:
        entry = self._names.table.adapters.get(name)
        if entry is None:
            return found is None
        return entry.found is None or (found is not None and entry.found == found.signature)
