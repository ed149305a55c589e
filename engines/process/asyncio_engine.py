"""An asyncio `Engine` under the host: a task for each request, and all that one turn of the loop brings told together.

The engine keeps the protocol of `engines/engine.py`, so what is hosted here could as well run in the server.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from engines.capabilities import Capabilities
from engines.engine import Engine
from engines.errors import EngineFailure, TuneserveError
from engines.logs import about
from engines.process import frames
from engines.process.connection import Connection
from engines.types import EngineState, GenerationRequest, PoolingRequest

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""Seconds between two looks at whether the engine inside is alive, and at its gauges."""


class AsyncioEngine:
    """Runs the engine's loop, in this thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._runner = asyncio.Runner()

    def start(self) -> Capabilities:
        self._runner.run(self._engine.start())
        return self._engine.capabilities()

    def serve(self, connection: Connection) -> None:
        self._runner.run(self._serve(connection))

    async def _serve(self, connection: Connection) -> None:
        await Exchange(self._engine, connection).run()

    def stop(self) -> None:
        self._runner.run(self._engine.stop())
        self._runner.close()


@dataclass(slots=True, eq=False)
class _Running:
    """A request that is being answered."""

    request: GenerationRequest | PoolingRequest
    """With the id that the engine knows it by."""
    after: asyncio.Task[None] | None
    """Adapter change to await first: the one that was told before it."""
    task: asyncio.Task[None] | None = None


class Exchange:
    """The engine, the connection, and what runs between them."""

    def __init__(self, engine: Engine, connection: Connection) -> None:
        self._engine = engine
        self._connection = connection
        self._requests: dict[str, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_changes: dict[str, asyncio.Task[None]] = {}  # of each adapter: the next one waits for it
        self._changing = 0
        self._still = asyncio.Event()  # no adapter is being changed
        self._still.set()
        self._awake = asyncio.Event()
        self._awake.set()
        self._resting = asyncio.Lock()
        self._received = 0
        self._news = asyncio.Event()
        self._step = frames.Step(engine.stats(), 0)

    async def run(self) -> None:
        """Raises Closed once the server has gone, EngineFailure where the engine dies."""
        arrived = asyncio.Event()
        self._connection.socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._connection.socket, arrived.set)
        listening = asyncio.create_task(self._listen(arrived))
        telling = asyncio.create_task(self._tell())
        try:
            done, _ = await asyncio.wait((listening, telling), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            asyncio.get_running_loop().remove_reader(self._connection.socket)
            tasks = [listening, telling, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, arrived: asyncio.Event) -> None:
        while True:
            await arrived.wait()
            arrived.clear()
            for message in self._connection.receive():
                self._handle(message)

    def _handle(self, message: frames.ToEngine) -> None:
        match message:
            case frames.Generate(request) | frames.Pool(request):
                self._begin(request)
            case frames.Finish(request_id, index):
                if request_id in self._requests:
                    self._engine.finish(self._requests[request_id].request.request_id, index)
            case frames.Abort(request_id):
                self._abort(request_id)
            case frames.LoadAdapter(version, folder, pinned):
                self._change(version, partial(self._load_adapter, version, Path(folder), pinned))
            case frames.UnloadAdapter(version):
                self._change(version, partial(self._engine.unload_adapter, version))
            case frames.Sleep():
                self._keep(asyncio.create_task(self._rest(self._engine.sleep)))
            case frames.WakeUp():
                self._keep(asyncio.create_task(self._rest(self._engine.wake_up)))
            case frames.Ping():
                self._news.set()

    # ---- requests

    def _begin(self, asked: GenerationRequest | PoolingRequest) -> None:
        """Answer a request under an id of our own: the server's is free for the next as soon as it has had enough of
        this one, and the engine may need a while longer to be done with it.
        """
        self._received += 1
        request_id = asked.request_id
        self._abort(request_id)
        after = None if asked.adapter is None else self._last_changes.get(asked.adapter)
        running = _Running(replace(asked, request_id=f"{request_id}-{self._received}"), after)
        self._requests[request_id] = running
        with about(asked.http_request_id):
            running.task = asyncio.create_task(self._answer(request_id, running))
        self._tasks.add(running.task)
        running.task.add_done_callback(lambda task: self._end(request_id, running, task))

    def _abort(self, request_id: str) -> None:
        running = self._requests.pop(request_id, None)
        if running is not None and running.task is not None:
            running.task.cancel()

    def _end(self, request_id: str, running: "_Running", task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._requests.get(request_id) is running:
            del self._requests[request_id]
        self._news.set()

    async def _answer(self, request_id: str, running: "_Running") -> None:
        """Whatever is wrong with a request concerns nobody else."""
        request = running.request
        try:
            if running.after is not None:
                await asyncio.wait((running.after,))
            if isinstance(request, PoolingRequest):
                pooled = await self._engine.pool(request)
                self._step.pooled.append((request_id, pooled))  # the step of now, not of when it was asked for
                return
            async with aclosing(self._engine.generate(request)) as outputs:
                async for output in outputs:
                    if self._requests.get(request_id) is running:
                        self._step.outputs.append((request_id, output))
                        self._news.set()
        except TuneserveError as error:
            self._fail(request_id, running, error)
        except Exception:  # the library's, of any kind: it must not end what others have asked for
            log.exception("a request failed")
            self._fail(request_id, running, EngineFailure("the engine failed while it computed this request"))

    def _fail(self, request_id: str, running: "_Running", error: TuneserveError) -> None:
        if self._requests.get(request_id) is running:
            self._step.failures.append((request_id, frames.take_apart(error)))

    # ---- adapters

    def _change(self, version: str, change: Callable[[], Awaitable[None]]) -> None:
        """What is told of one adapter happens in the order in which it was told."""
        task = asyncio.create_task(self._change_after(self._last_changes.get(version), version, change))
        self._last_changes[version] = task
        self._keep(task)
        task.add_done_callback(lambda done: self._end_change(version, done))

    async def _change_after(
        self, before: asyncio.Task[None] | None, version: str, change: Callable[[], Awaitable[None]]
    ) -> None:
        if before is not None:
            await asyncio.wait((before,))
        await self._awake.wait()
        self._changing += 1
        self._still.clear()
        try:
            await change()
        except Exception:  # an adapter that could not be taken out: requests and other adapters go on
            log.exception("a change of the adapter %r failed", version)
        finally:
            self._changing -= 1
            if not self._changing:
                self._still.set()

    def _end_change(self, version: str, done: asyncio.Task[None]) -> None:
        if self._last_changes.get(version) is done:
            del self._last_changes[version]
        self._news.set()

    async def _load_adapter(self, version: str, folder: Path, pinned: bool) -> None:
        error: TuneserveError | None = None
        try:
            await self._engine.load_adapter(version, folder, pinned=pinned)
        except TuneserveError as refusal:
            error = refusal
        except Exception as failure:  # the library's: who loads it is to hear of it
            log.exception("the adapter %r could not be loaded", version)
            error = EngineFailure(f"the engine could not load the adapter: {failure}")
        self._step.adapters.append((version, None if error is None else frames.take_apart(error)))

    # ---- sleep

    async def _rest(self, change: Callable[[], Awaitable[None]]) -> None:
        """Sleep or wake up. Adapters are not changed meanwhile, nor in sleep: what they lie in may not be there."""
        error: TuneserveError | None = None
        async with self._resting:
            self._awake.clear()
            await self._still.wait()
            try:
                await change()
            except TuneserveError as refusal:
                error = refusal
            except Exception as failure:  # the library's: who asked for it is to hear of it
                log.exception("the engine could not go to sleep or wake up")
                error = EngineFailure(f"the engine could not go to sleep or wake up: {failure}")
            if self._engine.health().state is EngineState.READY:
                self._awake.set()
        self._step.rests.append(None if error is None else frames.take_apart(error))
        self._news.set()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- what the server is told

    async def _tell(self) -> None:
        """Send what has happened, all of one turn of the loop together. Raises EngineFailure where the engine died."""
        while True:
            try:
                async with asyncio.timeout(LOOK_SECONDS):  # wait_for would lose a cancellation that comes with news
                    await self._news.wait()
            except TimeoutError:
                if self._engine.stats() != self._step.stats:
                    self._news.set()
            else:
                await asyncio.sleep(0)  # what else this turn brings goes along
                self._news.clear()
                step, self._step = self._step, frames.Step(self._engine.stats(), self._received)
                step.stats, step.received = self._step.stats, self._received
                await self._connection.send_async(step)
            health = self._engine.health()
            if health.state is EngineState.FAILED:
                raise EngineFailure(f"the engine died: {health.detail}")
