"""The names of adapters: what each stands for now, who uses it, and when its weights may go. The same for every engine.

A name stands for a version, `name@hash`, which is what the engine knows. A name is published once the engine holds its
version; a request leases the version that its model's name stands for, and keeps that one until it ends, whatever
becomes of the name meanwhile. A version that no name stands for is unloaded when nobody leases it any more.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from weakref import WeakValueDictionary

from filelock import FileLock, Timeout

from engines.adapters.folder import check_base_model
from engines.adapters.names import check_name
from engines.adapters.snapshot import Snapshot, Snapshots
from engines.adapters.state import Record, State, read_state, write_state
from engines.adapters.state_folder import private_folder
from engines.adapters.table import Entry, Table, Version, adapter_not_found
from engines.adapters.watched import Found, Signature, WatchedFolder
from engines.capabilities import AdapterSupport
from engines.engine import Engine
from engines.errors import (
    Conflict,
    EngineUnavailable,
    InvalidAdapter,
    InvalidRequest,
    ModelNotFound,
    NotFound,
    TuneserveError,
    UnsupportedParameter,
)
from engines.types import EngineState

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_SECONDS = 0.2
NAMES_IN_MESSAGE = 20

AdapterState = Literal["slot", "host", "disk", "draining", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One version of an adapter, as it is now."""

    name: str
    version: str
    """`name@hash`, as `GenerationRequest.adapter` wants it; "" of one that has failed."""
    source: str
    """The last part of the path that it was copied from."""
    rank: int
    num_bytes: int
    state: AdapterState
    """Where its weights are; `draining`: replaced or unloaded, and in use until its last request ends; `failed`: not
    served, as `error` says."""
    error: str = ""
    """Also of an adapter that is served: why what `adapter_dir` has now is not."""
    pinned: bool
    created: int
    """Unix time at which this version was loaded."""
    requests: int
    """How many have begun since the server started."""
    in_flight: int
    last_used: int | None
    """Unix time at which its last request began."""


