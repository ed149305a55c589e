"""The adapters of the engine's process: on disk, in host memory, in slots.

Every loaded adapter has its folder on disk. The weights of the most recently used are in host memory as well, read by a
thread of their own, so that no step waits for a disk; those of waiting requests are fetched in the order of the queue.
From there they go into slots (`engines/adapters/slots.py`, `slots.py`).
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from engines.adapters.folder import read_adapter
from engines.adapters.pins import with_pin
from engines.adapters.slots import AdapterSlots
from engines.adapters.spec import AdapterSpec
from engines.errors import EngineFailure, TuneserveError
from engines.pt.lora.slots import LoraSlots
from engines.pt.lora.weights import AdapterWeights, read_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arrival:
    """The end of a read from the disk, which may have failed."""

    version: str
    error: TuneserveError | None


class AdapterStore:
    def __init__(self, lora: LoraSlots, slots: AdapterSlots, *, dtype: torch.dtype, max_in_host: int) -> None:
        self.wake: Callable[[], None] = lambda: None
        """Called, in another thread, when a read has ended."""
        self._lora = lora
        self._slots = slots
        self._dtype = dtype
        self._max_in_host = max_in_host
        self._reader = ThreadPoolExecutor(1, "adapter")
        self._folders: dict[str, Path] = {}
        self._host: OrderedDict[str, AdapterWeights] = OrderedDict()  # least recently used first
        self._with_head: dict[str, bool] = {}  # of those that have been read
        self._reading: dict[str, Future[AdapterWeights]] = {}  # neither in host memory nor in a slot yet
        self._arrived: list[Arrival] = []
        self._wanted: list[str] = []

    def __contains__(self, version: str) -> bool:
        return version in self._folders or version in self._host

    def has_head(self, version: str) -> bool | None:
        """Whether it classifies; None where it has not been read yet."""
        return self._with_head.get(version)

    @property
    def in_host(self) -> tuple[str, ...]:
        return tuple(self._host)

    @property
    def reading(self) -> bool:
        return bool(self._reading)

    def load(self, version: str, folder: Path, *, pinned: bool) -> None:
        """Take a version in; its `Arrival` says whether that went well.

        A version that is there already arrives again.
        """
        self._slots.pinned = with_pin(self._slots.pinned, version, pinned, num_slots=self._lora.num_slots)
        self._folders[version] = folder
        if version in self._host or self._slots.slot_of(version) is not None:
            self._arrived.append(Arrival(version, None))
        else:
            self._read(version)

    def put(self, version: str, weights: AdapterWeights) -> None:
        """Take in a version that is in no folder. Where more are held than host memory is to hold, it may be lost."""
        self._host[version] = weights
        self._slots.ready.add(version)

    def unload(self, version: str) -> None:
        """Forget a version and free its memory; no sequence runs with it."""
        self._folders.pop(version, None)
        self._reading.pop(version, None)
        self._with_head.pop(version, None)
        self._host.pop(version, None)
        slot = self._slots.forget(version)
        if slot is not None:
            self._lora.clear(slot)

    def want(self, versions: Iterable[str]) -> None:
        """Read the adapters of the first in line that are neither in a slot nor in host memory; never more than have
        room."""
        waiting = [version for version in dict.fromkeys(versions) if self._slots.slot_of(version) is None]
        self._wanted = waiting[: self._max_in_host]
        for version in self._wanted:
            if version in self._host:
                self._host.move_to_end(version)
            elif version in self._folders:
                self._read(version)

    def _read(self, version: str) -> None:
        if version not in self._reading:
            self._reading[version] = future = self._reader.submit(self._read_folder, self._folders[version])
            future.add_done_callback(lambda _: self.wake())

    def _read_folder(self, folder: Path) -> AdapterWeights:
        spec: AdapterSpec = read_adapter(folder, self._lora.support)
        return self._lora.laid_out(read_weights(spec, self._dtype))

    def arrivals(self) -> list[Arrival]:
        """The reads that have ended since the last call."""
        at_once, self._arrived = self._arrived, []
        return at_once + [self._arrive(version, f) for version, f in list(self._reading.items()) if f.done()]

    def _arrive(self, version: str, future: Future[AdapterWeights]) -> Arrival:
        del self._reading[version]
        try:
            self._host[version] = future.result()
        except TuneserveError as error:
            log.warning("adapter %s: %s", version, error.message)
            return Arrival(version, error)
        except Exception:  # whatever it is, it is this adapter's alone
            log.exception("adapter %s could not be read", version)
            return Arrival(version, EngineFailure("the adapter could not be read"))
        self._with_head[version] = self._host[version].head is not None
        self._slots.ready.add(version)
        if version in self._slots.pinned:
            self._slots.settle(version)
        self._make_room()
        return Arrival(version, None)

    def _make_room(self) -> None:
        """Forget the least recently used, but none that the first in line wait for or that is on its way to a slot."""
        kept = {*self._wanted, *self._slots.unwritten}
        spare = [version for version in self._host if version not in kept]
        for version in spare[: max(0, len(self._host) - self._max_in_host)]:
            del self._host[version]
            self._slots.ready.discard(version)

    def fill_slots(self) -> list[Arrival]:
        """Copy the adapters that were given a slot into it. Returns those for which that failed.

        The caller ends what runs with these, and then calls `vacate`: their slots hold nothing that can be used.
        """
        failed = []
        for slot, version in self._slots.take_writes():
            try:
                self._lora.write(slot, self._host[version])
                self._host.move_to_end(version)
            except Exception:  # as a rule, no memory: the other slots are whole
                log.exception("adapter %s could not be copied to its slot", version)
                failed.append(Arrival(version, EngineFailure("the engine has no room for this adapter's weights")))
        self._make_room()
        return failed

    def vacate(self, version: str) -> None:
        """Empty its slot; it can be given another."""
        self._slots.vacate(version)
