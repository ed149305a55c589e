"""A library as an `Engine`: adapters that take turns, a request's outputs, one end for each, deaths.

It lives in the process that has the library. A death there is final: the server starts another process.
"""

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from engines.adapters.turns import AdapterTurns, Turn
from engines.capabilities import Capabilities
from engines.engine import check_can_sleep, check_ready
from engines.errors import EngineFailure, EngineUnavailable, InvalidRequest, TuneserveError, UnsupportedParameter
from engines.library.core import Asked, Core, Load
from engines.library.gate import Gate, Place
from engines.process.outputs import Outputs
from engines.types import (
    EngineState,
    EngineStats,
    GenerationRequest,
    Health,
    PoolingRequest,
    TokenOutput,
)

log = logging.getLogger(__name__)

PAUSE_SECONDS = 0.05
"""Seconds between two looks at whether the requests have ended that the engine's sleep waits for."""


@dataclass(eq=False, slots=True)
class _Running:
    """A request: its outputs as they come, and the tasks that compute them."""

    request: GenerationRequest
    outputs: Outputs
    computing: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    arrived: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    """Seconds until the library was asked for its outputs."""
    waits_for: str | None = "constraint"
    """Why its outputs have not been asked for yet."""
    told: bool = False
    """Whether its first output is out, and with it what there is to tell of the prompt."""