@dataclass(slots=True)
class Lease:
    """What a request's `model` stands for. The version stays loaded until `release`."""

    version: str | None
    """None: the base model."""
    name: str
    """The adapter's own name, whatever alias was asked for; the base model's for that one."""
    _on_release: Callable[[], None] | None = None

    def release(self) -> None:
        """The request has ended. May be called again."""
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What `load` is asked for."""

    name: str
    folder: Path
    source: str
    replace: bool
    pinned: bool | None = None
    durable: bool = False
    follow_links: bool = False
    found: Signature | None = None


class AdapterRegistry:
    def __init__(
        self, engine: Engine, *, base_name: str, model: str, state_dir: Path, adapter_dir: Path | None = None
    ) -> None:
        """`base_name` is the base model's name in the API, `model` what it was loaded from.

        The subfolders of `adapter_dir` are adapters too: one that a request names is loaded then.
        """
        self._engine = engine
        self._base_name = base_name
        self._model = model
        self._folder = state_dir / "adapters"
        self._file = self._folder / "state.json"
        self._ours = FileLock(self._folder / "lock", thread_local=False)
        self._snapshots = Snapshots(self._folder)
        self._watched = None if adapter_dir is None else WatchedFolder(adapter_dir)
        self._why_closed = ""  # why no adapters can be kept
        self._table = Table()
        self._saved = State()
        self._held: dict[str, Version] = {}  # all that the engine holds, by id
        self._changing = asyncio.Lock()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # one a name
        self._tasks: set[asyncio.Task[Any]] = set()

    # ---- from one run of the server to the next

    async def restore(self) -> None:
        """Load what was loaded when the server ended. Comes once, after `engine.start` and before anything else.

        An adapter that cannot be served any more is kept, as `failed`. Where `state_dir` cannot be used, or another
        server uses it, nothing is restored, and `load` and `alias` raise Conflict. Raises BrokenState.
        """
        try:
            self._saved = await asyncio.to_thread(self._open)
        except Timeout:
            self._why_closed = "another server uses the state_dir of this one, and adapters need one of their own"
        except OSError as error:
            self._why_closed = f"the state_dir of this server cannot be used ({error.strerror})"
        if self._why_closed:
            log.warning("No adapters can be loaded: %s: %s.", self._why_closed, self._folder)
            return
        # One after another: where the engine dies of one, the others wait until it is back.
        entries = {name: await self._restore(name, record) for name, record in self._saved.adapters.items()}
        self._table = Table(entries, self._saved.aliases)

    async def close(self) -> None:
        """Let another server use `state_dir`. Comes last, after `engine.stop`."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._ours.release()

    def _open(self) -> State:
        """Raises Timeout where another server uses the folder."""
        private_folder(self._folder)
        self._ours.acquire(blocking=False)
        state = read_state(self._file)
        self._snapshots.open([record.snapshot for record in state.adapters.values()])
        return state

    async def _restore(self, name: str, record: Record) -> Entry:
        try:
            check_name(name, base_name=self._base_name)
            snapshot = await self._snapshots.read(record.snapshot, self._support())
            check_base_model(snapshot.spec, self._model)
            version = Version(name, snapshot, record.source, record.pinned, record.created)
            await self._give_patiently(version)
        except TuneserveError as error:
            log.error("The adapter %r cannot be served: %s", name, error)
            return Entry(version=None, record=record, error=error.message)
        return Entry(version=version, record=record)

    async def _give_patiently(self, version: Version) -> None:
        """As `_give`, but wait out a death of the engine: it may have come of another adapter."""
        while True:
            try:
                return await self._give(version)
            except EngineUnavailable:
                if self._engine.health().state not in (EngineState.READY, EngineState.RESTARTING):
                    raise
            await asyncio.sleep(RETRY_SECONDS)

    # ---- changes

    async def load(
        self,
        name: str,
        folder: Path,
        *,
        replace: bool = False,
        pinned: bool | None = None,
        durable: bool = True,
        follow_links: bool = False,
        source: str | None = None,
    ) -> Adapter:
        """Copy the PEFT adapter of `folder`, have the engine load it, and publish it as `name`; `folder` may go then.

        Raises Conflict where the name is taken, unless `replace`: then requests from now on get the new version, those
        in flight keep theirs, and the same content again is no new version. `pinned`: never swapped out; None: as what
        it replaces, else not. `durable`: it is back after a restart; else neither it nor what it replaces is.
        `follow_links`: the files in `folder` may be symbolic links, as in the hub's cache; else they are refused.
        `source`: what the adapter says it was copied from; None: the last part of `folder`.

        Raises InvalidAdapter (`param` is the field at fault), NotFound where there is no such folder, Conflict,
        InvalidRequest for a name that cannot be one (`param` "name"), EngineUnavailable, EngineFailure. A load that
        fails leaves everything as it was; one whose caller is cancelled goes on.
        """
        check_name(name, base_name=self._base_name)
        order = _Order(
            name=name,
            folder=folder,
            source=source or folder.name,
            replace=replace,
            pinned=pinned,
            durable=durable,
            follow_links=follow_links,
        )
        return await asyncio.shield(self._begin(name, self._load(order)))

    async def unload(self, name: str) -> None:
        """Take back an adapter's name, or an alias. The weights go once running requests have ended.

        Raises ModelNotFound (code "adapter_not_found"), or Conflict where aliases stand for it.
        """
        await asyncio.shield(self._begin(name, self._unload(name)))

    async def alias(self, alias: str, target: str) -> None:
        """Have `alias` stand for the adapter `target` from now on; requests in flight keep what they have.

        Raises ModelNotFound (code "adapter_not_found"), InvalidRequest where `target` is an alias itself or `alias`
        cannot be a name, Conflict where it is an adapter's name.
        """
        check_name(alias, base_name=self._base_name)
        self._check_open()
        if target == self._base_name:
            raise InvalidRequest(f"{target!r} is the base model; an alias stands for an adapter", param="target")
        await self._look(target)
        change = self._change(lambda table: table.with_alias(alias, target))
        await asyncio.shield(self._begin(alias, change))

    def _begin(self, name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Do `work` while nobody else changes what `name` stands for; to its end, whatever becomes of who asked."""

        async def alone() -> T:
            lock = self._locks.setdefault(name, asyncio.Lock())
            async with lock:
                return await work

        task = asyncio.create_task(alone())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _load(self, order: _Order) -> Adapter:
        # 1. What can be refused at once.
        self._check_open()
        support = self._support()
        self._table.check_free(order.name, replace=order.replace)
        before = self._table.adapters.get(order.name)
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
        await self._let_go(before)
        return self.get(order.name)

    async def _hold(self, order: _Order, snapshot: Snapshot, before: Entry | None, undo: AsyncExitStack) -> Version:
        """The version with this content, which the engine then holds: one that it has held already, or a new one."""
        pinned = order.pinned if order.pinned is not None else before is not None and before.pinned
        new = Version(order.name, snapshot, order.source, pinned, int(time.time()))
        version = self._held.get(new.id, new)
        old = None if before is None else before.version
        if old is not None and old is not version:  # its pin may be the one that there is room for
            undo.push_async_callback(self._pin, old, old.pinned)
            await self._pin(old, False)
        if version is new:
            await self._give(new)
            undo.push_async_callback(self._take_back, new)
        else:
            undo.push_async_callback(self._pin, version, version.pinned)
            await self._pin(version, pinned)
        return version

    async def _give(self, version: Version) -> None:
        await self._engine.load_adapter(version.id, version.snapshot.spec.folder, pinned=version.pinned)
        self._held[version.id] = version

    async def _take_back(self, version: Version) -> None:
        del self._held[version.id]
        await self._engine.unload_adapter(version.id)

    async def _pin(self, version: Version, pinned: bool) -> None:
        if version.pinned != pinned:
            await self._engine.load_adapter(version.id, version.snapshot.spec.folder, pinned=pinned)
            version.pinned = pinned

    async def _publish(self, order: _Order, version: Version) -> None:
        record = version.to_record() if order.durable else None
        entry = Entry(version=version, record=record, found=order.found)
        await self._change(lambda table: table.with_adapter(order.name, entry))

    async def _unload(self, name: str) -> None:
        before = self._table.adapters.get(name)

        def change(table: Table) -> Table:
            table.check_unused(name)
            return table.without(name)

        await self._change(change)
        await self._let_go(before)

    async def _change(self, change: Callable[[Table], Table]) -> None:
        """First the file, then the table by which requests go: what a client has seen outlives the server."""
        async with self._changing:
            table = change(self._table)
            state = table.to_state()
            if state != self._saved:
                await asyncio.to_thread(write_state, self._file, state)
                self._saved = state
            self._table = table

    async def _let_go(self, before: Entry | None) -> None:
        """No name stands for `before` any more."""
        if before is None:
            return
        if before.version is not None:
            await self._unload_unused(before.version)
        elif before.record is not None:
            await self._snapshots.drop(before.record.snapshot)

    async def _unload_unused(self, version: Version) -> None:
        """Unload a version unless some name or request needs it."""
        if version.in_flight or self._table.names(version) or self._held.get(version.id) is not version:
            return
        await self._take_back(version)
        await self._snapshots.drop(version.snapshot.id)

    # ---- requests

    async def lease(self, model: str) -> Lease:
        """What `model` stands for: the base model, an adapter, an alias, `<base>:<adapter>`, or a subfolder of
        `adapter_dir`, which is loaded first, and again where it has changed.

        Raises ModelNotFound; for a subfolder also EngineUnavailable, EngineFailure and Conflict, as `load`.
        """
        if model == self._base_name:
            return Lease(None, model)
        model = model.removeprefix(f"{self._base_name}:")
        name = self._table.aliases.get(model, model)
        await self._look(name)
        entry = self._table.adapters.get(name)
        if entry is None:
            raise ModelNotFound(f"The model {model[:100]!r} does not exist. Served: {self._served()}.", param="model")
        if entry.version is None:
            raise ModelNotFound(f"The adapter {name!r} cannot be served: {entry.error}", param="model")
        return self._lease(entry.version)

    def _lease(self, version: Version) -> Lease:
        version.requests += 1
        version.in_flight += 1
        version.last_used = int(time.time())

        def on_release() -> None:
            version.in_flight -= 1
            if not version.in_flight and not self._table.names(version):
                self._begin(version.name, self._unload_unused(version))

        return Lease(version.id, version.name, on_release)

    # ---- the folder in which adapters are found on demand

    async def _look(self, name: str) -> None:
        """Have `name` stand for what its subfolder of `adapter_dir` holds now, unless it stands for something else."""
        entry = self._table.adapters.get(name)
        if self._watched is None or name in self._table.aliases or (entry is not None and entry.found is None):
            return
        try:
            check_name(name, base_name=self._base_name)
        except InvalidRequest:
            return
        found = await asyncio.to_thread(self._watched.find, name)
        if not self._is_current(name, found):
            await asyncio.shield(self._begin(name, self._look_again(name, self._watched)))

    async def _look_again(self, name: str, watched: WatchedFolder) -> None:
        """As the only one: who came first has done it for the others."""
        found = await asyncio.to_thread(watched.find, name)
        before = self._table.adapters.get(name)
        if self._is_current(name, found):
            return
        if found is None:
            await self._change(lambda table: table.without(name))
            await self._let_go(before)
            return
        order = _Order(name=name, folder=found.folder, source=found.folder.name, replace=True, found=found.signature)
        try:
            await self._load(order)
        except (InvalidAdapter, NotFound) as error:
            log.warning("The adapter in the folder %r cannot be served: %s", name, error)
            refused = replace(before or Entry(version=None), found=found.signature, error=error.message)
            await self._change(lambda table: table.with_adapter(name, refused))

    def _is_current(self, name: str, found: Found | None) -> bool:
        entry = self._table.adapters.get(name)
        if entry is None:
            return found is None
        return entry.found is None or (found is not None and entry.found == found.signature)

    # ---- what there is

    def get(self, name: str) -> Adapter:
        """The adapter that a name or an alias stands for. Raises ModelNotFound (code "adapter_not_found")."""
        name = self._table.aliases.get(name, name)
        entry = self._table.adapters.get(name)
        if entry is None:
            raise adapter_not_found(name)
        return self._describe(name, entry)

    def adapters(self) -> list[Adapter]:
        """Those that have a name, by name, and then the draining ones."""
        named = [self._describe(name, entry) for name, entry in sorted(self._table.adapters.items())]
        draining = [version for version in self._held.values() if not self._table.names(version)]
        return named + [self._describe(version.name, Entry(version=version)) for version in draining]

    def aliases(self) -> dict[str, str]:
        """Alias -> name of the adapter, by alias."""
        return dict(sorted(self._table.aliases.items()))

    def _describe(self, name: str, entry: Entry) -> Adapter:
        version = entry.version
        if version is None:
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
        return Adapter(
            name=name,
            version=version.id,
            source=version.source,
            rank=version.snapshot.spec.rank,
            num_bytes=version.snapshot.spec.num_bytes,
            state=self._state_of(version),
            error=entry.error,
            pinned=version.pinned,
            created=version.created,
            requests=version.requests,
            in_flight=version.in_flight,
            last_used=version.last_used,
        )

    def _state_of(self, version: Version) -> AdapterState:
        if not self._table.names(version):
            return "draining"
        stats = self._engine.stats()
        if version.id in stats.adapter_slots:
            return "slot"
        return "host" if version.id in stats.adapter_host else "disk"

    def _served(self) -> str:
        """For a message: the first of all names."""
        adapters = (name for name, entry in sorted(self._table.adapters.items()) if entry.version is not None)
        names = [self._base_name, *adapters, *self.aliases()]
        return ", ".join(map(repr, names[:NAMES_IN_MESSAGE])) + (", ..." if len(names) > NAMES_IN_MESSAGE else "")

    # ---- conditions

    def _check_open(self) -> None:
        if self._why_closed:
            raise Conflict(self._why_closed)

    def _support(self) -> AdapterSupport:
        support = self._engine.capabilities().adapters
        if support is None:
            raise UnsupportedParameter("this engine serves the base model only")
        return support
