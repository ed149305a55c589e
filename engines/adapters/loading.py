"""Loading is a transaction: check, copy, load in the engine, publish. A failure takes back what came before it.

Its caller sees to it that nobody else changes what the name stands for meanwhile (`changes.py`).
"""

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from engines.adapters.base_model import check_base_model
from engines.adapters.held import HeldVersions
from engines.adapters.names import check_name
from engines.adapters.published import PublishedNames
from engines.adapters.snapshot import Snapshot, Snapshots
from engines.adapters.state import Record
from engines.adapters.table import Entry, Table, Version
from engines.adapters.watched import Signature
from engines.errors import TuneserveError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOrder:
    name: str
    folder: Path
    source: str
    """Where the adapter says it was copied from."""
    replace: bool
    """Whether it may take the place of an adapter of this name."""
    pinned: bool | None = None
    """Never swapped out of its slot; None: as what it replaces, else not."""
    durable: bool = False
    """Back after a restart; else neither it nor what it replaces is."""
    follow_links: bool = False
    """Whether the files may be symbolic links."""
    found: Signature | None = None
    """Signature of its subfolder of `adapter_dir`, where it comes from there."""


class AdapterLoader:
    def __init__(self, held: HeldVersions, names: PublishedNames, snapshots: Snapshots, *, model: str) -> None:
        """`model`: what the base model was loaded from."""
        self._held = held
        self._names = names
        self._snapshots = snapshots
        self._model = model

    async def load(self, order: LoadOrder) -> None:
        # 1. What can be refused at once.
        self._names.check_open()
        support = self._held.support()
        self._names.table.check_free(order.name, replace=order.replace)
        before = self._names.table.adapters.get(order.name)
        async with AsyncExitStack() as undo:
            # 2. A copy of our own. That one is checked: the source may change under us.
            snapshot = await self._snapshots.take(order.folder, support, follow_links=order.follow_links)
            undo.push_async_callback(self._snapshots.drop, snapshot.id)
            check_base_model(snapshot.spec, self._model)
            # 3. The engine, while the disk takes in the copy.
            writing = asyncio.create_task(asyncio.to_thread(self._snapshots.sync, snapshot.id))
            undo.push_async_callback(asyncio.wait, [writing])
            version = await self._hold(order, snapshot, before, undo)
            await writing
            # 4. The name.
            await self._publish(order, version)
            undo.pop_all()
        # 5. What is not needed any more.
        if version.snapshot is not snapshot:
            await self._snapshots.drop(snapshot.id)
        await self._held.let_go(before)

    async def _hold(self, order: LoadOrder, snapshot: Snapshot, before: Entry | None, undo: AsyncExitStack) -> Version:
        """The version with this content, which the engine then holds: one that it has held already, or a new one."""
        pinned = order.pinned if order.pinned is not None else before is not None and before.pinned
        new = Version(order.name, snapshot, order.source, pinned, int(time.time()))
        version = self._held.by_id.get(new.id, new)
        old = None if before is None else before.version
        if old is not None and old is not version:  # its pin may be the one that there is room for
            undo.push_async_callback(self._held.pin, old, old.pinned)
            await self._held.pin(old, False)
        if version is new:
            await self._held.load(new)
            undo.push_async_callback(self._held.unload, new)
        else:
            undo.push_async_callback(self._held.pin, version, version.pinned)
            await self._held.pin(version, pinned)
        return version

    async def _publish(self, order: LoadOrder, version: Version) -> None:
        record = version.to_record() if order.durable else None
        entry = Entry(version=version, record=record, found=order.found)
        await self._names.change(lambda table: table.with_adapter(order.name, entry))

    async def unload(self, name: str, *, aliased: bool = False) -> None:
        """Take back an adapter's name, or an alias. Raises ModelNotFound; Conflict unless `aliased`, where aliases
        stand for it.
        """
        before = self._names.table.adapters.get(name)

        def change(table: Table) -> Table:
            if not aliased:
                table.check_unused(name)
            return table.without(name)

        await self._names.change(change)
        await self._held.let_go(before)

    async def restore(self, name: str, record: Record, *, base_name: str) -> Entry:
        """Load the copy of an adapter after a restart.

        An adapter that cannot be served any more is an entry that says why.
        """
        try:
            check_name(name, base_name=base_name)
            snapshot = await self._snapshots.read(record.snapshot, self._held.support())
            check_base_model(snapshot.spec, self._model)
            version = Version(name, snapshot, record.source, record.pinned, record.created)
            await self._held.load_patiently(version)
        except TuneserveError as error:
            log.error("The adapter %r cannot be served: %s", name, error)
            return Entry(version=None, record=record, error=error.message)
        return Entry(version=version, record=record)
