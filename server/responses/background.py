"""Responses in the background: made whether or not their clients wait, and watched by whoever asks.

One that runs when the server ends is not begun again: the next server tells that it has failed.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends

from engines.errors import InvalidRequest, QueueFull, StoreUnavailable
from server.deps import part
from server.http.in_flight import InFlight
from server.kept.responses import UNFINISHED, KeptResponse, KeptResponses
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
RESTARTED = {"code": "server_error", "message": "The server ended while this response was made: ask again."}


class Run:
    """One response, and its events as they come."""

    def __init__(self, owner: str | None, conversation: str | None) -> None:
        self.owner = owner
        self.conversation = conversation
        self.input: Sequence[dict[str, Any]] = ()
        self.ended_at: float | None = None
        self._renderer: ResponseRenderer | None = None
        self._answer: dict[str, Any] | None = None  # once it has ended
        self._events: list[Event] = []
        self._held: list[Event] = []  # the last ones, until what they tell is kept
        self._news = asyncio.Event()

    def use(self, renderer: ResponseRenderer) -> None:
        """Comes once, before it begins."""
        self._renderer = renderer
        self._events += renderer.queued()

    def end_with(self, answer: dict[str, Any]) -> None:
        """Take the response as it has ended. Events from now on are held."""
        self._answer = answer

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
        return KeptResponse(owner=self.owner, answer=self.answer, input=self.input)

    async def watch(self, send: Callable[[Event], None], *, after: int = -1) -> None:
        """Give `send` the events that follow number `after`, until the response has ended."""
        position = after + 1
        while True:
            news = self._news
            while position < len(self._events):
                send(self._events[position])
                position += 1
            if self.ended_at is not None:
                return
            await news.wait()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


class Background:
    def __init__(self, kept: KeptResponses, in_flight: InFlight) -> None:
        self._kept = kept
        self._in_flight = in_flight
        self._runs: dict[str, Run] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def open(self) -> None:
        """Tell of what the server before has left that it has failed. Raises StoreUnavailable."""
        for response in await self._kept.unfinished():
            failed = {**response.answer, "status": "failed", "error": RESTARTED}
            await self._kept.move(replace(response, answer=failed))

    async def close(self) -> None:
        """End what runs; the next server tells of it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def check_room(self) -> None:
        """Raises QueueFull."""
        if len(self._tasks) >= MOST_RUNS:
            raise QueueFull(f"{MOST_RUNS} responses run in the background, as many as may.")

    async def start(self, run: Run, answer: Answer, held: ExitStack) -> None:
        """Keep a response as queued, and begin it. What `held` holds is given up once it has ended.

        Raises StoreUnavailable, StorageFull, QuotaExceeded: then it has not begun.
        """
        await self._kept.keep(run.kept)
        held = held.pop_all()
        self._runs[run.id] = run
        task = asyncio.create_task(self._run(run, answer, held), name=run.id)
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

    async def _run(self, run: Run, answer: Answer, held: ExitStack) -> None:
        self._in_flight.enter()
        try:
            with held:
                await self._make(run, answer)
            await self._keep(run)
            run.end()
            self._forget()
        finally:
            self._in_flight.leave()

    async def _make(self, run: Run, answer: Answer) -> None:
        try:
            await answer.stream(run.send)
        except Exception as error:  # noqa: BLE001 (whatever it is, the response tells it)
            for event in answer.events.errors(error, run.id):
                run.send(event)

    async def _keep(self, run: Run) -> None:
        """Keep it as it has ended, however long that takes."""
        conversation = run.conversation if joins_conversation(run.answer) else None
        while True:
            try:
                await self._kept.move(run.kept, conversation=conversation)
            except StoreUnavailable as error:
                log.warning("The response %s waits to be kept: %s", run.id, error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    def _forget(self) -> None:
        """Drop what has ended long ago, and before many others."""
        until = time.monotonic() - WATCHED_SECONDS
        ended = sorted((run.ended_at, id) for id, run in self._runs.items() if run.ended_at is not None)
        for place, (ended_at, id) in enumerate(reversed(ended)):
            if place >= MOST_WATCHED or ended_at < until:
                del self._runs[id]


BackgroundDep = Annotated[Background, Depends(part(Background))]
