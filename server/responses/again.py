"""Responses in the background that the server before has left unfinished: begun again, from what is kept of them.

A response begins anew, and so do its events: their numbers follow those that any server before can have given, so that
whoever watched it and goes on from a number gets all events of the new beginning, and none twice.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace

from engines.errors import EngineUnavailable, InvalidRequest, QueueFull, RateLimited, StoreUnavailable
from engines.logs import about
from server.http.body import parse_object
from server.http.keys.caller import Caller, in_background
from server.inference.inference import Inference
from server.kept.responses import KeptRequest, KeptResponse, KeptResponses
from server.model.served import ServedModel
from server.openai.answer import Answer
from server.openai.pipeline import admit
from server.responses.background import RETRY_SECONDS, Background, Run, Send
from server.responses.responses import Responses
from server.responses.schema import ResponsesRequest
from server.responses.words import in_own_words

log = logging.getLogger(__name__)

MOST_ATTEMPTS = 3
"""Servers that may die while they make a response. The last one makes it beside no other last attempt, so that those
which only ran beside one that kills servers come to their end."""
EVENTS = 1 << 24
"""Numbers of events that each beginning has for itself: more than a response can have."""
DIED = f"The server died {MOST_ATTEMPTS} times while this response was made: it is not tried again."
UNKNOWN = "The server ended while this response was made: ask again."


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What an earlier server has left."""

    kept: KeptResponses
    background: Background
    responses: Responses
    model: ServedModel
    inference: Inference

    async def begin_again(self) -> None:
        """Queue all of it, the oldest first; what cannot be begun has failed. Raises StoreUnavailable."""
        alone = asyncio.Lock()
        for response in await self.kept.unfinished():
            if response.request is None:  # left by a server that kept no requests
                await self._fail(response, UNKNOWN)
            elif response.request.attempts >= MOST_ATTEMPTS:
                await self._fail(response, DIED)
            else:
                await self._begin(response, response.request, alone)

    async def _begin(self, response: KeptResponse, request: KeptRequest, alone: asyncio.Lock) -> None:
        try:
            body = parse_object(ResponsesRequest, request.body)
        except InvalidRequest as error:
            await self._fail(response, error.message)
            return
        run = Run(response.owner, body.conversation_id, request, input=response.input)
        renderer = self.responses.renderer_again(
            body, self.model, response, on_end=run.end_with, first_event=request.begun * EVENTS
        )
        run.use(renderer)
        turn = alone if request.attempts == MOST_ATTEMPTS - 1 else nullcontext()
        again = _Again(self, run, body, in_background(response.owner, by_admin=request.by_admin), turn)
        self.background.start_again(run, again.make)
        log.info("The response %s, which the server before has left, is made again.", run.id)

    async def _fail(self, response: KeptResponse, why: str) -> None:
        error = {"code": "server_error", "message": why}
        failed = {**response.answer, "status": "failed", "error": error}
        await self.kept.move(replace(response, answer=failed, request=None))


@dataclass(frozen=True, slots=True)
class _Again:
    """One of them."""

    of: Unfinished
    run: Run
    body: ResponsesRequest
    caller: Caller
    turn: asyncio.Lock | nullcontext[None]

    async def make(self, send: Send, begun: Callable[[], None]) -> None:
        """As if its client asked once more, but that nobody can be told to come back later: it waits.

        Raises what its request is refused with now, and what the engine raises.
        """
        with about(self.run.id):
            while True:
                with ExitStack() as held:
                    answer = await self._admitted(held)
                    async with self.turn:
                        if await self._made(answer, send, begun):
                            return
                await asyncio.sleep(RETRY_SECONDS)

    async def _made(self, answer: Answer, send: Send, begun: Callable[[], None]) -> bool:
        """Whether the engine, or what counts attempts, did not turn it away before it had begun."""
        try:
            if not self.run.is_begun:
                await self.of.background.count(self.run)
                begun()
            await answer.stream(send)
        except (QueueFull, EngineUnavailable, StoreUnavailable):
            if self.run.answer["status"] != "queued":
                raise
            return False
        return True

    async def _admitted(self, held: ExitStack) -> Answer:
        while True:
            try:
                with ExitStack() as trying:
                    answer = await self._admit(trying)
                    held.enter_context(trying.pop_all())
                    return answer
            except RateLimited as error:
                await asyncio.sleep(error.retry_after)
            except (QueueFull, EngineUnavailable, StoreUnavailable):
                await asyncio.sleep(RETRY_SECONDS)

    async def _admit(self, held: ExitStack) -> Answer:
        inference, responses = self.of.inference, self.of.responses
        inference.lifecycle.check_ready()
        inference.rate_limits.of(self.caller).begin(held)
        with in_own_words():
            context = await responses.contexts.find_again(self.body, self.run.input, self.caller.access)
            chat = await inference.pools.text.run_long(context.is_long, responses.chat, self.body, context)
            endpoint = responses.endpoint_again(self.body, self.run.renderer)
            return await admit(endpoint, chat, self.caller, self.of.model, inference, held)
