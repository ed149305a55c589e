"""One life of an engine: its process, from the start to the end, whatever ends it."""

import asyncio
import logging
import os
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import msgspec

from engines.capabilities import Capabilities
from engines.errors import EngineFailure
from engines.process import frames
from engines.process.children import group_exists, kill_group
from engines.process.config import Patience
from engines.process.watchdog import Stuck, Watchdog, watch_for_stopped

log = logging.getLogger(__name__)

ENDING_SECONDS = 10.0
"""Seconds for a process to end in order, once the server has no more use for it."""
GROUP_SECONDS = 1.0
"""Seconds for the processes that it started to notice that it is gone."""
KILL_SECONDS = 5.0
"""Seconds for a process to be gone that was killed: one that waits for a device may take for ever."""
READ_BYTES = 1 << 18
PAUSE_SECONDS = 0.02
"""Seconds between two looks at whether a process has ended."""

Result = TypeVar("Result")


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


@dataclass(frozen=True, slots=True)
class End:
    """How a life ended, or a start failed."""

    reason: Literal["exited", "stuck", "unreadable", "start_failed", "internal"]
    """A label of metrics. `internal`: by an error of the server's own."""
    detail: str


class Life:
    def __init__(self, program: Program, patience: Patience) -> None:
        """Begin the process, as the leader of a group of its own: it loads the model without waiting for more. Raises
        EngineFailure, and InvalidRequest where its configuration has a number that is out of range.
        """
        what = frames.frame(frames.Start(msgspec.to_builtins(program.config)))
        self._patience = patience
        self._socket, self.process = _begin(program)
        with suppress(OSError):  # it has ended already, which `start` tells
            self._socket.sendall(what)
        self._writer: asyncio.StreamWriter | None = None
        self._over = False

    async def start(self) -> Capabilities:
        """Wait until it has loaded the model. Raises what it refuses it with, and EngineFailure where it ends, takes
        too long or is stuck; then nothing is left of it.
        """
        try:
            first = await self._first()
        except asyncio.CancelledError:
            self.kill()
            raise
        except Exception as error:  # of any kind: a process that has not started is of no use
            end = await self._end_of(error)
            raise EngineFailure(f"the engine process {end.detail} while it started") from error
        if isinstance(first, frames.Refused):
            self.close()
            await self.end()
            raise frames.put_together(first.failure)
        return first.capabilities

    async def _first(self) -> frames.Ready | frames.Refused:
        reader, self._writer = await asyncio.open_connection(sock=self._socket)
        self._incoming = _Incoming(reader)
        first = await _first_of(self._incoming.next(), self._deadline(), watch_for_stopped(self.process.pid))
        if isinstance(first, frames.Step):
            raise frames.Unreadable("a step of a model that is not loaded")
        return first

    async def _deadline(self) -> NoReturn:
        await asyncio.sleep(self._patience.start_seconds)
        raise Stuck(f"had not loaded the model after {self._patience.start_seconds:g} s, and was ended")

    async def run(self, hear: Callable[[frames.Step], None], has_work: Callable[[], bool]) -> End:
        """Receive its messages until its end. An error in doing so ends it, too."""
        ping = frames.frame(frames.Ping())
        watchdog = Watchdog(self._patience.step_seconds, has_work=has_work, ping=lambda: self.send(ping))
        try:
            hearing = self._hear(hear, watchdog)
            return await _first_of(hearing, watchdog.run(), watch_for_stopped(self.process.pid))
        except Exception as error:  # noqa: BLE001 (of any kind: a process that nobody hears is of no use)
            return await self._end_of(error)
        finally:
            self.close()

    async def _hear(self, hear: Callable[[frames.Step], None], watchdog: Watchdog) -> NoReturn:
        while True:
            message = await self._incoming.next()
            if not isinstance(message, frames.Step):
                raise frames.Unreadable("a second answer to the first message")
            watchdog.hear(message)
            hear(message)

    async def _end_of(self, error: Exception) -> End:
        """End the process, where it has not ended by itself, and say how that was."""
        if isinstance(error, ConnectionError):
            self.close()
            return End("exited", f"ended with {_status(await self.end())}")
        self.kill()
        await self.end()
        match error:
            case Stuck():
                return End("stuck", str(error))
            case frames.Unreadable():
                return End("unreadable", f"sent what cannot be read: {error}")
        log.error("what the engine's process said led to an error", exc_info=error)
        return End("internal", f"was ended after an error of the server: {type(error).__name__}: {error}")

    def send(self, message: bytes) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(message)

    def close(self) -> None:
        """Let it go: it ends when its connection does."""
        if self._writer is None:
            self._socket.close()
        else:
            self._writer.close()

    def kill(self) -> None:
        """The process, and all that it started. One that is stopped dies, too."""
        if not self._over:
            kill_group(self.process.pid)

    async def end(self) -> int | None:
        """Wait for the end of a process that has been let go of, and end what it left of its group. Return its status;
        None where it cannot be ended.
        """
        if self._over:
            return self.process.poll()
        await _wait(lambda: self.process.poll() is not None, ENDING_SECONDS)
        await _wait(lambda: not group_exists(self.process.pid), GROUP_SECONDS)
        self.kill()
        self._over = True  # its number may be another's from now on
        if not await _wait(lambda: self.process.poll() is not None, KILL_SECONDS):
            log.error("the engine's process %d was killed and has not ended", self.process.pid)
        return self.process.poll()


class _Incoming:
    """The messages of a life of the process, one after another."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._splitter = frames.Splitter(frames.decode_from_engine)
        self._messages: deque[frames.FromEngine] = deque()

    async def next(self) -> frames.FromEngine:
        """Raises ConnectionError at the end, Unreadable."""
        while not self._messages:
            data = await self._reader.read(READ_BYTES)
            if not data:
                raise ConnectionResetError("the process has closed its connection")
            self._messages.extend(self._splitter.feed(data))
        return self._messages.popleft()


def _begin(program: Program) -> "tuple[socket.socket, subprocess.Popen[bytes]]":
    """Start the process; return our end of its connection, and it."""
    try:
        ours, theirs = socket.socketpair()
        with theirs, ExitStack() as undo:
            undo.callback(ours.close)
            process = subprocess.Popen(
                [*program.command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=_environment(program),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            undo.pop_all()
    except OSError as error:  # the machine is out of memory, processes or open files: that may pass
        raise EngineFailure(f"the engine process cannot be started: {error}") from error
    return ours, process


def _environment(program: Program) -> dict[str, str]:
    packages = Path(__file__).parents[2]
    path = os.pathsep.join(part for part in (str(packages), os.environ.get("PYTHONPATH", "")) if part)
    return os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path} | program.environment


async def _first_of(work: Coroutine[Any, Any, Result], *watchers: Coroutine[Any, Any, NoReturn]) -> Result:
    """What `work` returns or raises, or what one of the watchers raises before that. None is left running."""
    tasks = [asyncio.create_task(work), *map(asyncio.create_task, watchers)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        first = next(task for task in tasks if task.done())
        return first.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < deadline:
        await asyncio.sleep(PAUSE_SECONDS)
    return true


def _status(code: int | None) -> str:
    if code is None:
        return "no status"
    return f"signal {-code}" if code < 0 else f"status {code}"
