"""An engine as the server sees it: an `Engine` whose work happens in a child process, the same for every engine."""

import asyncio
import os
import socket
import subprocess
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from engines.capabilities import Capabilities
from engines.errors import (
    Conflict,
    EngineFailure,
    EngineUnavailable,
    InvalidRequest,
    QueueFull,
    TuneserveError,
    UnsupportedParameter,
)
from engines.process import frames
from engines.process.children import kill_group
from engines.process.outputs import Outputs
from engines.process.supervisor import Supervisor
from engines.types import EmbeddingRequest, EngineState, EngineStats, GenerationRequest, Health, TokenOutput

ENDING_SECONDS = 10
"""Seconds for a process to end in order, once the server has no more use for it."""
GROUP_SECONDS = 1.0
"""Seconds for the processes that it started to notice that it is gone."""
READ_BYTES = 1 << 18
COUNTERS = ("prefix_cache_queries", "prefix_cache_hits", "preemptions")
COUNTERS_BY_VERSION = ("adapter_loads", "adapter_evictions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How the engine's process is started."""

    command: tuple[str, ...]
    """What to run; the number of its socket is added to it."""
    environment: dict[str, str]
    """Variables besides the server's own."""
    config: Any
    """The dataclass that says what to load: it crosses as its fields."""
    max_num_seqs: int
    """How many sequences it runs at once."""


class ProcessEngine:
    """An engine in its own process: a crash there ends the running requests, and a new process takes over."""

    def __init__(self, program: Program, *, max_num_queued_reqs: int) -> None:
        self._program = program
        self._max_num_queued_reqs = max_num_queued_reqs
        self._supervisor = Supervisor(self._start_process, self._on_death)
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
        self._received = 0  # of those sent, how many `_stats` knows of
        self._process: subprocess.Popen[bytes] | None = None
        self._prepared: socket.socket | None = None  # leads to a process that waits to be told what to load
        self._writer: asyncio.StreamWriter | None = None
        self._stats = EngineStats()
        self._before = EngineStats()  # counters of earlier lives of the process

    # ---- life

    def prepare(self) -> None:
        """Begin the process ahead of `start`: its imports take seconds, which the caller may have a use for."""
        self._prepared = self._spawn()

    async def start(self) -> None:
        await self._supervisor.start()

    async def stop(self) -> None:
        await self._supervisor.stop()
        self._fail_all(EngineUnavailable, "The server is shutting down.")
        if self._prepared is not None:
            self._prepared.close()
        if self._writer is not None:
            self._writer.close()  # the process ends when its socket does
        if self._process is not None:
            await asyncio.to_thread(_end, self._process)

    def health(self) -> Health:
        health = self._supervisor.health
        return Health(EngineState.SLEEPING) if self._asleep and health.state is EngineState.READY else health

    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise EngineUnavailable("the engine is starting")
        return self._capabilities

    def stats(self) -> EngineStats:
        return self._stats

    async def _start_process(self) -> Awaitable[str]:
        """Begin a life: start the process, load the model. Returns a task that ends, with the reason, when it does."""
        ours, self._prepared = self._prepared or self._spawn(), None
        process = self._process
        assert process is not None, "it has just been started"
        reader, self._writer = await asyncio.open_connection(sock=ours)
        incoming = _Incoming(reader)
        try:
            self._writer.write(frames.frame(frames.Start(msgspec.to_builtins(self._program.config))))
            first = await incoming.next()
        except ConnectionError as error:
            self._writer.close()
            code = await asyncio.to_thread(_end, process)
            raise EngineFailure(f"the engine process ended with {_status(code)} while it started") from error
        except asyncio.CancelledError:
            kill_group(process.pid)
            raise
        if isinstance(first, frames.Refused):
            self._writer.close()
            await asyncio.to_thread(_end, process)
            raise frames.put_together(first.failure)
        assert isinstance(first, frames.Ready), "nothing else comes first"
        self._capabilities = first.capabilities
        for adapter in self._adapters.values():
            self._writer.write(frames.frame(adapter))
        if self._asleep:
            self._writer.write(frames.frame(frames.Sleep()))
        return asyncio.create_task(self._read_until_death(incoming, self._writer, process))

    def _spawn(self) -> socket.socket:
        """Start `_process`, as the leader of a group of its own; return our end of its connection."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [*self._program.command, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:  # the machine is out of memory or processes: that may pass
                ours.close()
                raise EngineFailure(f"the engine process cannot be started: {error}") from error
        return ours

    def _environment(self) -> dict[str, str]:
        packages = Path(__file__).parents[2]
        path = os.pathsep.join(part for part in (str(packages), os.environ.get("PYTHONPATH", "")) if part)
        return os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path} | self._program.environment

    async def _read_until_death(
        self, incoming: "_Incoming", writer: asyncio.StreamWriter, process: "subprocess.Popen[bytes]"
    ) -> str:
        try:
            while True:
                message = await incoming.next()
                assert isinstance(message, frames.Step), "the process has started"
                self._dispatch(message)
        except ConnectionError:
            return f"its process ended with {_status(await asyncio.to_thread(_end, process))}"
        finally:
            writer.close()

    def _dispatch(self, step: frames.Step) -> None:
        self._stats, self._received = _sum(step.stats, self._before), step.received
        for request_id, output in step.outputs:
            outputs = self._pending.get(request_id)
            if isinstance(outputs, Outputs):
                outputs.put(output)
        for request_id, embedding in step.embeddings:
            embedded = self._pending.get(request_id)
            if isinstance(embedded, asyncio.Future) and not embedded.done():
                embedded.set_result(embedding)
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
        self._before = EngineStats(**{name: getattr(self._stats, name) for name in COUNTERS + COUNTERS_BY_VERSION})
        self._stats = self._before
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
            self._check_can_sleep()
            if self._asleep:
                return
            self._check_ready()
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
            self._check_can_sleep()
            if self._asleep:
                await self._rest(frames.WakeUp())
                self._asleep = False

    def _check_can_sleep(self) -> None:
        if not self.capabilities().sleep:
            raise UnsupportedParameter("this engine cannot sleep, or was not started with --enable_sleep_mode true")

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
        self._check_ready()
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
        self._take(request.request_id, outputs)
        try:
            self._send(message)
            async for output in outputs:
                yield output
        finally:
            self._let_go(request.request_id, still_wanted=bool(outputs.open))

    def finish(self, request_id: str, index: int) -> None:
        outputs = self._pending.get(request_id)
        if isinstance(outputs, Outputs) and outputs.finish(index):
            self._send(frames.frame(frames.Finish(request_id, index)))

    async def embed(self, request: EmbeddingRequest) -> list[float]:
        message = frames.frame(frames.Embed(request))
        embedding: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self._take(request.request_id, embedding)
        try:
            self._send(message)
            return await embedding
        finally:
            self._let_go(request.request_id, still_wanted=embedding.cancelled())

    def _let_go(self, request_id: str, *, still_wanted: bool) -> None:
        """Whoever asked has what there was, or has gone. `still_wanted`: the engine is still at it."""
        del self._pending[request_id]
        if not self._pending:
            self._idle.set()
        if still_wanted:
            self._send(frames.frame(frames.Abort(request_id)))

    def _take(self, request_id: str, pending: "Outputs | asyncio.Future[list[float]]") -> None:
        """Admit a request, or raise EngineUnavailable, QueueFull or, for an id that is in use, InvalidRequest."""
        self._check_ready()
        if request_id in self._pending:
            raise InvalidRequest(f"request id {request_id!r} is in use")
        free_seats = self._program.max_num_seqs - self._stats.running
        waiting = self._stats.waiting + max(0, self._sent + 1 - self._received - free_seats)
        if waiting > self._max_num_queued_reqs:
            raise QueueFull(f"{waiting - 1} requests are waiting already; try again later")
        self._sent += 1
        self._idle.clear()
        self._pending[request_id] = pending

    def _check_ready(self) -> None:
        state = self.health().state
        if state is not EngineState.READY:
            raise EngineUnavailable(f"the engine is {state}")

    def _send(self, message: bytes) -> None:
        """Nothing goes to a process that has ended or has not begun: what it would concern has ended too."""
        if self._supervisor.health.state is not EngineState.READY:
            return
        assert self._writer is not None, "the engine has been started"
        if not self._writer.is_closing():
            self._writer.write(message)


class _Incoming:
    """The messages of a life of the process, one after another."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._splitter = frames.Splitter(frames.decode_from_engine)
        self._messages: deque[frames.FromEngine] = deque()

    async def next(self) -> frames.FromEngine:
        """Raises ConnectionError at the end."""
        while not self._messages:
            data = await self._reader.read(READ_BYTES)
            if not data:
                raise ConnectionResetError("the process has closed its connection")
            self._messages.extend(self._splitter.feed(data))
        return self._messages.popleft()


def _end(process: "subprocess.Popen[bytes]") -> int:
    """Wait for the end of a process that has closed its connection, and end what it left of its group. Return its
    status.
    """
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=ENDING_SECONDS)
    kill_group(process.pid, patience=GROUP_SECONDS)
    return process.wait()


def _status(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"status {code}"


def _sum(now: EngineStats, before: EngineStats) -> EngineStats:
    values = {f.name: getattr(now, f.name) for f in fields(EngineStats)}
    values |= {name: values[name] + getattr(before, name) for name in COUNTERS}
    values |= {name: Counter(values[name]) + Counter(getattr(before, name)) for name in COUNTERS_BY_VERSION}
    return EngineStats(**values)
