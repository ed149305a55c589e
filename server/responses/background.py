"""Responses in the background: made whether or not their clients wait, and watched by whoever asks.

One that runs when the server ends is begun again by the next one: see `again`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from fastapi import Depends

from engines.errors import EngineUnavailable, InvalidRequest, QueueFull, StoreUnavailable, TuneserveError
from server.deps import part
from server.http.sse import EventStyle
from server.inference.lifecycle import Lifecycle
from server.kept.responses import UNFINISHED, KeptRequest, KeptResponse, KeptResponses
from server.openai.answer import Answer
from server.responses.output import Event
from server.responses.renderer import ResponseRenderer
from server.responses.response import joins_conversation

log = logging.getLogger(__name__)

MOST_RUNS = 256
"""Responses that may run at a time. The events of each are in memory."""
MOST_WATCHED = 64
"""Responses whose events can be watched once they have ended: the last ones."""
WATCHED_SECONDS = 300.0
"""Seconds for which the events of a response can be watched once it has ended."""
RETRY_SECONDS = 1.0
WATCHED = EventStyle(named=True, errors=lambda _, __: [], end=b"")
"""The events of a response as one who watches it gets them: that this client is too slow is nothing that it tells."""

Send = Callable[[Event], None]
Make = Callable[[Send, Callable[[], None]], Awaitable[None]]
"""Makes a response: gives its events to the first, and calls the second once the server is to wait for its end."""


class Run:
    """One response, and its events as they come."""

    def __init__(
        self, owner: str | None, conversation: str | None, request: KeptRequest, *, input: Sequence[dict[str, Any]] = ()
    ) -> None:
        self.owner = owner
        self.conversation = conversation
        self.request = request
        self.input = input
        self.is_begun = False
        """Whether this server has begun it, which `request` says too."""
        self.ended_at: float | None = None
        self._left = False
        self._renderer: ResponseRenderer | None = None
        self._answer: dict[str, Any] | None = None  # once it has ended
        self._events: list[Event] = []
        self._held: list[Event] = []  # the last ones, until what they tell is kept
        self._news = asyncio.Event()

    def use(self, renderer: ResponseRenderer) -> None:
        """Comes once, before it begins."""
        self._renderer = renderer
        self._events += renderer.queued()

    def begin(self, request: KeptRequest) -> None:
        """`request`: with this server among those that have begun it."""
        self.request, self.is_begun = request, True

    def end_with(self, answer: dict[str, Any]) -> None:
        """Take the response as it has ended. Events from now on are held."""
        self._answer = answer

    def leave(self) -> None:
        """Nobody watches it any longer, since the server ends before it."""
        self._left = True
        self._tell()

    def send(self, event: Event) -> None:
        (self._events if self._answer is None else self._held).append(event)
        self._tell()

    def end(self) -> None:
        """No more events will come, and those that were held can be seen."""
        self._events += self._held
        self._held = []
        self.ended_at = time.monotonic()
        self._tell()

    @property
    def renderer(self) -> ResponseRenderer:
        assert self._renderer is not None, "in use"
        return self._renderer

    @property
    def id(self) -> str:
        return str(self.answer["id"])

    @property
    def answer(self) -> dict[str, Any]:
        """The response as it is now."""
        return self._answer if self._answer is not None else self.renderer.now()

    @property
    def seen(self) -> dict[str, Any]:
        """The response as clients see it: it has not ended for them before it is kept so, and can be gone on from."""
        return self.renderer.now() if self.ended_at is None else self.answer

    @property
    def kept(self) -> KeptResponse:
        request = self.request if self._answer is None else None
        return KeptResponse(owner=self.owner, answer=self.answer, input=self.input, request=request)

    @property
    def given_back(self) -> KeptResponse:
        """As it is kept for the next server."""
        request = self.request.given_back() if self.is_begun else self.request
        return KeptResponse(owner=self.owner, answer=self.renderer.not_begun(), input=self.input, request=request)

    @property
    def has_ended(self) -> bool:
        """Whether it has, be it that this is not kept yet."""
        return self._answer is not None

    async def watch(self, send: Send, *, after: int = -1) -> None:
        """Give `send` the events that follow number `after`, until the response has ended."""
        position = max(0, after + 1 - int(self._events[0]["sequence_number"]))
        while True:
            news = self._news
            while position < len(self._events):
                send(self._events[position])
                position += 1
            if self.ended_at is not None or self._left:
                return
            await news.wait()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


class Background:
    def __init__(self, kept: KeptResponses, lifecycle: Lifecycle) -> None:
        self._kept = kept
        self._lifecycle = lifecycle
        self._runs: dict[str, Run] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """End what runs, and leave it to the next server."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for run in self._runs.values():
            if run.ended_at is None:
                await self._give_back(run)

    def check_room(self) -> None:
        """Raises QueueFull."""
        if len(self._tasks) >= MOST_RUNS:
            raise QueueFull(f"{MOST_RUNS} responses run in the background, as many as may.")

    async def start(self, run: Run, answer: Answer, held: ExitStack) -> None:
        """Keep a response as queued, and begin it. What `held` holds is given up once it has ended.

        Raises StoreUnavailable, StorageFull, QuotaExceeded: then it has not begun.
        """
        run.is_begun = True
        await self._kept.keep(run.kept)
        ours = held.pop_all()

        async def make(send: Send, begun: Callable[[], None]) -> None:
            begun()
            with ours:
                await answer.stream(send)

        self._launch(run, make)

    def start_again(self, run: Run, make: Make) -> None:
        """Begin one that is kept already."""
        self._launch(run, make)

    async def count(self, run: Run) -> None:
        """Have it kept that this server has begun it. Raises StoreUnavailable: then nothing has changed."""
        if not run.is_begun:
            request = run.request.begun_again()
            await self._kept.move(replace(run.kept, request=request))
            run.begin(request)

    def _launch(self, run: Run, make: Make) -> None:
        self._runs[run.id] = run
        task = asyncio.create_task(self._run(run, make), name=run.id)
        self._tasks[run.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(task.get_name(), None))

    def find(self, id: str) -> Run | None:
        """What runs, or has ended not long ago."""
        self._forget()
        return self._runs.get(id)

    async def cancel(self, found: KeptResponse) -> dict[str, Any]:
        """The response, cancelled unless it has ended before. Raises InvalidRequest where it is none of these."""
        if not found.answer.get("background"):
            raise InvalidRequest("Only responses in the background can be cancelled.", param="response_id")
        run, task = self._runs.get(found.id), self._tasks.get(found.id)
        if run is None or task is None:
            return found.answer
        task.cancel()
        await asyncio.wait((task,))
        if run.answer["status"] in UNFINISHED:
            run.end_with(run.renderer.cancelled())
            await self._keep(run)
        run.end()
        return run.answer

    # ---- one of them

    async def _run(self, run: Run, make: Make) -> None:
        with ExitStack() as working:
            await self._make(run, make, partial(self._enter, working))
            if run.has_ended:
                await self._keep(run)
                run.end()
                self._forget()
            else:
                run.leave()

    def _enter(self, working: ExitStack) -> None:
        in_flight = self._lifecycle.in_flight
        in_flight.enter()
        working.callback(in_flight.leave)

    async def _make(self, run: Run, make: Make, begun: Callable[[], None]) -> None:
        """Until it has ended, or the server is to end before it."""
        try:
            await make(run.send, begun)
        except Exception as error:  # noqa: BLE001 (whatever it is, the response tells it)
            if isinstance(error, EngineUnavailable) and self._lifecycle.is_draining:
                return
            for event in run.renderer.events.errors(error, run.id):
                run.send(event)

    async def _keep(self, run: Run) -> None:
        """Keep it as it has ended, however long that takes."""
        while True:
            try:
                await self._move(run)
            except StoreUnavailable as error:
                log.warning("The response %s waits to be kept: %s", run.id, error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _move(self, run: Run) -> bool:
        conversation = run.conversation if joins_conversation(run.answer) else None
        return await self._kept.move(run.kept, conversation=conversation)

    async def _give_back(self, run: Run) -> None:
        try:
            await (self._move(run) if run.has_ended else self._kept.move(run.given_back))
        except TuneserveError as error:
            log.warning("That the response %s is not made here any more is not kept: %s", run.id, error)

    def _forget(self) -> None:
        """Drop what has ended long ago, and before many others."""
        until = time.monotonic() - WATCHED_SECONDS
        ended = sorted((run.ended_at, id) for id, run in self._runs.items() if run.ended_at is not None)
        for place, (ended_at, id) in enumerate(reversed(ended)):
            if place >= MOST_WATCHED or ended_at < until:
                del self._runs[id]


BackgroundDep = Annotated[Background, Depends(part(Background))]