class LibraryEngine:
    def __init__(self, core: Core, *, max_loras: int, max_num_seqs: int) -> None:
        self._core = core
        self._gate = Gate(max_num_seqs)
        self._state = EngineState.STOPPED
        self._capabilities: Capabilities | None = None
        self._turns = AdapterTurns(max_loras, put=self._put, take=self._take)
        self._names: dict[str, str] = {}  # version -> what the library will know it by
        self._names_in: dict[int, str] = {}  # slot -> what it knows what lies there by
        self._loads = itertools.count(1)
        self._running: dict[str, _Running] = {}
        self._pooling = 0  # prompts whose numbers are to come
        self._prompt_tokens = 0
        self._cached_tokens = 0

    # ---- life

    async def start(self) -> None:
        self._state = EngineState.STARTING
        try:
            self._capabilities = await self._core.start()
        except TuneserveError:
            self._state = EngineState.FAILED
            raise
        self._state = EngineState.READY

    async def stop(self) -> None:
        self._state = EngineState.STOPPED
        for running in self._running.values():
            running.outputs.fail(EngineUnavailable("The server is shutting down."))
        await self._core.stop()

    def health(self) -> Health:
        if self._state in (EngineState.READY, EngineState.SLEEPING):
            death = self._core.death()
            if death is not None:
                return Health(EngineState.FAILED, death)
        return Health(self._state)

    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise EngineUnavailable("the engine is starting")
        return self._capabilities

    def stats(self) -> EngineStats:
        load = Load(
            outputs=sum(len(running.outputs.open) for running in self._running.values()) + self._pooling,
            held_back=sum(not running.computing for running in self._running.values()),
            waiting_for=self._waiting_for(),
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
        )
        return replace(
            self._core.stats(load),
            adapter_slots=self._turns.resident,
            adapter_loads=self._turns.loads,
            adapter_evictions=self._turns.evictions,
        )

    def _waiting_for(self) -> dict[str, int]:
        waiting: Counter[str] = Counter()
        for running in self._running.values():
            if running.waits_for is not None:
                waiting[running.waits_for] += len(running.outputs.open)
        return dict(waiting)

    # ---- sleep

    async def sleep(self) -> None:
        check_can_sleep(self)
        if self._state is EngineState.SLEEPING:
            return
        check_ready(self)
        self._state = EngineState.SLEEPING
        while self._running or self._pooling:
            await asyncio.sleep(PAUSE_SECONDS)
        await self._core.sleep()

    async def wake_up(self) -> None:
        check_can_sleep(self)
        if self._state is EngineState.SLEEPING:
            await self._core.wake_up()
            self._state = EngineState.READY

    # ---- adapters

    async def load_adapter(self, version: str, folder: Path, *, pinned: bool = False) -> None:
        check_ready(self)
        if self.capabilities().adapters is None:
            raise UnsupportedParameter("this engine serves the base model only")
        if version not in self._turns.loaded:
            self._names[version] = f"{version}#{next(self._loads)}"
        await self._turns.load(version, folder, pinned=pinned)

    async def unload_adapter(self, version: str) -> None:
        await self._turns.unload(version)
        self._names.pop(version, None)

    async def _put(self, slot: int, version: str, folder: Path) -> None:
        assert self._core.slots is not None, "load_adapter has checked it"
        name = self._names[version]
        await self._core.slots.put(slot, name, folder)
        self._names_in[slot] = name

    async def _take(self, slot: int, version: str) -> None:
        assert self._core.slots is not None, "load_adapter has checked it"
        await self._core.slots.take(slot, self._names_in.pop(slot))

    def _name(self, turn: Turn) -> str | None:
        return None if turn.slot is None else self._names_in[turn.slot]

    # ---- requests

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        check_ready(self)
        self._core.check(request)
        if request.request_id in self._running:
            raise InvalidRequest(f"request id {request.request_id!r} is in use")
        running = self._running[request.request_id] = _Running(request, Outputs(request.n))
        computing = asyncio.create_task(self._compute(running))
        try:
            async for output in running.outputs:
                yield output
        finally:
            del self._running[request.request_id]
            computing.cancel()
            await asyncio.gather(computing, return_exceptions=True)

    async def _compute(self, running: _Running) -> None:
        """Have the library make the outputs. Apart from who reads them, so that an adapter can be unloaded under a slow
        reader.
        """
        request = running.request
        try:
            asked = self._core.ask(request)
            await asked.prepare()
            running.waits_for = "adapter"
            async with self._turns.use(request.adapter) as turn, self._gate.place(request) as place:
                running.waits_for = "share"
                await _run([asyncio.create_task(self._begin(asked, place, turn))], turn)
                if turn.gone:
                    return
                running.waits_for = None
                running.waited = time.monotonic() - running.arrived
                tell = partial(self._tell, running)
                running.computing = {
                    index: asyncio.create_task(asked.compute(index, tell)) for index in sorted(running.outputs.open)
                }
                await _run(list(running.computing.values()), turn)
        except TuneserveError as error:
            running.outputs.fail(error)
        except Exception:  # the library's, of any kind: whoever asked is to hear of it
            log.exception("a request failed")
            running.outputs.fail(EngineFailure("the engine failed while it computed this request"))

    async def _begin(self, asked: Asked, place: Place, turn: Turn) -> None:
        await place.wait()
        await asked.begin(self._name(turn))

    def _tell(self, running: _Running, output: TokenOutput) -> None:
        if output.index not in running.outputs.open:
            return
        if not running.told:
            running.told = True
            cached, queued = output.cached_tokens or 0, output.queue_seconds or 0.0
            self._prompt_tokens += len(running.request.prompt_ids)
            self._cached_tokens += cached
            output = msgspec.structs.replace(output, cached_tokens=cached, queue_seconds=running.waited + queued)
        elif output.queue_seconds is not None:  # the first of another output: it tells of the prompt once more
            output = msgspec.structs.replace(output, cached_tokens=None, queue_seconds=None, prompt_logprobs=None)
        self._gate.count_output(running.request.share, len(output.token_ids))
        running.outputs.put(output)

    def finish(self, request_id: str, index: int) -> None:
        running = self._running.get(request_id)
        if running is not None and running.outputs.finish(index) and index in running.computing:
            running.computing[index].cancel()

    async def pool(self, request: PoolingRequest) -> list[float]:
        check_ready(self)
        self._core.check_pooling(request)
        self._pooling += 1
        try:
            async with self._turns.use(request.adapter) as turn, self._gate.place(request) as place:
                pooled = asyncio.create_task(self._pool(request, place, turn))
                await _run([pooled], turn)
        finally:
            self._pooling -= 1
        return pooled.result()

    async def _pool(self, request: PoolingRequest, place: Place, turn: Turn) -> list[float]:
        await place.wait()
        return await self._core.pool(request, self._name(turn))


async def _run(tasks: Sequence[asyncio.Task[Any]], turn: Turn) -> None:
    """Wait for all, or for the first error, which is raised. None is left running, also where the turn ends early."""

    def cancel() -> None:
        for task in tasks:
            task.cancel()

    if not tasks:
        return
    turn.end = cancel
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        if not task.cancelled():
            task.result()
