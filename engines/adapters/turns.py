"""More adapters than an engine has slots for take turns: a request waits until its own is in one.

For engines that are libraries. Who gets which slot is decided by `slots.py`: nobody waits longer than what runs takes.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from engines.adapters.pins import with_pin
from engines.adapters.slots import AdapterSlots
from engines.errors import EngineFailure

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Turn:
    """A request that computes with one version, or waits for it."""

    version: str | None
    """None: the base model, which needs no slot."""
    slot: int | None = None
    end: Callable[[], None] | None = None
    """Callback that ends the request's computation at once when its adapter is unloaded. Set by the engine."""
    gone: bool = False
    """Whether its adapter was unloaded."""


class AdapterTurns:
    """The versions in the engine's slots, and the requests that compute with them or wait for one."""

    def __init__(
        self,
        num_slots: int,
        *,
        put: Callable[[int, str, Path], Awaitable[None]],
        take: Callable[[int, str], Awaitable[None]],
    ) -> None:
        """`put` brings a version into an empty slot; `take` empties a slot that no request uses. One runs at a time."""
        self._num_slots = num_slots
        self._put = put
        self._take = take
        self._slots = AdapterSlots(num_slots)
        self._folders: dict[str, Path] = {}
        self._queue: dict[Turn, asyncio.Future[None]] = {}  # in the order of arrival
        self._turns: defaultdict[str, set[Turn]] = defaultdict(set)  # version -> requests that compute with it
        self._filled: dict[int, str] = {}  # slot -> version that the engine really has there
        self._filling: dict[int, asyncio.Task[None]] = {}  # slot -> copy on its way, or failed
        self._one_change = asyncio.Lock()
        self._emptied: dict[str, asyncio.Future[None]] = {}  # version -> done once no request uses it any more

    @property
    def loaded(self) -> tuple[str, ...]:
        return tuple(self._folders)

    @property
    def resident(self) -> tuple[str, ...]:
        """Versions that are in a slot."""
        return tuple(self._filled.values())

    @property
    def loads(self) -> dict[str, int]:
        return dict(self._slots.loads)

    @property
    def evictions(self) -> dict[str, int]:
        return dict(self._slots.evictions)

    async def load(self, version: str, folder: Path, *, pinned: bool) -> None:
        """Let requests use the version. It is put into a slot at once where one is empty, or where it is pinned.

        Raises InvalidAdapter for one pin too many, and what `use` raises.
        """
        pins = with_pin(self._slots.pinned, version, pinned, num_slots=self._num_slots)
        new, was_pinned = version not in self._folders, version in self._slots.pinned
        self._folders[version] = folder
        self._slots.ready.add(version)
        self._slots.pinned = pins
        if pinned or len(self._slots.resident) < self._num_slots:
            try:
                async with self.use(version):
                    pass
            except BaseException:  # a caller that gave up waiting has loaded and pinned nothing either
                if new:
                    await self.unload(version)
                elif not was_pinned:
                    self._slots.pinned.discard(version)
                raise

    async def unload(self, version: str) -> None:
        """Forget a version.

        The requests that use it or wait for it end with EngineFailure; then its slot is emptied.
        """
        if self._folders.pop(version, None) is None:
            return
        for turn, granted in list(self._queue.items()):
            if turn.version == version and not granted.done():
                turn.gone = True
                del self._queue[turn]
                granted.set_result(None)
        for turn in self._turns[version]:
            turn.gone = True
            if turn.end is not None:
                turn.end()
        if self._turns[version]:
            self._emptied[version] = asyncio.get_running_loop().create_future()
            await self._emptied[version]
        del self._turns[version]
        slot = self._slots.forget(version)
        self._admit()
        if slot is not None:
            await self._fill(slot, None)

    @asynccontextmanager
    async def use(self, version: str | None) -> AsyncIterator[Turn]:
        """Wait until `version` is in a slot, and keep it there meanwhile.

        Raises EngineFailure where it is not loaded, cannot be put into a slot, or was unloaded before the end.
        """
        turn = Turn(version)
        if version is None:
            yield turn
            return
        if version not in self._folders:
            raise EngineFailure(f"the engine does not hold the adapter {version!r}")
        granted = self._queue[turn] = asyncio.get_running_loop().create_future()
        self._admit()
        try:
            await granted
            if turn.slot in self._filling:
                await asyncio.shield(self._filling[turn.slot])
            if not turn.gone:
                yield turn
        finally:
            self._queue.pop(turn, None)
            self._release(turn)
        if turn.gone:
            raise EngineFailure(f"the adapter {version!r} was unloaded while this request needed it")

    def _admit(self) -> None:
        """Give slots to the requests that wait, from the first in line."""
        self._slots.begin()
        for turn, granted in list(self._queue.items()):
            assert turn.version is not None, "the base model waits for nothing"
            if not granted.done() and self._slots.may_run(turn.version):
                turn.slot = self._slots.acquire(turn.version)
                self._turns[turn.version].add(turn)
                for slot, version in self._slots.take_writes():
                    self._filling[slot] = filling = asyncio.create_task(self._fill(slot, version))
                    filling.add_done_callback(
                        lambda task: task.cancelled() or task.exception()
                    )  # the requests that wait for it raise it
                del self._queue[turn]
                granted.set_result(None)

    def _release(self, turn: Turn) -> None:
        if turn.slot is None or turn.version is None:
            return
        self._slots.release(turn.slot)
        turns = self._turns[turn.version]
        turns.discard(turn)
        filling = self._filling.get(turn.slot)
        if not turns and filling is not None and filling.done():  # it has failed: the next request tries again
            del self._filling[turn.slot]
            self._slots.vacate(turn.version)
        if not turns and turn.version in self._emptied:
            self._emptied.pop(turn.version).set_result(None)
        self._admit()

    async def _fill(self, slot: int, version: str | None) -> None:
        """Bring a version, or nothing, into a slot. Raises EngineFailure."""
        try:
            async with self._one_change:
                before = self._filled.pop(slot, None)
                if before is not None:
                    await self._take(slot, before)
                if version in self._folders:  # not unloaded since
                    await self._put(slot, version, self._folders[version])
                    self._filled[slot] = version
                if self._filling.get(slot) is asyncio.current_task():  # no other one has got the slot meanwhile
                    del self._filling[slot]
        except EngineFailure:
            raise
        except Exception as error:  # `put` and `take` are a library's
            log.exception("the adapter %r could not be put into a slot", version)
            raise EngineFailure(f"the adapter {version!r} could not be loaded: {error}") from error
