"""An engine as the server sees it: an `Engine` whose work happens in a child process, the same for every engine."""

import asyncio
import atexit
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable
from dataclasses import fields, replace
from pathlib import Path

from engines.capabilities import Capabilities
from engines.engine import check_can_sleep, check_ready
from engines.errors import (
    Conflict,
    EngineFailure,
    EngineUnavailable,
    InvalidRequest,
    QueueFull,
    TuneserveError,
)
from engines.fairness.places import Places, Request
from engines.process import frames
from engines.process.config import PATIENCE, Patience
from engines.process.life import End, Life, Program
from engines.process.outputs import Outputs
from engines.process.supervisor import Supervisor
from engines.types import EngineState, EngineStats, GenerationRequest, Health, PoolingRequest, TokenOutput

COUNTERS = (
    *("prefix_cache_queries", "prefix_cache_hits", "preemptions", "step_tokens"),
    *("spec_drafts", "spec_draft_tokens"),
)
COUNTERS_BY_VERSION = ("adapter_loads", "adapter_evictions")
COUNTERS_BY_KEY = (*COUNTERS_BY_VERSION, "step_sizes", "spec_accepted")


class ProcessEngine:
    """An engine in its own process: a crash there ends the running requests, and a new process takes over."""

    def __init__(self, program: Program, *, max_num_queued_reqs: int, patience: Patience = PATIENCE) -> None:
        self._program = program
        self._max_num_queued_reqs = max_num_queued_reqs
        self._places = Places(program.max_num_seqs + max_num_queued_reqs)
        self._patience = patience
        self._supervisor = Supervisor(self._begin_life, self._on_death, max_restarts=patience.restarts)
        self._capabilities: Capabilities | None = None
        self._pending: dict[str, Outputs | asyncio.Future[list[float]]] = {}
        self._adapters: dict[str, frames.LoadAdapter] = {}  # what a new process must be told
        self._loading: dict[str, set[asyncio.Future[None]]] = {}  # those who wait for a version
        self._asleep = False
        self._resting = asyncio.Lock()
        self._rests: deque[asyncio.Future[None]] = deque()  # those who wait for a `Sleep` or `WakeUp`
        self._idle = asyncio.Event()
        self._idle.set()
        self._sent = 0
        self._received = 0  # of those sent, how many `_now` knows of
        self._life: Life | None = None
        self._prepared = False  # it has begun, and nobody waits for it yet
        self._now = EngineStats()  # of this life
        self._before = EngineStats()  # counters of earlier lives of the process

    # ---- life

    def prepare(self) -> None:
        """Begin the process ahead of `start`: it loads the model while the caller does something else. Where this
        process ends before, it does so at once: while it loads it would not notice."""
        self._life, self._prepared = Life(self._program, self._patience), True
        atexit.register(self._life.kill)

    async def start(self) -> None:
        await self._supervisor.start()

    async def stop(self) -> None:
        await self._supervisor.stop()
        self._fail_all(EngineUnavailable, "The server is shutting down.")
        if self._life is not None:
            if self._prepared:  # for nobody any more, and while it loads it would not notice
                self._life.kill()
            self._life.close()
            await self._life.end()

    def health(self) -> Health:
        health = self._supervisor.health
        return Health(EngineState.SLEEPING) if self._asleep and health.state is EngineState.READY else health

    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise EngineUnavailable("the engine is starting")
        return self._capabilities

    def stats(self) -> EngineStats:
        restarts, failures = self._supervisor.restarts, self._supervisor.task_failures
        return replace(_sum(self._now, self._before), restarts=dict(restarts), task_failures=dict(failures))

    async def _begin_life(self) -> Awaitable[End]:
        """Start the process, load the model. Returns a task that ends with the process."""
        if self._life is None or not self._prepared:
            if self._life is not None:  # it has ended, unless the server failed to see that
                self._life.kill()
                await self._life.end()
            self._life = Life(self._program, self._patience)
        life, self._prepared = self._life, False
        atexit.unregister(life.kill)
        self._capabilities = await life.start()
        for adapter in self._adapters.values():
            life.send(frames.frame(adapter))
        if self._asleep:
            life.send(frames.frame(frames.Sleep()))
        return asyncio.create_task(life.run(self._dispatch, self._has_work), name="engine")

    def _has_work(self) -> bool:
        """Whether the process owes anybody anything. What it has done and nobody has read yet, it does not owe."""
        pending = self._pending.values()
        owed = any(one.open if isinstance(one, Outputs) else not one.done() for one in pending)
        return owed or bool(self._loading) or bool(self._rests)

    def _dispatch(self, step: frames.Step) -> None:
        self._now, self._received = step.stats, step.received
        for request_id, output in step.outputs:
            outputs = self._pending.get(request_id)
            if isinstance(outputs, Outputs):
                outputs.put(output)
        for request_id, numbers in step.pooled:
            pooled = self._pending.get(request_id)
            if isinstance(pooled, asyncio.Future) and not pooled.done():
                pooled.set_result(numbers)
        for version, reason in step.adapters:
            self._end_loading(version, None if reason is None else frames.put_together(reason))
        for failure_to_rest in step.rests:
            if self._rests:  # else it is that of a new process, which was told to sleep as the one before it
                self._end_rest(self._rests.popleft(), failure_to_rest)
        for request_id, failure in step.failures:
            self._fail(request_id, frames.put_together(failure))

    def _on_death(self, reason: str) -> None:
        self._fail_all(EngineFailure, f"the engine ended while it ran this request: {reason}")

    def _fail_all(self, kind: type[TuneserveError], message: str) -> None:
        so_far = _sum(self._now, self._before)
        self._before = EngineStats(**{name: getattr(so_far, name) for name in COUNTERS + COUNTERS_BY_KEY})
        self._now = EngineStats()
        self._sent = self._received = 0
        for request_id in self._pending:
            self._fail(request_id, kind(message))
        for version in list(self._loading):
            self._end_loading(version, kind(message))
        while self._rests:
            self._end_rest(self._rests.popleft(), frames.take_apart(kind(message)))

    def _fail(self, request_id: str, error: TuneserveError) -> None:
        pending = self._pending.get(request_id)
        if isinstance(pending, Outputs) and pending.open:  # else the engine was done with it
            pending.fail(error)
        elif isinstance(pending, asyncio.Future) and not pending.done():
            pending.set_exception(error)

    # ---- sleep

    async def sleep(self) -> None:
        async with self._resting:
            check_can_sleep(self)
            if self._asleep:
                return
            check_ready(self)
            self._asleep = True  # from now on no request is taken
            try:
                await self._idle.wait()
            except asyncio.CancelledError:  # before the engine was told: it stays awake
                self._asleep = False
                raise
            try:
                await self._rest(frames.Sleep())
            except TuneserveError:
                self._asleep = False
                raise

    async def wake_up(self) -> None:
        async with self._resting:
            check_can_sleep(self)
            if self._asleep:
                await self._rest(frames.WakeUp())
                self._asleep = False

    async def _rest(self, message: frames.Sleep | frames.WakeUp) -> None:
        if self._supervisor.health.state is not EngineState.READY:
            raise EngineUnavailable(f"the engine is {self._supervisor.health.state}")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rests.append(done)
        self._send(frames.frame(message))
        await asyncio.shield(done)

    def _end_rest(self, done: asyncio.Future[None], failure: frames.Failure | None) -> None:
        if failure is None:
            done.set_result(None)
        else:
            done.set_exception(frames.put_together(failure))

    # ---- adapters

    async def load_adapter(self, version: str, folder: Path, *, pinned: bool = False) -> None:
        check_ready(self)
        message = frames.LoadAdapter(version, str(folder), pinned)
        loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._loading.setdefault(version, set())
        waiting.add(loaded)
        self._send(frames.frame(message))
        try:
            await loaded
            self._adapters[version] = message
        finally:
            waiting.discard(loaded)
            if not waiting:
                del self._loading[version]
                if version not in self._adapters:  # it failed, or the only one who wanted it gave up
                    self._send(frames.frame(frames.UnloadAdapter(version)))

    async def unload_adapter(self, version: str) -> None:
        self._adapters.pop(version, None)
        for name in COUNTERS_BY_VERSION:
            getattr(self._before, name).pop(version, None)
        self._end_loading(version, Conflict(f"the adapter {version!r} was unloaded while it was loaded"))
        self._send(frames.frame(frames.UnloadAdapter(version)))

    def _end_loading(self, version: str, error: TuneserveError | None) -> None:
        for loaded in self._loading.get(version, ()):
            if loaded.done():
                continue  # by an earlier report, or cancelled
            if error is None:
                loaded.set_result(None)
            else:
                loaded.set_exception(error)

    # ---- requests

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenOutput, None]:
        message = frames.frame(frames.Generate(request))
        outputs = Outputs(request.n)
        self._take(request, outputs)
        try:
            self._send(message)
            while True:
                while (output := outputs.next()) is not None:
                    yield output
                if not outputs.open:
                    break
                await outputs.news()
        finally:
            self._let_go(request, still_wanted=bool(outputs.open))

    def finish(self, request_id: str, index: int) -> None:
        outputs = self._pending.get(request_id)
        if isinstance(outputs, Outputs) and outputs.finish(index):
            self._send(frames.frame(frames.Finish(request_id, index)))

    async def pool(self, request: PoolingRequest) -> list[float]:
        message = frames.frame(frames.Pool(request))
        pooled: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self._take(request, pooled)
        try:
            self._send(message)
            return await pooled
        finally:
            self._let_go(request, still_wanted=pooled.cancelled())

    def _let_go(self, request: Request, *, still_wanted: bool) -> None:
        """Whoever asked has what there was, or has gone. `still_wanted`: the engine is still at it."""
        del self._pending[request.request_id]
        self._places.leave(request)
        if not self._pending:
            self._idle.set()
        if still_wanted:
            self._send(frames.frame(frames.Abort(request.request_id)))

    def _take(self, request: Request, pending: "Outputs | asyncio.Future[list[float]]") -> None:
        """Admit a request, or raise EngineUnavailable, QueueFull or, for an id that is in use, InvalidRequest."""
        request_id = request.request_id
        check_ready(self)
        if request_id in self._pending:
            raise InvalidRequest(f"request id {request_id!r} is in use")
        free_seats = self._program.max_num_seqs - self._now.running
        waiting = self._now.waiting + max(0, self._sent + 1 - self._received - free_seats)
        if waiting > self._max_num_queued_reqs and not self._places.are_left(request):
            raise QueueFull(f"{waiting - 1} requests are waiting already; try again later")
        self._sent += 1
        self._idle.clear()
        self._pending[request_id] = pending
        self._places.take(request)

    def _send(self, message: bytes) -> None:
        """Nothing goes to a process that has ended or has not begun: what it would concern has ended too."""
        if self._supervisor.health.state is EngineState.READY and self._life is not None:
            self._life.send(message)


def _sum(now: EngineStats, before: EngineStats) -> EngineStats:
    values = {f.name: getattr(now, f.name) for f in fields(EngineStats)}
    values |= {name: values[name] + getattr(before, name) for name in COUNTERS}
    values |= {name: Counter(values[name]) + Counter(getattr(before, name)) for name in COUNTERS_BY_KEY}
    return EngineStats(**values)
